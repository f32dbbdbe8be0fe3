"""Background Adaptation with Residual Modeling for Exemplar-Free Class-Incremental Semantic Segmentation.

Zhang and Gao, ECCV 2024, arXiv:2407.09838; card: barm. Each step of classes adds a head whose first channel is what the
step changes of the background's score; the net of the step before teaches the next one.

Here: the growing net and its summed background (C1, C2: `kdzoo_segmentation.multihead`), pseudo labels (C3), the main
loss (C4), background adaptation (C5), distillation of branches on background (C6) and of all heads (C7), the total
(C8); and as a rival unbiased distillation in the manner of MiB (Cermelli et al., CVPR 2020, arXiv:2002.00718),
rewritten for sigmoids. Not here: exemplars, the disjoint setting.

Shapes: B images, H x W pixels, h x w positions of the heads, D features, C classes, K those of the previous net, n_k
those of step k.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.hookspecs import hookimpl
from kdzoo.losses.masks import Reduction, reduce
from kdzoo.method import Batch, Output, Stage, Term
from kdzoo.settings import Settings
from kdzoo_segmentation.incremental import groups_now, label_bce, stages
from kdzoo_segmentation.measures import IGNORE
from kdzoo_segmentation.multihead import MultiHead
from kdzoo_segmentation.scores import at_scores

if TYPE_CHECKING:
    from kdzoo.runs import Run

OWN = (
    "objective", "background", "pseudo_labels", "threshold", "detach_old", "tri_weight", "ce_weight", "bfd_weight",
    "gkd_weight", "mib_weight",
)  # fmt: skip
"""Settings of the increments' losses: the first step knows none of them."""


def plan(cfg: Settings) -> list[Stage]:
    """The task's steps; from the second on the method's losses take the place of the task's."""
    own = {} if cfg.objective == "none" else {"task_weight": 0.0}
    return stages(cfg, OWN, own)


@hookimpl(wrapper=True)
def build_model(run: Run, role: str) -> Generator[None, nn.Module | None, nn.Module | None]:
    """The task's net with the background rule of the arm."""
    model = yield
    if isinstance(model, MultiHead) and len(model.groups) > 1:
        model.rule = str(run.cfg.background)
        if run.stage == "evaluate":
            model.clamp = bool(run.cfg["eval.clamp"])
    return model


# --- losses -------------------------------------------------------------------------------------------------------


def pseudo_labels(labels: Tensor, previous_logits: Tensor, threshold: float) -> Tensor:
    """C3: background becomes the old class that the previous net sees there, if it is sure enough.

    Args:
        labels: (B, H, W) int64: background, classes of this step, 255.
        previous_logits: (B, K, H, W), of sigmoids; detached.
        threshold: least sigmoid of the best of the K, in [0, 1].

    Returns:
        (B, H, W) int64.

    Source: ANDYZAQ/BARM@0a59203 trainer/trainer.py:train_episode.
    """
    best, said = previous_logits.detach().float().max(1)
    sure = (labels == 0) & (said > 0) & (best.sigmoid() >= threshold)
    return torch.where(sure, said, labels)


def without_old_gradient(logits: Tensor, new: int) -> Tensor:
    """C4: the logits of old classes without gradient; background and the last `new` classes keep theirs.

    Args:
        logits: (B, C, H, W), 0 < new < C.
    """
    count = logits.shape[1]
    return torch.cat([logits[:, :1], logits[:, 1 : count - new].detach(), logits[:, count - new :]], dim=1)


def residual_on_new(residual: Tensor, labels: Tensor, *, reduction: Reduction) -> Tensor:
    """C5, first part: ``BCE(b_t, 0) = softplus(b_t)`` where this step has a label: there is no background.

    Args:
        residual: (B, h, w), the last head's first channel, a logit.
        labels: (B, h, w), those of the step (no pseudo labels); 0 and 255 do not count.
        reduction: "none" -> (B, h, w); "sum"; "mean" over the positions that count.

    Returns:
        Nats.
    """
    keep = (labels != 0) & (labels != IGNORE)
    return reduce(F.softplus(residual.float()), mask=keep, reduction=reduction)


