"""Knowledge Injection via Prompt Distillation (2024, https://arxiv.org/abs/2412.14964); card: prompt-distillation.

New documents are to get into the weights of a language model. The teacher is the model itself with the document in its
prompt; the student is a low-rank adapted copy that reads the question only. Per answer y to a question q about a
document c

    L = T^2 / |y|  sum over t of  KL( p_teacher(. | c, q, y_<t) || p_student(. | q, y_<t) ),   both at temperature T.

    ask      questions about each document: by the teacher, a model behind an endpoint, or the task's program  (C1)
    filter   those that make sense without the document, once each, none of the test's                         (C1)
    answer   the teacher answers each, drawn at a temperature above 1                                          (C2)
    fit      the student learns the teacher's distribution at every token of the answers                   (C3, C4)

The task's module says what there is to know and who may ask: `documents`, `asker`, `question_prompt`, `reserved` (see
`kdzoo_llm.tasks.page_reading`). Baselines (C5) are settings: hard targets, documents as plain text, no training.
Not here: a language model as judge of answers; dense retrieval.

Shapes: B rows, A answer tokens, V vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from torch import Tensor

from kdzoo import catalog
from kdzoo.artefacts import dump_json, write_atomic
from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.method import Batch, Role, Stage, Term, evaluate_stage, fit_stage
from kdzoo.speakers.corpus import Corpus, speak
from kdzoo.speakers.endpoint import EndpointSpeaker
from kdzoo.speakers.settings import Endpoint
from kdzoo.speakers.speech import Reply, Request, Speaker
from kdzoo.task import Data
from kdzoo_llm.adapters import build_model, fit
from kdzoo_llm.data.examples import Example
from kdzoo_llm.language import TEACHER, taught, token_cross_entropy
from kdzoo_llm.sequences import TEXT, Reading, Rows
from kdzoo_llm.served import serve_examples
from kdzoo_llm.teachers import local_speaker

if TYPE_CHECKING:
    from kdzoo.runs import Run
    from kdzoo.settings import Settings

__all__ = ["build_model", "data", "fit", "loss_terms", "plan"]

HERE = "kdzoo_llm.methods.prompt_distillation"
BASE = Role("teacher", "frozen", "task")
SPEAKS = (
    "teacher", "student", "vocabulary", "teacher_vocabulary", "prompt_length", "answer_length", "teacher_*_length",
    "dropout", "pretrained", "pad", "corpus", "subset", "asked", "starts_from", "eval.retrieve",
)  # fmt: skip
"""What builds the base, and reads the task's rows."""

POINTING = re.compile(
    r"\b(passage|passages|text|document|page|paragraph|article|excerpt|context|above|following|the author)\b"
)
"""Words of questions that mean nothing to somebody who does not see the document."""


def plan(cfg: Settings) -> list[Stage]:
    """Ask, filter, answer, fit; a baseline leaves out what it has no use for.

    Each seed draws questions and answers of its own; what an endpoint is paid for all seeds share.
    """
    _check(cfg)
    student = Role("student")
    if cfg.train_on == "nothing":
        as_it_is = Role("student", "train", "task")
        return [fit_stage(set={"steps": 0}, roles=(as_it_is,)), evaluate_stage()]
    if cfg.train_on == "documents":
        return [fit_stage(roles=(BASE, student)), evaluate_stage()]
    paid = cfg.asker == "endpoint"
    stages = [
        Stage(
            "ask",
            f"{HERE}:ask",
            reads=(*SPEAKS, "asker", "questions", "question_*", "endpoint.*"),
            seeded=not paid,
            roles=(BASE,) if cfg.asker == "teacher" else (),
        ),
        Stage(
            "filter",
            f"{HERE}:keep",
            needs=("ask",),
            reads=(*SPEAKS, "filter"),
            seeded=not paid,
            roles=(),
        ),
        Stage(
            "answer",
            f"{HERE}:answer",
            needs=("filter",),
            reads=(*SPEAKS, "answers", "answer_*"),
            roles=(BASE,),
        ),
    ]
    return [*stages, fit_stage(needs=("answer", "filter"), roles=(BASE, student)), evaluate_stage()]


