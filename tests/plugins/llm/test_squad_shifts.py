"""SquadShifts: its files, what student and teacher read, what counts as right."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdzoo.errors import KdzooError
from kdzoo.runs import Run
from kdzoo.speakers.scripted import ScriptedSpeaker
from kdzoo.testing.subject import Subject, backward
from kdzoo_llm.data.examples import Example
from kdzoo_llm.data.squad_shifts import first_questions
from kdzoo_llm.language import TEACHER
from kdzoo_llm.methods import prompt_distillation
from kdzoo_llm.sequences import TEXT
from kdzoo_llm.tasks import squad_shifts
from kdzoo_llm.vocabularies import Vocabulary, word_level


def asked(name: str, question: str, *answers: str) -> dict[str, Any]:
    return {
        "id": name,
        "question": f" {question} ",
        "answers": [{"text": a, "answer_start": 0} for a in answers],
    }


CONTENT = {
    "version": "1.0",
    "data": [
        {
            "title": "one",
            "paragraphs": [
                {
                    "context": " the mill burned in may \n",
                    "qas": [asked("a", "when ?", "in May", "May", "May")],
                },
                {"context": "nobody asks", "qas": []},
            ],
        },
        {
            "title": "two",
            "paragraphs": [
                {"context": "ada built it", "qas": [asked("b", "who ?", "Ada"), asked("c", "what ?", "it")]}
            ],
        },
    ],
}
ALL_WORDS = (
    "the mill burned in may ada built it when who what ? Question: Answer Answer: a few words. <user> <bot>"
)
WORDS = ALL_WORDS.split()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "squadshifts"
    folder.mkdir()
    (folder / "nyt_v1.0.json").write_text(json.dumps(CONTENT))
    return tmp_path


def test_the_first_questions_and_their_passages(root: Path) -> None:
    """Would catch passages that no question is about, or a question beyond the first so many."""
    found = first_questions(root, "nyt", 2)
    assert found.passages == {"nyt/0": "the mill burned in may", "nyt/2": "ada built it"}
    assert found.questions == [Example("nyt/0/a", "when ?", "in May"), Example("nyt/2/b", "who ?", "Ada")]
    assert found.references["nyt/0/a"] == ("in May", "May")
    assert len(first_questions(root, "nyt", 1000).questions) == 3
    assert first_questions(root / "squadshifts", "nyt", 2) == found


def test_files_that_are_not_there(root: Path) -> None:
    """Would catch a traceback in the place of what is wanted, and where it is had."""
    with pytest.raises(KdzooError, match=r"reddit_v1.0.json is missing[\s\S]*modestyachts"):
        first_questions(root, "reddit", 1)
    with pytest.raises(KdzooError, match="new-wiki"):
        first_questions(root, "wiki", 1)
    for text in ("{", "[]", '{"data": [{"paragraphs": [{"qas": [{}]}]}]}'):
        (root / "squadshifts" / "amazon_reviews_v1.0.json").write_text(text)
        first_questions.cache_clear()
        with pytest.raises(KdzooError, match="is not of SQuAD's form"):
            first_questions(root, "amazon", 1)


def vocabulary() -> Vocabulary:
    return word_level("words", WORDS)


def opened(root: Path, monkeypatch: pytest.MonkeyPatch, stage: str = "fit", retrieve: int = 0) -> Any:
    monkeypatch.setattr(squad_shifts, "open_vocabulary", lambda name: vocabulary())
    monkeypatch.setattr("kdzoo_llm.language.open_vocabulary", lambda name: vocabulary())
    cfg = {
        "subset": "nyt",
        "asked": 3,
        "vocabulary": "words",
        "prompt_length": 64,
        "answer_length": 16,
        "eval.retrieve": retrieve,
    }
    return SimpleNamespace(cfg=cfg, data_root=root, stage=stage)


def test_what_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch the passage in the student's prompt, another one in the teacher's, or one in training text twice."""
    run = opened(root, monkeypatch)
    train, test = squad_shifts.data(run, "train"), squad_shifts.data(run, "test")
    assert [row.answer for row in train.items.examples] == ["the mill burned in may", "ada built it"]
    reads = train.items.readings
    assert [reads[view].prompt(train.items.examples[0]) for view in (TEXT, TEACHER)] == ["", ""]
    row = test.items.examples[1]
    assert "ada" not in reads[TEXT].prompt(row)
    assert reads[TEACHER].prompt(row).startswith("ada built it\n\nQuestion: who ?")
    seen = opened(root, monkeypatch, "evaluate", 1)
    prompt = squad_shifts.data(seen, "test").items.readings[TEXT].prompt
    assert prompt(Example("nyt/9/x", "who built ?", "")).startswith("ada built it\n\n")
    assert len(squad_shifts.data(run, "val")) == 0
    assert set(squad_shifts.reserved(run)) == {"when ?", "who ?", "what ?"}
    assert set(squad_shifts.documents(run)) == {"nyt/0", "nyt/2"}
    with pytest.raises(KdzooError, match="asker=teacher"):
        squad_shifts.asker(run)


def test_prompts_are_the_templates() -> None:
    """Would catch an instruct model that is asked without its template, or a first token that stands twice."""
    words = vocabulary()
    assert squad_shifts.conversation(words, [], "who ?").endswith("Answer in a few words.\nAnswer:")
    words.tokenizer.chat_template = "<bos>{% for m in messages %}<user> {{ m.content }} {% endfor %}<bot>"
    said = squad_shifts.conversation(words, ["ada built it"], "who ?")
    assert said.startswith("<user> ada built it\n\nQuestion: who ?")
    assert said.endswith("<bot>")


def test_any_reference_counts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a judge that knows the first reference only, or finds it inside of other words."""
    found = squad_shifts.judge(opened(root, monkeypatch), ["it was May .", "Adam", "it"], "test")["accuracy"]
    assert found.items is not None
    assert found.items.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "arm", ["", "prompt-distillation.without-soft-targets", "prompt-distillation.documents"]
)
def test_two_steps_on_small_files(root: Path, monkeypatch: pytest.MonkeyPatch, arm: str) -> None:
    """Would catch a paper's profile that nobody ever started: stages, views and loss on files of the real layout."""
    monkeypatch.setattr(
        prompt_distillation,
        "EndpointSpeaker",
        lambda endpoint: ScriptedSpeaker(lambda asked: f"where does ba {asked.number} live ?", "asks"),
    )
    small = (
        "student=llama-xs", "teacher=llama-xs", "vocabulary=words:facts", "prompt_length=64", "answer_length=16",
        "asked=2", "batch=2", "questions=3", "rank=2", "asker=endpoint", "endpoint.base_url=http://localhost:1/v1",
        "endpoint.model=any", "answer_temperature=0", "answer_tokens=4",
    )  # fmt: skip
    subject = Subject("prompt-distillation", "squad-shifts", root / "home", small)
    monkeypatch.setattr(prompt_distillation, "answered", with_words)

    def look(run: Run) -> list[float]:
        return [backward(run, step) for step in (0, 1)]

    losses = subject.look(look, arm, data_root=str(root))
    assert all(loss >= 0 for loss in losses)
    assert arm == "" or min(losses) > 0


def with_words(questions: Any, replies: Any) -> list[Example]:
    """Answers that end: a net with fresh weights writes none."""
    return [Example(f"{question.id}/0", question.text, "oslo") for question in questions]