def residual_on_background(residual: Tensor, labels: Tensor, *, reduction: Reduction) -> Tensor:
    """C5, second part: ``max(0, (s - 1)^2 - s^2) = max(0, 1 - 2 s)``, s = sigmoid(b_t), where the label is background.

    So s is pushed to 1/2 at least: a residual that is not negative changes nothing.

    Args:
        residual, labels, reduction: as in `residual_on_new`; labels other than 0 do not count.

    Returns:
        In [0, 1].
    """
    values = (1 - 2 * residual.float().sigmoid()).clamp(min=0)
    return reduce(values, mask=labels == 0, reduction=reduction)


def branch_distillation(
    branches: Sequence[Tensor], previous: Sequence[Tensor], background: Tensor, *, reduction: Reduction
) -> Tensor:
    """C6: squared distance of the features of every old branch on background, ``sum over k of mean of ((f - f') N)^2``.

    Args:
        branches: (B, D, h, w) each; those beyond the previous net's are left out.
        previous: (B, D, h, w) each; detached.
        background: (B, h, w) bool, N.
        reduction: "none" -> (B,): means over all D h w elements, masked ones included; "sum"; "mean".

    Raises:
        ValueError: fewer branches than the previous net has.
    """
    _refuse_fewer(branches, previous, "branches")
    mask = background.unsqueeze(1)
    values = [
        ((mine.float() - theirs.detach().float()) * mask).square().mean((1, 2, 3))
        for mine, theirs in zip(branches, previous, strict=False)
    ]
    return reduce(torch.stack(values).sum(0), reduction=reduction)


def group_distillation(
    heads: Sequence[Tensor], previous: Sequence[Tensor], *, reduction: Reduction
) -> Tensor:
    """C7: ``sum over k, sum over channels of BCE(z_k, sigmoid(z'_k))``, the channels of the background included.

    Args:
        heads: (B, 1 + n_k, h, w) each; those beyond the previous net's are left out.
        previous: (B, 1 + n_k, h, w) each; detached.
        reduction: "none" -> (B,): sums over heads and channels, means over positions; "sum"; "mean".

    Returns:
        Nats; a cross-entropy, so not 0 where both agree.

    Raises:
        ValueError: fewer heads than the previous net has.
    """
    _refuse_fewer(heads, previous, "heads")
    values = [
        F.binary_cross_entropy_with_logits(mine.float(), theirs.detach().float().sigmoid(), reduction="none")
        .sum(1)
        .mean((1, 2))
        for mine, theirs in zip(heads, previous, strict=False)
    ]
    return reduce(torch.stack(values).sum(0), reduction=reduction)


def _refuse_fewer(mine: Sequence[Tensor], previous: Sequence[Tensor], what: str) -> None:
    if len(mine) < len(previous):
        raise ValueError(
            f"{what}: got {len(mine)}, the previous net has {len(previous)}: one would be forgotten"
        )


