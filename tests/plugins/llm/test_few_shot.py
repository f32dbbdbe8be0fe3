"""Few-shot prompts: what stands between the examples decides what a model writes."""

from __future__ import annotations

import pytest

from kdzoo.errors import KdzooError
from kdzoo_llm.few_shot import few_shot_prompt


def test_the_list_of_events_is_that_of_the_official_notebook() -> None:
    """Another number or blank line would be another prompt than the paper's."""
    said = few_shot_prompt(["PersonX runs", "PersonX sings"], label="{number}. Event:", gap="\n\n\n")
    assert said == "1. Event: PersonX runs\n\n\n2. Event: PersonX sings\n\n\n3. Event:"


def test_a_header_stands_once_and_the_open_item_begins() -> None:
    """A header before each item, or an open item that is lost, asks another question."""
    said = few_shot_prompt(["a: 1"], "b:", label="({number})", gap="\n", header="Answer.\n")
    assert said == "Answer.\n(1) a: 1\n(2) b:"


@pytest.mark.parametrize(
    ("shots", "opened", "expected"), [([], "b is", "b is"), (["a"], "", "a"), (["a"], "b", "a b")]
)
def test_plain_lists_end_without_a_blank(shots: list[str], opened: str, expected: str) -> None:
    """A blank at the end is a token of its own, after which no trained model begins a word."""
    assert few_shot_prompt(shots, opened) == expected


def test_what_is_no_prompt_is_refused() -> None:
    """An empty example teaches to write nothing; an empty prompt cannot be gone on with."""
    with pytest.raises(KdzooError, match="example 1 is empty"):
        few_shot_prompt(["a", " "])
    with pytest.raises(KdzooError, match="is empty: there is nothing to go on with"):
        few_shot_prompt([])
