"""Questions on passages of SquadShifts, asked without the passage; the settings are in the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.method import Metric
from kdzoo.speakers.speech import Message, Speaker
from kdzoo.task import Data
from kdzoo_llm.data import facts
from kdzoo_llm.data.examples import Example
from kdzoo_llm.data.squad_shifts import Asked, first_questions
from kdzoo_llm.engine import fit
from kdzoo_llm.language import build_model, check_pair, loss_terms, measure, readings, share
from kdzoo_llm.sequences import data_of
from kdzoo_llm.vocabularies import Vocabulary, open_vocabulary

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = [
    "asker",
    "build_model",
    "check_pair",
    "data",
    "documents",
    "evaluate",
    "fit",
    "loss_terms",
    "question_prompt",
    "reserved",
]


def _asked(run: Run) -> Asked:
    cfg = run.cfg
    return first_questions(run.data_root or Path(), str(cfg["subset"]), int(cfg["asked"]))


def documents(run: Run) -> Mapping[str, str]:
    """The passages: id -> text."""
    return _asked(run).passages


def asker(run: Run) -> Speaker:
    raise KdzooError(
        "asker = 'task': no program asks about real passages. Set asker=teacher (the base itself, as in the paper) or "
        "asker=endpoint."
    )


def question_prompt(text: str) -> tuple[Message, ...]:
    """What the base is told that is to ask about a passage."""
    return (
        Message(
            "user",
            f"{text}\n\nWrite one question that can be answered from the text above. It will be put to somebody who "
            "does not see the text, so say whom and what it is about, and do not mention the text. Write nothing but "
            "the question.",
        ),
    )


def reserved(run: Run) -> frozenset[str]:
    """The test's questions."""
    return frozenset(question.prompt for question in _asked(run).questions)


def data(run: Run, split: str) -> Data:
    """Train: the passages as they are. Test: the questions without them, or behind what was retrieved. No val: the
    paper keeps none."""
    cfg, asked = run.cfg, _asked(run)
    vocabulary = open_vocabulary(str(cfg["vocabulary"]))
    rows: Sequence[Example] = []
    if split == "train":
        rows = [Example(f"{name}/text", "", text) for name, text in asked.passages.items()]
    elif split == "test":
        rows = asked.questions
    retrieved = int(cfg["eval.retrieve"]) if getattr(run, "stage", "") == "evaluate" else 0

    def with_passage(example: Example) -> str:
        passage = asked.passages["/".join(example.id.split("/")[:2])]
        return conversation(vocabulary, [passage], example.prompt)

    def alone(example: Example) -> str:
        found = _retrieved(asked, example.prompt, retrieved) if retrieved and split == "test" else []
        return conversation(vocabulary, found, example.prompt)

    views = readings(cfg, teacher_prompt=with_passage, student_prompt=alone)
    return data_of(rows, views)


def _retrieved(asked: Asked, question: str, k: int) -> list[str]:
    pages = [facts.Page(name, "", (), text) for name, text in asked.passages.items()]
    return [page.text for page in facts.retrieve(question, pages, k)]


def conversation(vocabulary: Vocabulary, passages: Sequence[str], question: str) -> str:
    """The prompt of a question: the user's turn of a chat where the tokenizer has a template, else plain text.

    An empty question is no prompt: the passage is then plain text to be gone on with.
    """
    if not question:
        return ""
    said = "\n\n".join([*passages, f"Question: {question}\nAnswer in a few words."])
    if not vocabulary.tokenizer.chat_template:
        return f"{said}\nAnswer:"
    turns = [{"role": "user", "content": said}]
    text = str(vocabulary.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
    # The first token is put before every prompt; a template that writes it too would give it twice.
    return text.removeprefix(str(vocabulary.tokenizer.bos_token or ""))


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    return measure(run, split, judge)


def judge(run: Run, texts: Sequence[str], split: str) -> dict[str, Metric]:
    """Whether an answer holds one of the references as whole words."""
    asked = _asked(run)
    right = [
        any(facts.is_correct(row._replace(answer=answer), text) for answer in asked.references[row.id])
        for row, text in zip(asked.questions[: len(texts)], texts, strict=True)  # a split may list a part
    ]
    return {"accuracy": share(right)}