def _check(cfg: Settings) -> None:
    """Refuse what could not be what it is called, before anything is generated."""
    if cfg.train_on != "answers" and cfg.targets == "soft":
        raise KdzooError(
            f"train_on = {cfg.train_on!r} with targets = 'soft': there are no questions whose answers a teacher could "
            "tell with the document before it. Set targets=hard."
        )
    if cfg.asker == "endpoint" and not cfg["endpoint.base_url"]:
        raise KdzooError(
            "asker = 'endpoint', but endpoint.base_url is empty: there is nobody to ask. Give --set "
            "endpoint.base_url=... and endpoint.model=..., or asker=task."
        )


def _task(run: Run) -> ModuleType:
    """The module that says what there is to know.

    Raises:
        KdzooError: the task has no documents.
    """
    module = catalog.load().module(run.spec.task)
    wanted = ("documents", "asker", "question_prompt", "reserved")
    if lacking := [name for name in wanted if not hasattr(module, name)]:
        raise KdzooError(
            f"task {run.spec.task!r} lacks {', '.join(lacking)}: there would be nothing to ask about. Choose a task of "
            "documents, such as page-reading."
        )
    return module


def _readings(run: Run) -> Mapping[str, Reading]:
    """How student and teacher read the task's rows."""
    items = catalog.load().module(run.spec.task).data(run, "train").items
    assert isinstance(items, Rows)
    return items.readings


# --- C1: questions --------------------------------------------------------------------------------------------------


def ask(run: Run) -> None:
    """C1: `questions` samples about every document."""
    cfg, task = run.cfg, _task(run)
    by = str(cfg.asker)
    speaker: Speaker
    if by == "task":
        speaker = task.asker(run)
    elif by == "endpoint":
        speaker = EndpointSpeaker(Endpoint.of(cfg))
    else:
        speaker = local_speaker(run)
    requests = [
        Request(
            id=name,
            prompt=text if by == "task" else task.question_prompt(text),
            n=int(cfg.questions),
            max_tokens=int(cfg.question_tokens),
            temperature=float(cfg.question_temperature),
            seed=run.seed,
        )
        for name, text in task.documents(run).items()
    ]
    speak(run, speaker, requests)


class Question(NamedTuple):
    """A question that is trained on; the id begins with the document's."""

    id: str
    text: str


def keep(run: Run) -> None:
    """C1: the questions that are trained on go to ``questions.json``; how many were left out, and why, to the facts."""
    asked = [(reply.id, text) for reply in Corpus(run.inputs["ask"]) for text in reply.texts]
    reserved = {plain(question) for question in _task(run).reserved(run)}
    kept, left_out = kept_questions(asked, reserved, _readings(run), strict=bool(run.cfg.filter))
    run.facts["questions"] = {"asked": len(asked), "kept": len(kept), **left_out}
    if not kept:
        raise KdzooError(
            f"of {len(asked):,} questions none can be trained on: "
            + ", ".join(f"{count:,} {why}" for why, count in left_out.items())
            + ". Look at what was asked (answers.jsonl of the stage ask), or ask more."
        )
    write_atomic(run.folder / "questions.json", dump_json([list(question) for question in kept]))


def kept_questions(
    asked: Sequence[tuple[str, str]],
    reserved: Collection[str],
    readings: Mapping[str, Reading],
    *,
    strict: bool,
) -> tuple[list[Question], dict[str, int]]:
    """The questions to train on, and how many were left out for which reason.

    Args:
        asked: (id of the document, question), in any number.
        reserved: those of val and test in the form of `plain`; never kept.
        readings: how long a prompt may be, for the student and with the document for the teacher.
        strict: leave out questions that point at the document, and all but the first of equal ones.
    """
    left_out = dict.fromkeys(("empty", "of the test", "too long", "pointing at the text", "asked before"), 0)
    kept: list[Question] = []
    seen: set[tuple[str, str]] = set()
    for number, (document, text) in enumerate(asked):
        text = " ".join(text.split())
        question, same = Question(f"{document}/q{number}", text), (document, plain(text))
        if not same[1]:
            left_out["empty"] += 1
        elif same[1] in reserved:
            left_out["of the test"] += 1
        elif any(not _fits(question, reading) for reading in readings.values()):
            left_out["too long"] += 1
        elif strict and POINTING.search(text.lower()):
            left_out["pointing at the text"] += 1
        elif strict and same in seen:
            left_out["asked before"] += 1
        else:
            seen.add(same)
            kept.append(question)
    return kept, left_out


