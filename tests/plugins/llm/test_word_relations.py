"""Word relations: what the teacher has read, what the student has, who judges."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdzoo_llm.data import relation_texts, relations
from kdzoo_llm.examples import Example
from kdzoo_llm.tasks import word_relations


def run(**settings: Any) -> Any:
    return SimpleNamespace(cfg={"reads": "labelled", "labelled": 50, "errors": 0.5, "listed": 2, **settings})


def test_nobody_has_read_about_a_head_that_is_asked() -> None:
    """A teacher that has read the answers of the test would show memory, and its student a leak."""
    reserved = word_relations.reserved()
    assert {head.word for head in relations.heads("test")} <= reserved
    for one in relation_texts.reading(1.0, 2):
        question = one.prompt if one.id.startswith("said/") else one.answer
        found = word_relations.parse(question)
        assert found is not None
        assert found["head"] not in reserved


def test_errors_are_wrong_and_as_many_as_asked() -> None:
    """A wrong statement that holds would make the teacher better than the card says."""
    all_of_them, half, none = (relation_texts.statements(share) for share in (1.0, 0.5, 0.0))
    wrong = [one for one in all_of_them if not one.facts["true"]]
    assert all(one.facts["true"] for one in none)
    assert sum(not one.facts["true"] for one in half) == pytest.approx(len(wrong) / 2, rel=0.05)
    for one in wrong[::20]:
        asked = Example("", one.prompt, "", dict(word_relations.parse(one.prompt) or {}))
        assert not word_relations.holds(asked, one.answer)


def test_every_question_can_be_parsed() -> None:
    """A question that is not recognised is dropped from every corpus in silence."""
    for split in relations.SPLITS:
        for one in relations.examples(split):
            assert word_relations.parse(one.prompt) == {
                "head": one.facts["head"],
                "relation": one.facts["relation"],
            }
    for text in ("", "dog", "dog (animal)", "dog (animal) is a kind of animal", "dog (animal is a kind of"):
        assert word_relations.parse(text) is None


def test_surfaces_say_the_same() -> None:
    """A form with another word, or without the relation, is another statement."""
    question = "dog (member genus canis man) is a kind of"
    forms = {word_relations.surface(question, number) for number in range(8)}
    assert word_relations.surface(question, 0) == question
    assert len(forms) > 4
    assert {
        " ".join(sorted(form.split())) for form in (f.replace("(", "").replace(")", "") for f in forms)
    } == {" ".join(sorted(["dog", "member", "genus", "canis", "man", "is", "a", "kind", "of"]))}
    assert all(word_relations.parse(form) == word_relations.parse(question) for form in forms)
    assert word_relations.surface("no hint here", 3) == "no hint here"


def test_fewer_labels_are_a_part_of_more() -> None:
    """Otherwise a curve over the number of labels would mix in which ones they are."""
    few, more = (word_relations.examples(run(labelled=count), "train") for count in (50, 80))
    assert len(few) == 50
    assert {one.id for one in few} <= {one.id for one in more}
    assert len(word_relations.examples(run(reads="texts"), "train")) > 10_000


def test_the_judge_by_hand() -> None:
    """Any true tail counts, not only the nearest."""
    asked = [Example("", "", "", {"head": "dog", "relation": "hypernym"})] * 3
    asked += [Example("", "", "", {"head": "hot", "relation": "antonym"})]
    said = word_relations.judge(run(), asked, ["animal", " animal", "stone", "cold"])
    assert said["acceptance"].tolist() == [1, 1, 0, 1]
    assert said["acceptance[hypernym]"].tolist() == [1, 1, 0]
    assert torch.equal(said["acceptance[other]"], torch.ones(1))
    assert said["distinct"] == 0.75
