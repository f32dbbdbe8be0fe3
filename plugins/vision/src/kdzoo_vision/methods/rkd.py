"""Relational Knowledge Distillation (Park, Kim, Lu, Cho, CVPR 2019, arXiv:1904.05068); card: rkd.

Here: distance-wise and angle-wise losses (C1, C2), both together and with the task's loss (C3), self-distillation
over generations (C5), and the harness's peers HardDarkRank and attention transfer. The student without L2
normalisation (C4) is a setting of the task. FitNet is a method of its own. Not here: Inception backbones.

Shapes: B images of a batch, Ds and Dt embedding widths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.features import attention_transfer
from kdzoo.losses.relations import hard_darkrank, rkd_angle, rkd_distance
from kdzoo.method import Batch, Output, Role, Stage, Term, evaluate_stage, fit_stage
from kdzoo.settings import Settings

if TYPE_CHECKING:
    from kdzoo.runs import Run


def plan(cfg: Settings) -> list[Stage]:
    """One fit; or, for self-distillation (C5), a chain in which the student of one generation teaches the next."""
    if not cfg.generations:
        return [fit_stage(), evaluate_stage()]
    stages: list[Stage] = []
    for generation in range(1, int(cfg.generations) + 1):
        source = "task" if generation == 1 else f"stage:generation-{generation - 1}"
        stages.append(
            fit_stage(
                f"generation-{generation}",
                needs=() if generation == 1 else (f"generation-{generation - 1}",),
                reads=("*", "!eval.*", "!generations"),
                roles=(Role("student"), Role("teacher", "frozen", source)),
            )
        )
    return [*stages, evaluate_stage(stages[-1].name)]


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """The relation losses between the student's and the teacher's embeddings of the batch."""
    cfg = run.cfg
    terms: dict[str, Term] = {}
    if not any(
        (cfg.distance_weight, cfg.angle_weight, cfg.dark_weight, cfg.attention_weight, cfg.hkd_weight)
    ):
        return terms
    student, teacher = run.out("student"), run.signal("teacher")
    s_BD, t_BD = student.embedding, teacher.embedding
    assert s_BD is not None
    assert t_BD is not None
    # C1, equations 4 to 6: distances relative to the batch's mean distance.
    if cfg.distance_weight:
        terms["distance"] = Term(rkd_distance(s_BD, t_BD, reduction="mean"), cfg.distance_weight)
    # C2, equations 7 to 9: cosines of the angles of all triplets.
    if cfg.angle_weight:
        terms["angle"] = Term(rkd_angle(s_BD, t_BD, reduction="mean"), cfg.angle_weight)
    if cfg.dark_weight:
        terms["dark"] = Term(hard_darkrank(s_BD, t_BD, reduction="mean"), cfg.dark_weight)
    if cfg.attention_weight:
        for name, s_BCHW, t_BCHW in shared_stages(student, teacher):
            loss = attention_transfer(s_BCHW, t_BCHW, reduction="sum")
            terms[f"attention-{name}"] = Term(loss, cfg.attention_weight, per="item")
    # Table 5 of the paper: Hinton's loss beside the relational ones, in classification.
    if cfg.hkd_weight:
        assert student.logits is not None
        assert teacher.logits is not None
        total = kl_divergence(
            student.logits, teacher.logits, temperature=cfg.temperature, axis=1, reduction="sum"
        )
        terms["hkd"] = Term(total, cfg.hkd_weight * cfg.temperature**2, per="item")
    return terms


def shared_stages(student: Output, teacher: Output) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, student's map, teacher's map) of every stage with equal height and width on both sides, from the second.

    Source: the official harness compares blocks 2 to 4.
    """
    for name, s_BCHW in student.features.items():
        t_BCHW = teacher.features.get(name)
        if not name.startswith("stage") or name == "stage1" or t_BCHW is None:
            continue
        if s_BCHW.shape[2:] == t_BCHW.shape[2:]:
            yield name, s_BCHW, t_BCHW
