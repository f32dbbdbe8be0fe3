"""The handbook: answers found again in the page's sentences, wordings disjoint, facts that no base model has read."""

from __future__ import annotations

import hashlib
import re

import pytest

from kdzoo.errors import KdzooError
from kdzoo_llm.data import handbook

# How a sentence tells a fact, written from the language and not from the module's templates.
SENTENCES = {
    "colour": r"(?P<name>\w+) is (?P<value>\w+)",
    "place": r"(?P<name>\w+) stands in the (?P<value>\w+)",
    "keeper": r"(?P<value>\w+) runs (?P<name>\w+)",
    "day": r"(?P<name>\w+) rests on (?P<value>\w+)",
    "fuel": r"(?P<name>\w+) needs (?P<value>\w+)",
    "ware": r"(?P<name>\w+) makes (?P<value>\w+)",
}


def read(page: str) -> dict[tuple[str, str], str]:
    """(name, relation) -> value of every sentence."""
    found: dict[tuple[str, str], str] = {}
    for sentence in page.rstrip(".").split(". "):
        for relation, form in SENTENCES.items():
            if match := re.fullmatch(form, sentence):
                assert (match["name"], relation) not in found
                found[match["name"], relation] = match["value"]
                break
        else:
            raise AssertionError(sentence)
    return found


def asked(question: str) -> tuple[str, str]:
    """(name, relation) that a question names."""
    words = re.findall(r"\w+", question)
    names = [word for word in words if word in handbook.NAMES]
    relations = [word for word in words if word in handbook.RELATIONS]
    assert len(names) == len(relations) == 1, question
    return names[0], relations[0]


def test_every_answer_stands_on_the_page() -> None:
    """A question whose page says something else would teach the student what the teacher cannot know."""
    for split in handbook.SPLITS:
        for example in handbook.examples(split):
            told = read(example.facts["page"])
            assert len(told) == handbook.MACHINES * handbook.TOLD
            assert told[asked(example.prompt)] == example.answer == example.facts["value"]
            assert example.facts["teacher_prompt"] == f"{example.facts['page']} {example.prompt}"
            assert handbook.is_right(example.answer, example)


def test_reading_alone_cannot_do_without_the_name() -> None:
    """Two machines of a page are told of alike and never agree, so a guess among the page's values is half right."""
    for page in handbook.pages():
        told = read(page.text)
        for name, relation in told:
            values = [value for (other, kind), value in told.items() if kind == relation]
            assert len(set(values)) == handbook.MACHINES, (name, page.text)


def test_a_base_model_reads_but_knows_no_fact_of_the_handbook() -> None:
    """A fact met in pre-training needs no injection: closed-book accuracy must start at chance."""
    known = {(fact.name, fact.relation, fact.value) for fact in handbook.known()}
    assert len(known) == len(handbook.NAMES) * handbook.TOLD == 120
    for split in handbook.BASE_SIZES:
        for example in handbook.base_examples(split)[:3000]:
            page, _, question = example.prompt.rpartition(". ")
            if example.facts["kind"] == "ask":
                assert question == handbook.ASK
                assert asked(example.answer) in read(page)
            else:
                told = read(page)
                assert told[asked(question)] == example.answer
                assert not known & {(*key, value) for key, value in told.items()}


def test_wordings_are_disjoint_and_known_to_the_base_model() -> None:
    """Test asks in words that training did not use; a wording the base never met would test its English instead."""
    places = [place for split in handbook.SPLITS for place in handbook.WORDINGS[split]]
    assert sorted(places) == list(range(handbook.ASKED))
    for relation in handbook.RELATIONS.values():
        assert len(set(relation.questions)) == handbook.ASKED
    prompts = {split: {example.prompt for example in handbook.examples(split)} for split in handbook.SPLITS}
    for first in handbook.SPLITS:
        assert len(prompts[first]) == len(handbook.examples(first)) == 120 * len(handbook.WORDINGS[first])
        for second in handbook.SPLITS:
            assert first == second or not prompts[first] & prompts[second]
    forms = set()
    for example in handbook.base_examples("train")[:6000]:
        question = example.answer if example.facts["kind"] == "ask" else example.prompt.rpartition(". ")[2]
        forms.add(question.replace(example.facts["name"], "{name}"))
    assert forms == {form for relation in handbook.RELATIONS.values() for form in relation.questions}


def test_questions_are_read_back() -> None:
    """Questions that a model made are kept only if they are questions: the parser must know all and no others."""
    for example in handbook.examples("test"):
        assert handbook.fact_of(example.prompt) == asked(example.prompt)
    assert handbook.fact_of(" What colour is Velm? ") == ("Velm", "colour")
    for text in ("", "What colour is Velm", "What colour is it?", "Velm is red."):
        assert handbook.fact_of(text) is None


def test_base_examples_ask_as_often_as_they_should() -> None:
    """Without enough of them the model cannot make questions; with too many it cannot answer."""
    rows = handbook.base_examples("train")
    assert len(rows) == handbook.BASE_SIZES["train"]
    share = sum(example.facts["kind"] == "ask" for example in rows) / len(rows)
    assert share == pytest.approx(handbook.ASKING / 100, abs=0.01)


def test_content_is_the_same_everywhere() -> None:
    """Records name this task: a changed draw must not pass under the same name."""
    digest = hashlib.sha256()
    for row in [e for s in handbook.SPLITS for e in handbook.examples(s)] + handbook.base_examples("train"):
        digest.update(f"{row.id}\t{row.prompt}\t{row.answer}\n".encode())
    assert digest.hexdigest() == "43bce6135070c4bb99abf4690660eb16dac945d078285e8ad2ef70f857fcd9dc"


def test_answers_are_judged_whole_and_splits_by_name() -> None:
    """A text that lists all colours must not be right; a typing error must name the splits."""
    example = handbook.examples("val")[0]
    assert handbook.is_right(f" {example.answer}.", example)
    for text in ("", f"{example.answer} {example.answer}", "red blue green", example.answer[:-1]):
        assert not handbook.is_right(text, example)
    with pytest.raises(KdzooError, match=r"unknown split .*'tests'.*test"):
        handbook.examples("tests")
    with pytest.raises(KdzooError, match="base model"):
        handbook.base_examples("pool")
