"""Enabling Large Language Models to Learn from Rules (Yang et al., 2023, https://arxiv.org/abs/2311.08883; COLING 2025
as Distilling Rule-based Knowledge into Large Language Models); card: rule-distillation.

A model that reads a textual rule in its prompt teaches the same model without the rule, so that what the rule does to
outputs and hidden states ends up in the weights. Here: the teacher, as it is or tuned with the rule first (C1); the
student, a copy of the base with new adapters (C2, `kdzoo_llm.adapters`); KL or cross-entropy of outputs (C3); hidden
states (C4); positions aligned by the answers (C5); instruction tuning without and with the rule as baselines (C6).
Not here: 8-bit weights; the choice of the best epoch by validation loss.

Shapes: B rows, A answer tokens, V vocabulary, D width, n hidden states that are compared (embeddings and all layers
but the last).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdzoo import catalog
from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence, soft_cross_entropy
from kdzoo.losses.features import normalized_mse
from kdzoo.method import Batch, Metric, Role, Stage, Term, evaluate_stage, fit_stage
from kdzoo_llm.language import TEACHER, answers, build_role, taught
from kdzoo_llm.sequences import TEXT

if TYPE_CHECKING:
    from kdzoo.runs import Run
    from kdzoo.settings import Settings

TUNED = "tuned-teacher"  # a stage, and the role that it makes
OF_THE_STUDENT = (
    "output_weight", "hidden_weight", "temperature", "loss", "shift", "student_reads_rule", "own_teacher",
)  # fmt: skip
"""Settings that the tuned teacher does not depend on: without them in its key, arms share it."""


def output_loss(
    student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, *, temperature: float, loss: str = "kl"
) -> Tensor:
    """C3: ``T^2 sum over v of p_T(v) (log p_T(v) - log p_S(v))`` at each position that counts.

    Args:
        student_logits, teacher_logits: (B, A, V); the teacher is detached.
        mask: (B, A) bool.
        temperature: T > 0 of both softmaxes.
        loss: "kl", or "entropy", the cross-entropy with the teacher's distribution.

    Returns:
        (B, A), nats times T^2; 0 where nothing counts. Divide its sum by the number of positions for the paper's mean.

    Source: RUCBM/rule-distillation@67fae86 distill.py, which turns the NaN of a probability that underflows into 0;
    here such a token weighs 0 from the start.
    """
    value = {"kl": kl_divergence, "entropy": soft_cross_entropy}[loss]
    each = value(student_logits, teacher_logits, temperature=temperature, axis=2, mask=mask, reduction="none")
    return temperature**2 * each


def hidden_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """C4: ``1 / (n D) sum over layers of || h_T / ||h_T|| - h_S / ||h_S|| ||^2`` at each position that counts.

    Args:
        student, teacher: n states (B, A, D) each; the teacher's are detached.
        mask: (B, A) bool.

    Returns:
        (B, A), 0 to 4 / D; 0 where nothing counts. float32 or wider.

    Raises:
        ValueError: other numbers of layers, or none.

    Source: RUCBM/rule-distillation@67fae86 distill.py, before its weight beta.
    """
    if len(student) != len(teacher) or not student:
        raise ValueError(
            f"hidden_loss: {len(student)} states of the student and {len(teacher)} of the teacher, expected equally "
            "many and at least one: layer k would be held against another layer. Take the same layers of both."
        )
    width = student[0].shape[-1]
    flat = mask.flatten()
    if not bool(flat.any()):
        return torch.zeros(mask.shape, device=mask.device) + 0.0 * student[0].float().sum()
    # Only what counts is compared: padding may hold anything, and its gradient would be 0 times that.
    apart = torch.stack(
        [
            normalized_mse(s.flatten(0, 1)[flat], t.flatten(0, 1)[flat], axis=1, reduction="none")
            for s, t in zip(student, teacher, strict=True)
        ]
    ).mean(0)
    return (
        torch.zeros(flat.shape, dtype=apart.dtype, device=apart.device)
        .masked_scatter(flat, apart / width)
        .view_as(mask)
    )


def inner_states(features: Mapping[str, Tensor]) -> list[Tensor]:
    """The embeddings and the states behind every layer but the last, in order."""
    return [features[f"layer{i}"] for i in range(len(features) - 1)]


def positions(labels: Tensor, shift: str) -> Tensor:
    """Which positions count: those that predict a token of the answer, or, as in the official code, the answer's own.

    Args:
        labels: (B, A) ids of the answer, -1 behind it. With "official" there is one column more than answers need.
        shift: "correct", or "official": logits are not shifted against labels there, so that the distribution of the
            first token is left out and that behind the last one counts instead.
    """
    answer = labels >= 0
    return answer if shift == "correct" else answer.roll(1, 1)


def plan(cfg: Settings) -> list[Stage]:
    """Tune the teacher with the rule if the arm asks for it (C1), then train the student."""
    _check(cfg)
    # A base with weights of its own is built with them; others are the task's to give.
    base = Role("teacher", "frozen", "init:teacher" if cfg.get("pretrained", False) else "task")
    if not cfg.own_teacher:
        return [fit_stage(roles=(base, Role("student"))), evaluate_stage()]
    tuned = fit_stage(
        TUNED,
        reads=("*", "!eval.*", *(f"!{name}" for name in OF_THE_STUDENT if name not in tuning())),
        set=tuning(),
        roles=(base, Role("student")),
    )
    frozen = Role(TUNED, "frozen", f"stage:{TUNED}")
    return [
        tuned,
        fit_stage(needs=(TUNED,), roles=(base, frozen, Role("student"))),
        evaluate_stage(roles=(frozen,)),
    ]


def tuning() -> dict[str, Any]:
    """The settings of instruction tuning with the rule, whatever the student's are."""
    return {"task_weight": 1.0, "output_weight": 0.0, "hidden_weight": 0.0, "student_reads_rule": True}


