"""What is kept of what a teacher wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kdzoo.errors import KdzooError
from kdzoo.speakers.speech import Generation
from kdzoo_llm import triples
from kdzoo_llm.triples import Triple


def said(text: str, logprob: float = -1.0, finish: str = "stop") -> Generation:
    return Generation(text, finish=finish, logprobs=[logprob / 2, logprob / 2])


def parse(text: str) -> Mapping[str, Any] | None:
    return {"head": text[:-1]} if text.endswith("?") else None


def test_questions_by_hand() -> None:
    """Each step of the post-processing drops what the next one must not see."""
    written = [
        said("dog?", -3),
        said(" dog? ", -1),  # the same text
        said("cat?", -2),
        said("bird?", -9),  # the least probable of five
        said("cow", -2.5),  # no question
        said("fox?", -0.5, finish="length"),  # unfinished
        said("held?", -1.5),
        said(""),
    ]
    found = triples.kept_questions(written, parse, drop=0.2, reserved=frozenset({"held"}))
    assert found == {"dog?": {"head": "dog"}, "cat?": {"head": "cat"}}
    assert list(found) == ["dog?", "cat?"]  # the most probable first
    assert len(triples.kept_questions(written, parse, drop=0.0)) == 4


def test_the_share_is_dropped_before_the_form_is_looked_at() -> None:
    """The other way round a flood of broken texts would save improbable questions."""
    written = [said("a?", -4), said("b?", -3), said("x", -2), said("y", -1)]
    assert list(triples.kept_questions(written, parse, drop=0.25)) == ["b?"]


def test_tails_by_hand() -> None:
    """A tail with its full stop would be another tail, and false."""
    written = [
        said(" animal. ", -1),
        said("animal", -2),
        said("ox"),
        said("act", -4),
        said("never ends", finish="length"),
    ]
    assert triples.kept_tails(written) == {"animal": -1.0, "act": -4.0}


def test_a_head_has_one_split() -> None:
    """A head on both sides would let the critic be measured on what it knows."""
    heads = [f"head{k}" for k in range(4000)]
    shares = {
        split: sum(triples.split_of(head) == split for head in heads) / 4000 for split in triples.SHARES
    }
    assert shares == pytest.approx({"train": 0.8, "val": 0.1, "test": 0.1}, abs=0.02)


def triple(question: str, tail: str) -> Triple:
    return Triple(question, tail, {"head": question}, -1.0, "train")


def test_a_sample_does_not_depend_on_the_order() -> None:
    """Otherwise people would be asked anew for each corpus that has one more line."""
    found = [triple(f"q{k}", "t") for k in range(50)]
    chosen = {found[place].question for place in triples.sample(found, 20)}
    turned = found[::-1]
    assert {turned[place].question for place in triples.sample(turned, 20)} == chosen
    assert triples.sample(found, 99) == list(range(50))


def test_exchanged_tails_are_all_there_and_elsewhere() -> None:
    """A control that leaves tails where they were is a copy of the method."""
    found = [triple(f"q{k}", f"t{k}") for k in range(7)]
    moved = triples.exchanged(found)
    assert sorted(one.tail for one in moved) == sorted(one.tail for one in found)
    assert all(
        one.tail != before.tail and one.question == before.question
        for one, before in zip(moved, found, strict=True)
    )


def test_files_come_back_and_damage_is_named(tmp_path: Path) -> None:
    """Half a file must not pass for a small corpus."""
    found = [triple("a", "b"), triple("c", "ü")]
    triples.write(tmp_path / "x.json", found)
    assert triples.read(tmp_path / "x.json", list[Triple]) == found
    (tmp_path / "x.json").write_bytes((tmp_path / "x.json").read_bytes()[:20])
    with pytest.raises(KdzooError, match=r"x\.json cannot be read .* --fresh"):
        triples.read(tmp_path / "x.json", list[Triple])