def log_any(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of (B, n, H, W) independent sigmoids: log-probabilities that any is on, and that none is, (B, H, W) each.

    With ``s = sum of softplus(z)``, none is exp(-s) and any ``1 - exp(-s) = s (1 - exp(-s)) / s``, whose two factors
    have logarithms, and gradients, where s itself is too small for a float.
    """
    z = logits.float()
    apart = torch.where(z < -15, z, F.softplus(z.clamp(min=-15)).log())  # log softplus(z)
    s = F.softplus(z).sum(1)
    large = s.clamp(min=1e-3)
    factor = torch.where(s < 1e-3, -s / 2, torch.log(-torch.expm1(-large)) - large.log())
    return apart.logsumexp(1) + factor, -s


def unbiased_label_bce(logits: Tensor, labels: Tensor, old: int, *, reduction: Reduction) -> Tensor:
    """MiB's label loss for sigmoids: a background label means that background or an old class is there.

        y = 0:  -log P(any of 0 ... old)     + sum over new classes of softplus(z_c)
        y > 0:  -log P(none of 0 ... old)    + sum over new classes of softplus(z_c) - z_y

    Args:
        logits: (B, C, H, W), of sigmoids.
        labels: (B, H, W): 0, new classes, 255.
        old: number of old classes beside the background.
        reduction: "none" -> (B, H, W), 0 where the label is 255; "sum"; "mean" over labelled pixels.

    Returns:
        Nats.

    Source: arXiv:2002.00718, equations 4 and 5, whose softmax sums probabilities of background and old classes; here
    sigmoids are combined as independent events.
    """
    keep, new = labels != IGNORE, (labels > old) & (labels != IGNORE)
    any_, none = log_any(logits[:, : old + 1])
    fresh = logits[:, old + 1 :].float()
    taken = fresh.gather(1, (labels - old - 1).masked_fill(~new, 0).unsqueeze(1)).squeeze(1)
    values = torch.where(new, -none - taken, -any_) + F.softplus(fresh).sum(1)
    return reduce(values, mask=keep, reduction=reduction)


def unbiased_distillation(logits: Tensor, previous: Tensor, *, reduction: Reduction) -> Tensor:
    """MiB's distillation for sigmoids: what the old net calls background may be background or a new class.

    BCE of each old class with the old net's probability, and of "background or any new class" with its background.

    Args:
        logits: (B, C, h, w).
        previous: (B, K, h, w), K <= C; detached.
        reduction: "none" -> (B,): sum over K channels, mean over positions; "sum"; "mean".

    Returns:
        Nats.

    Source: arXiv:2002.00718, equations 6 to 8, rewritten as `unbiased_label_bce`.
    """
    count = previous.shape[1]
    p = previous.detach().float().sigmoid()
    any_, none = log_any(torch.cat([logits[:, :1], logits[:, count:]], dim=1))
    background = -(p[:, 0] * any_ + (1 - p[:, 0]) * none)
    old = F.binary_cross_entropy_with_logits(logits[:, 1:count].float(), p[:, 1:], reduction="none").sum(1)
    return reduce((background + old).mean((1, 2)), reduction=reduction)


# --- training -----------------------------------------------------------------------------------------------------


@hookimpl
def prepare_batch(run: Run, batch: Batch) -> None:
    """Count the positions that C5 takes its means over."""
    if "previous" not in run.models:
        return
    grid = cast(MultiHead, run.models["student"]).grid(batch.labels)
    labels = at_scores(batch.labels, batch.labels.new_empty((1, 1, *grid)))
    batch.counts["background"] = int((labels == 0).sum())
    batch.counts["new"] = int(((labels != 0) & (labels != IGNORE)).sum())


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term] | None:
    """C8 in every step but the first, where the task's own loss is all."""
    if "previous" not in run.models or run.cfg.objective == "none":
        return None
    student, previous = run.out("student"), run.signal("previous")
    if run.cfg.objective == "mib":
        return _unbiased(run, batch, student, previous)
    return _residual(run, batch, student, previous)


def _residual(run: Run, batch: Batch, student: Output, previous: Output) -> dict[str, Term]:
    cfg, new = run.cfg, groups_now(run)[-1]
    assert student.logits is not None
    assert previous.logits is not None
    labels, logits = batch.labels, student.logits
    if cfg.pseudo_labels:
        labels = pseudo_labels(labels, previous.logits, float(cfg.threshold))
    if cfg.detach_old:
        logits = without_old_gradient(logits, new)
    terms = {"labels": Term(label_bce(logits, labels, reduction="sum"), per="pixel")}
    heads, branches = student.extra["heads"], student.extra["branches"]
    residual, given = heads[-1][:, 0], at_scores(batch.labels, heads[-1])
    if cfg.ce_weight:
        total = residual_on_new(residual, given, reduction="sum")
        terms["residual-new"] = Term(total, float(cfg.ce_weight), per="new")
    if cfg.tri_weight:
        total = residual_on_background(residual, given, reduction="sum")
        terms["residual-background"] = Term(total, float(cfg.tri_weight), per="background")
    if cfg.bfd_weight:
        total = branch_distillation(branches, previous.extra["branches"], given == 0, reduction="sum")
        terms["branches"] = Term(total, float(cfg.bfd_weight), per="item")
    if cfg.gkd_weight:
        total = group_distillation(heads, previous.extra["heads"], reduction="sum")
        terms["heads"] = Term(total, float(cfg.gkd_weight), per="item")
    return terms


def _unbiased(run: Run, batch: Batch, student: Output, previous: Output) -> dict[str, Term]:
    assert student.logits is not None
    old = sum(groups_now(run)[:-1])
    labels = unbiased_label_bce(student.logits, batch.labels, old, reduction="sum")
    kept = unbiased_distillation(student.features["score"], previous.features["score"], reduction="sum")
    return {
        "labels": Term(labels, per="pixel"),
        "unbiased": Term(kept, float(run.cfg.mib_weight), per="item"),
    }
