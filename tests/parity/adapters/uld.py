"""Universal Logit Distillation, against Nicolas-BZRD/llm-recipes."""

from __future__ import annotations

import torch
from parity.harness import Case, parity
from torch import Tensor

from kdzoo.method import Output
from kdzoo_llm.methods.uld import uld


def answers(logits: Tensor, labels: Tensor) -> tuple[Output, Tensor, Tensor]:
    """The logits that predict each row's answer, as our models give them; where they begin, and how many."""
    given = labels != -100
    first = given.int().argmax(1) - 1
    size = given.sum(1)
    longest = int(size.max())
    rows = [
        torch.nn.functional.pad(row[start : start + count], (0, 0, 0, longest - count))
        for row, start, count in zip(logits, first.tolist(), size.tolist(), strict=True)
    ]
    mask = torch.arange(longest) < size.unsqueeze(1)
    return Output(logits=torch.stack(rows), mask=mask), first, size


@parity("uld", "uld-loss")
def loss(case: Case) -> dict[str, Tensor]:
    student, s_first, s_size = answers(case.leaf("student_logits"), case.inputs["student_labels"])
    teacher, t_first, t_size = answers(case.inputs["teacher_logits"], case.inputs["teacher_labels"])
    args = case.args
    distance = uld(
        student,
        teacher,
        temperature=(args["student_temperature"], args["teacher_temperature"]),
        skip_student_end=args["skip_student_eos"],
        skip_teacher_end=args["skip_teacher_eos"],
    ).mean()
    weighted = args["distillation_weight"] * distance
    total = args["crossentropy_weight"] * case.inputs["student_ce"] + weighted
    return case.with_gradients(
        loss=total,
        loss_distill=weighted,
        student_start=s_first,
        student_size=s_size,
        teacher_start=t_first,
        teacher_size=t_size,
    )