def _check(cfg: Settings) -> None:
    """Refuse arms that would not be what they are called, before anything trains."""
    if cfg.student_reads_rule and (cfg.output_weight or cfg.hidden_weight):
        raise KdzooError(
            f"student_reads_rule with output_weight = {cfg.output_weight:g} and hidden_weight = {cfg.hidden_weight:g}, "
            "expected 0 and 0: student and teacher would be one model that reads one prompt, and differ by nothing. "
            "Set both to 0, or let the student not read the rule."
        )


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """The tuned teacher is a base; student and teacher are the task's."""
    return build_role(run, role, str(run.cfg["teacher"])) if role == TUNED else None


@hookimpl
def prepare_batch(run: Run, batch: Batch) -> None:
    """Who reads the rule in training, and one position more for the official shift.

    Answers begin in the same column of every view, whatever comes before them (C5): prompts are padded on the left.
    """
    cfg = run.cfg
    if TEACHER not in batch.views:
        raise KdzooError(
            f"rule-distillation on the task {run.task.slug!r}: there is no view that only the teacher reads, so "
            "teacher and student would be one model before one prompt. Choose a task whose teacher is told more "
            "(told-rule)."
        )
    if cfg.student_reads_rule:
        batch.views[TEXT] = batch.views[TEACHER]
    elif cfg.shift == "official":
        for name in (TEXT, TEACHER):
            batch.views[name] = longer(batch.views[name])
        batch.labels = nn.functional.pad(batch.labels, (0, 1), value=-1)


def longer(view: Mapping[str, Any]) -> dict[str, Any]:
    """A view with a column of padding behind its answers: models then say what they expect behind the last token."""
    answer, mask = view["answer"], view["answer_mask"]
    return {
        **view,
        "answer": torch.cat((answer, answer.new_zeros(len(answer), 1)), 1),
        "answer_mask": torch.cat((mask, mask.new_zeros(len(mask), 1)), 1),
    }


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """C3 and C4, sums over positions; an arm of C6 has the task's term alone."""
    cfg = run.cfg
    terms: dict[str, Term] = {}
    if not (cfg.output_weight or cfg.hidden_weight):
        return terms
    student, teacher = run.out("student"), taught(run, TUNED if TUNED in run.roles else "teacher")
    mask = positions(batch.labels, str(cfg.shift))
    if cfg.output_weight:
        assert student.logits is not None
        assert teacher.logits is not None
        each = output_loss(
            student.logits,
            teacher.logits,
            mask,
            temperature=float(cfg.temperature),
            loss=str(cfg.loss),
        )
        terms["output"] = Term(each.sum(), float(cfg.output_weight), per="token")
    if cfg.hidden_weight:
        apart = hidden_loss(inner_states(student.features), inner_states(teacher.features), mask)
        terms["hidden"] = Term(apart.sum(), float(cfg.hidden_weight), per="token")
    return terms


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """How good the tuned teacher is, reading the rule."""
    if run.stage != "evaluate" or TUNED not in run.models:
        return {}
    judge = catalog.load().module(run.task.slug).judge
    said: dict[str, Metric] = judge(run, answers(run, TUNED, split, view=TEACHER), split)
    return {"accuracy[model=own-teacher]": said["accuracy"]}