def _fits(question: Question, reading: Reading) -> bool:
    example = Example(question.id, question.text, "")
    prompt = reading.prompt(example) if reading.prompt else question.text
    return len(reading.vocabulary.encode(prompt)) < reading.prompt_length  # and its first token


def plain(text: str) -> str:
    """A question without what does not make it another one: case, punctuation, blanks."""
    return " ".join(re.findall(r"\w+", text.lower()))


# --- C2: answers ----------------------------------------------------------------------------------------------------


def answer(run: Run) -> None:
    """C2: the base reads the document and answers, `answers` samples a question; at temperature 0 its best one."""
    cfg, reads = run.cfg, _readings(run)[TEACHER].prompt
    temperature = float(cfg.answer_temperature)
    assert reads is not None
    requests = [
        Request(
            id=question.id,
            prompt=reads(Example(question.id, question.text, "")),
            n=int(cfg.answers) if temperature else 1,
            max_tokens=int(cfg.answer_tokens),
            temperature=temperature,
            seed=run.seed,
        )
        for question in _questions(run)
    ]
    # What answers is what the student learns from: never a model behind an endpoint.
    speak(run, local_speaker(run), requests)


def _questions(run: Run) -> list[Question]:
    rows = json.loads((run.inputs["filter"] / "questions.json").read_bytes())
    return msgspec.convert(rows, list[Question])


def data(run: Run, split: str) -> Data | None:
    """The questions with the teacher's answers, where an earlier stage has written them; else the task's rows."""
    if split != "train" or "answer" not in run.inputs:
        return None
    return serve_examples(run, answered(_questions(run), Corpus(run.inputs["answer"]).replies))


def answered(questions: Sequence[Question], replies: Sequence[Reply]) -> list[Example]:
    """One row a sample; those that were cut off are left out, since an end token would be put where none was said."""
    texts = {question.id: question.text for question in questions}
    return [
        Example(f"{reply.id}/{number}", texts[reply.id], sample.text)
        for reply in replies
        for number, sample in enumerate(reply.samples)
        if sample.finish != "length"
    ]


# --- C3, C4: the student --------------------------------------------------------------------------------------------


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """C3: the divergence from the teacher at the answer's tokens; with hard targets the cross-entropy in its place.

    C4: the teacher's view has the document in front of the question, and models answer at the answer's tokens alone,
    so token t of one side lies on token t of the other.
    """
    cfg, student = run.cfg, run.out("student").logits
    assert student is not None
    if cfg.targets == "hard":
        mask = batch.labels >= 0
        values = per_answer(token_cross_entropy(student, batch.labels), mask)
        return {"sft": Term(values.sum(), per="item")}
    teacher = (taught(run) if cfg.teacher_reads else run.signal("teacher", TEXT)).logits
    assert teacher is not None
    values = distillation_loss(
        student, teacher, batch.labels >= 0, temperature=float(cfg.temperature), square=bool(cfg.square)
    )
    return {"distillation": Term(values.sum(), per="item")}


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, *, temperature: float, square: bool
) -> Tensor:
    """How far the student's answer is from what the teacher would say: mean over its tokens of KL(teacher || student).

    ``1 / |y|  sum over t of  KL( softmax(z_teacher,t / T) || softmax(z_student,t / T) )``, times T^2 with `square`.

    Args:
        student_logits, teacher_logits: (B, A, V) that predict the answer's tokens; the teacher is detached.
        mask: (B, A) bool, True where the answer has a token.
        temperature: T > 0 of both sides.
        square: whether the gradient's size is kept as T grows.

    Returns:
        (B,) nats (times T^2); 0 for an answer without a token.

    Source: paper, its objective; T^2 is in a re-implementation by others.
    """
    values = kl_divergence(
        student_logits, teacher_logits, temperature=temperature, axis=2, mask=mask, reduction="none"
    )
    return per_answer(values, mask) * (temperature**2 if square else 1.0)


def per_answer(values: Tensor, mask: Tensor) -> Tensor:
    """(B, A) values of tokens -> (B,) their mean over each answer; 0 for an answer without a token."""
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)
