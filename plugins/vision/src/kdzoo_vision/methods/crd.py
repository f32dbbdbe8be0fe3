"""Contrastive Representation Distillation (Tian, Krishnan, Isola, ICLR 2020, arXiv:1910.10699); card: crd.

Here: linear embeddings of both nets, trained (C1); memories of all samples' embeddings (C2); the NCE loss with the
student as anchor and with the teacher as anchor (C3, C4); noise from other classes (C5); soft labels beside it (C6).
Not here: several teachers, the AliasMethod for noise that is not uniform.

Shapes: B images of a batch, D embedding width, M images of all training streams, K noise images an anchor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.nce import noise_contrastive
from kdzoo.method import Batch, Term

if TYPE_CHECKING:
    from kdzoo.runs import Run

UNSEEN = -1  # the class of a sample that no batch has held yet
TABLE = 2**25  # scores computed at a time: 128 MiB in float32


class Embed(nn.Module):
    """C1: (B, F) -> (B, D), linear, then L2-normalised (crd/criterion.py:Embed)."""

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, dim)

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.linear(features.flatten(1)).float(), dim=1)


class ContrastMemory(nn.Module):
    """C2: the last embedding of every training sample, a moving average of momentum `momentum` (crd/memory.py).

    Buffers: student, teacher (M, D); z_student, z_teacher, the constants that make scores probabilities, -1 until the
    first batch sets them; classes (M,), `UNSEEN` or what a sample was taken for when it was last seen.
    """

    classes: Tensor

    def __init__(self, ids: Sequence[str], dim: int, temperature: float, momentum: float) -> None:
        super().__init__()
        self.rows = {name: row for row, name in enumerate(ids)}
        self.temperature, self.momentum = temperature, momentum
        spread = (dim / 3) ** -0.5  # crd/memory.py: uniform entries, so that rows have about unit length
        for side in ("student", "teacher"):
            self.register_buffer(side, torch.empty(len(ids), dim).uniform_(-spread, spread))
            self.register_buffer(f"z_{side}", torch.tensor(-1.0))
        self.register_buffer("classes", torch.full((len(ids),), UNSEEN))
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}  # of this step: side -> (rows, embeddings)

    def scores(self, anchors: Tensor, side: str, pairs: Tensor) -> Tensor:
        """exp(<anchor, memory of `side`> / temperature) / Z of the pairs.

        Args:
            anchors: (B, D), unit rows, with gradient.
            side: whose memory they are held against: "student" or "teacher".
            pairs: (B, 1 + K) rows of the memory, the true one first.

        Returns:
            (B, 1 + K), > 0.
        """
        memory: Tensor = getattr(self, side)
        # All scores of an anchor, then the wanted ones: gathering K rows of D numbers for each anchor moves K D
        # numbers where this moves M, and D is the larger factor as soon as K is a few per cent of M.
        rows = max(1, TABLE // len(memory))
        products = [
            (part @ memory.T).gather(1, where)
            for part, where in zip(anchors.split(rows), pairs.split(rows), strict=True)
        ]
        scores = (torch.cat(products) / self.temperature).exp()
        constant: Tensor = getattr(self, f"z_{side}")
        with torch.no_grad():  # crd/memory.py: a Monte Carlo estimate, made once
            constant.copy_(torch.where(constant < 0, scores.mean() * len(memory), constant))
        return scores / constant

    @torch.no_grad()
    def update(self) -> None:
        """Move the memory of the samples seen in this step towards their new embeddings, on the unit sphere."""
        for side, (rows, embeddings) in self.seen.items():
            memory: Tensor = getattr(self, side)
            memory[rows] = F.normalize(
                memory[rows] * self.momentum + embeddings.detach() * (1 - self.momentum), dim=1
            )
        self.seen.clear()


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """The two embeddings and the memory over all samples of the training streams."""
    cfg = run.cfg
    if role in ("student-embed", "teacher-embed"):
        model: Any = run.models[role.removesuffix("-embed")]
        return Embed(model.num_features, int(cfg.embed_dim))
    if role == "memory":
        ids = [name for stream in run.task.streams for name in run.data(stream.split).ids]
        return ContrastMemory(ids, int(cfg.embed_dim), float(cfg.nce_temperature), float(cfg.memory_momentum))
    return None


def draw_pairs(run: Run, memory: ContrastMemory, rows: Tensor) -> Tensor:
    """(B, 1 + K) rows of the memory: the sample itself, then K drawn uniformly from all of them."""
    noise = torch.randint(
        len(memory.rows),
        (len(rows), int(run.cfg.noise)),
        generator=run.rng("noise", run.device),
        device=run.device,
    )
    return torch.cat((rows.unsqueeze(1), noise), dim=1)


def counted(memory: ContrastMemory, pairs: Tensor, classes: Tensor) -> Tensor:
    """C5: (B, K), which noise counts: not the anchor itself, nor a sample taken for the anchor's class."""
    return (pairs[:, 1:] != pairs[:, :1]) & (memory.classes[pairs[:, 1:]] != classes.unsqueeze(1))


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """Both NCE losses and, where they are wanted, soft labels."""
    cfg = run.cfg
    terms: dict[str, Term] = {}
    student, teacher = run.out("student"), run.signal("teacher")
    if cfg.student_weight or cfg.teacher_weight:
        memory = run.models["memory"]
        assert isinstance(memory, ContrastMemory)
        rows = torch.tensor([memory.rows[name] for name in batch.ids], device=run.device)
        s_BD = run.models["student-embed"](student.features["pooled"])
        t_BD = run.models["teacher-embed"](teacher.features["pooled"].detach())
        pairs = draw_pairs(run, memory, rows)
        mask = None
        if cfg.other_classes:
            assert teacher.logits is not None
            classes = torch.where(batch.labels >= 0, batch.labels, teacher.logits.argmax(1))
            mask = counted(memory, pairs, classes)
            memory.classes[rows] = classes
        # Equation 18, C3: the student's embedding against the teacher's memory; C4 the other way round.
        for side, anchors, other, weight in (
            ("student", s_BD, "teacher", cfg.student_weight),
            ("teacher", t_BD, "student", cfg.teacher_weight),
        ):
            if not weight:
                continue
            scores = memory.scores(anchors, other, pairs)
            total = noise_contrastive(
                scores[:, 0], scores[:, 1:], data_size=len(memory.rows), mask=mask, reduction="sum"
            )
            terms[f"contrast-{side}"] = Term(total, cfg.crd_weight * weight, per="item")
        memory.seen = {"student": (rows, s_BD), "teacher": (rows, t_BD)}
    # C6, table 1: beside soft labels.
    if cfg.kd_weight:
        assert student.logits is not None
        assert teacher.logits is not None
        total = kl_divergence(
            student.logits, teacher.logits, temperature=cfg.temperature, axis=1, reduction="sum"
        )
        terms["kd"] = Term(total, cfg.kd_weight * cfg.temperature**2, per="item")
    return terms


@hookimpl
def after_step(run: Run, batch: Batch) -> None:
    """The memory moves when the step's gradients, which still need it as it was, are computed."""
    if "memory" in run.models:
        memory = run.models["memory"]
        assert isinstance(memory, ContrastMemory)
        memory.update()
