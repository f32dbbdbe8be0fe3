"""Cumulative Spatial Knowledge Distillation for Vision Transformers (Zhao et al., ICCV 2023, arXiv:2307.08500).

Card: cskd. A convolutional teacher tells every patch of a vision transformer what it sees at that place, and more and
more what it sees in the whole image; a distillation token learns the teacher's answer as in DeiT.

Here: dense teacher logits (C1), dense student logits on the teacher's grid (C2), their fusion with the global answer
(C3), hard and soft forms of the spatial (C4) and of the token's loss (C5), the total (C6), the averaged answer in
inference (C7); as an ablation of what is transferred, regression of the teacher's last map in place of its logits.
Not here: fine-tuning on other data sets.

Shapes: B images, C classes, H x W positions of the teacher's last map, h x w patches of the student (h >= H, w >= W).
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.dense import dense_logits, hard_label_loss, pool_logits, soft_dense_loss
from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.features import hint_regression
from kdzoo.losses.masks import Reduction, reduce
from kdzoo.method import Batch, Metric, Role, Stage, Term, fit_stage
from kdzoo_vision import classification
from kdzoo_vision.deit import HEADS, DistilledViT

if TYPE_CHECKING:
    from kdzoo.method import Output
    from kdzoo.runs import Run
    from kdzoo.settings import Settings

Terms = list[dict[str, Term]]


def local_share(fusion: str, phase: int, phases: int) -> float:
    """a(e): how much of a patch's target is the teacher's opinion at its place; the rest is that of the whole image.

    With x = e / E: "linear" 1 - x, "square" (1 - x)^2, "cosine" cos(pi x / 2); "dense" 1 and "global" 0 throughout.

    Args:
        fusion: one of these names.
        phase: e, 0 to phases - 1: the epoch's index, constant within an epoch; so a never reaches 0.
        phases: E >= 1.

    Raises:
        ValueError: an unknown name, or a phase out of range.

    Source: Zzzzz1/CSKD@fa0d8b8 cskd/cskd.py:CSKDLoss.get_decay_ratio ("linear", "x2", "cos").
    """
    if not 0 <= phase < phases:
        raise ValueError(f"phase: got {phase} of {phases}, expected 0 to {phases - 1}; a would leave [0, 1]")
    x = phase / phases
    shares = {
        "linear": 1.0 - x,
        "square": (1.0 - x) ** 2,
        "cosine": math.cos(math.pi * 0.5 * x),
        "dense": 1.0,
        "global": 0.0,
    }
    if fusion not in shares:
        raise ValueError(f"fusion: got {fusion!r}, expected one of {', '.join(shares)}")
    return shares[fusion]


def fused_logits(teacher_dense: Tensor, teacher_logits: Tensor, share: float) -> Tensor:
    """``a Z_dense + (1 - a) Z_global``, the global logits at every position: (B, C, H, W).

    Args:
        teacher_dense: (B, C, H, W).
        teacher_logits: (B, C).
        share: a in [0, 1].
    """
    return share * teacher_dense + (1.0 - share) * teacher_logits[:, :, None, None]


def spatial_loss(
    student_dense: Tensor,
    teacher_dense: Tensor,
    teacher_logits: Tensor,
    *,
    share: float,
    form: str,
    temperature: float,
    reduction: Reduction,
) -> Tensor:
    """C4: the student's patches, pooled to the teacher's grid, against the fused target.

    "hard": cross-entropy with the target's most probable class, mean over positions. "soft": T^2 times the sum over
    positions of KL(target || student) at temperature T; H x W times the scale of a mean.

    Args:
        student_dense: (B, C, h, w) logits.
        teacher_dense: (B, C, H, W), H <= h and W <= w; detached.
        teacher_logits: (B, C), detached.
        share: a, see `local_share`.
        form: "hard" or "soft".
        temperature: T > 0, of the soft form.
        reduction: "none" = one value per item, "mean" or "sum" over items.

    Returns:
        (B,) or scalar; nats.

    Raises:
        ValueError: a teacher's grid that is finer than the student's, other shapes that do not fit, unknown form.

    Source: Zzzzz1/CSKD@fa0d8b8 cskd/cskd.py:CSKDLoss.get_loss_cskd.
    """
    student = pool_logits(student_dense, (teacher_dense.shape[2], teacher_dense.shape[3]))
    target = fused_logits(teacher_dense.detach(), teacher_logits.detach(), share)
    if form == "hard":
        return hard_label_loss(student, target, reduction=reduction)
    if form == "soft":
        return soft_dense_loss(student, target, temperature=temperature, reduction=reduction)
    raise ValueError(f"form: got {form!r}, expected 'hard' or 'soft'")


def token_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, form: str, temperature: float, reduction: Reduction
) -> Tensor:
    """C5: the distillation token against the teacher's answer for the whole image.

    "hard": cross-entropy with the teacher's most probable class. "soft": T^2 KL(teacher || student) / C; unlike the
    soft spatial loss it is divided by the number of classes.

    Args:
        student_logits: (B, C), of the distillation token.
        teacher_logits: (B, C), detached.
        form: "hard" or "soft".
        temperature: T > 0, of the soft form.
        reduction: "none" = one value per item, "mean" or "sum" over items.

    Returns:
        (B,) or scalar; nats, in the soft form nats per class.

    Raises:
        ValueError: unequal shapes, unknown form.

    Source: arXiv 2012.12877, equations 2 and 3; Zzzzz1/CSKD@fa0d8b8 cskd/cskd.py:CSKDLoss.get_loss_deit.
    """
    if form == "hard":
        return hard_label_loss(student_logits, teacher_logits, reduction=reduction)
    if form != "soft":
        raise ValueError(f"form: got {form!r}, expected 'hard' or 'soft'")
    values = kl_divergence(student_logits, teacher_logits, temperature=temperature, axis=1, reduction="none")
    return reduce(values * (temperature**2 / student_logits.shape[1]), reduction=reduction)


def linear_classifier(model: nn.Module) -> nn.Linear:
    """The linear map that a convolutional net applies to its pooled features.

    Raises:
        KdzooError: a model whose last layer is something else.
    """
    head, net = getattr(model, "classifier", None), getattr(model, "model", None)
    if head is None and net is not None and hasattr(net, "get_classifier"):
        head = net.get_classifier()
    if not isinstance(head, nn.Linear):
        raise KdzooError(
            f"teacher: its classifier is {type(head).__name__}, one linear layer after global average pooling "
            "expected: only then does it have an opinion at every position. Set a convolutional teacher (cnn-deep, "
            "timm:regnety_160.deit_in1k)."
        )
    return head


def last_map(output: Output) -> Tensor:
    """(B, F, H, W): the last feature map a model names."""
    return [value for value in output.features.values() if value.dim() == 4][-1]


def plan(cfg: Settings) -> list[Stage]:
    """One fit; regression of features needs one more trained role."""
    roles = None
    if cfg.spatial == "features":
        roles = (Role("student"), Role("teacher", "frozen", "task"), Role("regressor"))
    return [fit_stage(roles=roles)]


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """The task's student, answering with the heads that this arm trains; the regressor of the features arm."""
    if role == "regressor":
        student, teacher = run.models["student"], run.models["teacher"]
        assert isinstance(student, DistilledViT)
        return nn.Conv2d(student.num_features, linear_classifier(teacher).in_features, 1)
    if role != "student":
        return None
    model = classification.build_model(run, role)
    if not isinstance(model, DistilledViT):
        raise KdzooError(
            f"student = {run.cfg.student!r} has no distillation token; a distilled vision transformer expected: there "
            "are no patches for the teacher to talk to. Set student to deit-xxs, deit-xs, deit-ti, deit-s or deit-b."
        )
    model.dense_head = str(run.cfg.dense_head)
    chosen = run.cfg["eval.heads"] if run.stage == "evaluate" else "trained"
    model.inference = ("cls",) if chosen == "cls" else trained_heads(run.cfg)
    return model


def trained_heads(cfg: Settings) -> tuple[str, ...]:
    """C7 takes the mean over all heads; one that an arm does not train would add noise, so it is left out."""
    trained = {
        "cls": cfg.alpha < 1,
        "dist": cfg.alpha > 0,
        "dense": cfg.gamma > 0 and cfg.spatial == "response",
    }
    return tuple(head for head in HEADS if trained[head])


@hookimpl(wrapper=True)
def fit(run: Run) -> Generator[None, bool | None, bool | None]:
    """Look at one random image first: what does not fit fails here, not in the middle of a step."""
    refuse_misfit(run)
    return (yield)


def refuse_misfit(run: Run) -> None:
    """Refuse a teacher whose dense logits do not average to its logits, and one with a finer grid than the patches."""
    side, channels = int(run.cfg.get("image_size", run.task.sizes["side"])), run.task.sizes["channels"]
    image = torch.randn(1, channels, side, side, generator=run.rng("probe")).to(run.device)
    said = {}
    for role in ("student", "teacher"):
        module = run.models[role]
        mode = module.training
        with torch.no_grad():
            said[role] = module.eval()(image)
        module.train(mode)
    teacher, patches = said["teacher"], last_map(said["student"]).shape[2:]
    head = linear_classifier(run.models["teacher"])
    with torch.no_grad():
        dense = dense_logits(last_map(teacher), head.weight, head.bias)
        apart = float((dense.mean((2, 3)) - teacher.logits).abs().max())
        scale = float(teacher.logits.abs().max())
    if not apart <= 1e-2 * scale + 1e-3:  # a GPU's convolutions may round to ten bits
        raise KdzooError(
            f"teacher = {run.cfg.teacher!r}: the mean of its logits over positions is not its answer (largest "
            f"difference {apart:.3g} of {scale:.3g}): something stands between its last map and its classifier, and "
            "the patches would learn something else than the teacher says. Set a teacher that ends in global average "
            "pooling and one linear layer."
        )
    if patches[0] < dense.shape[2] or patches[1] < dense.shape[3]:
        raise KdzooError(
            f"student = {run.cfg.student!r} has {patches[0]} x {patches[1]} patches, teacher = {run.cfg.teacher!r} a "
            f"last map of {dense.shape[2]} x {dense.shape[3]}; at least as many patches expected: one patch would get "
            "several targets. Set a student with smaller patches, or a teacher with a coarser map."
        )


@hookimpl(wrapper=True)
def loss_terms(run: Run, batch: Batch) -> Generator[None, Terms, Terms]:
    """C6: (1 - alpha) task + alpha token + gamma spatial; a wrapper, since alpha takes from the task's own term."""
    others = yield
    cfg, alpha = run.cfg, float(run.cfg.alpha)
    student, teacher = run.out("student"), run.signal("teacher")
    assert teacher.logits is not None
    own: dict[str, Term] = {}
    if alpha:
        total = token_loss(
            student.extra["dist"],
            teacher.logits,
            form=cfg.token_form,
            temperature=cfg.temperature,
            reduction="sum",
        )
        own["token"] = Term(total, alpha, per="item")
    if cfg.gamma:
        own["spatial"] = Term(_spatial(run, student, teacher), float(cfg.gamma), per="item")
    rest = [
        {
            name: term._replace(weight=term.weight * (1 - alpha)) if name == "task" else term
            for name, term in part.items()
        }
        for part in others
    ]
    return [*rest, own]


def _spatial(run: Run, student: Output, teacher: Output) -> Tensor:
    """The spatial term of the batch, summed over images."""
    cfg = run.cfg
    if cfg.spatial == "features":
        hint = last_map(teacher)
        regressed = pool_logits(run.models["regressor"](last_map(student)), (hint.shape[2], hint.shape[3]))
        return hint_regression(regressed, hint, reduction="sum")
    assert teacher.logits is not None
    head = linear_classifier(run.models["teacher"])
    with torch.no_grad():
        dense = dense_logits(last_map(teacher), head.weight, head.bias)
    phases = int(cfg.phases)
    return spatial_loss(
        student.extra["dense"],
        dense,
        teacher.logits,
        share=local_share(cfg.fusion, run.step * phases // run.steps, phases),
        form=cfg.spatial_form,
        temperature=cfg.temperature,
        reduction="sum",
    )


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """Accuracy on validation data at half time and at the end of training, read off the fit's curve."""
    if run.stage != "evaluate":
        return {}
    curve = json.loads((run.inputs["fit"] / "artefact.json").read_text())["curves"].get("val/accuracy", [])
    size, steps = len(run.data("val")) if curve else 0, int(run.cfg.steps)
    found = {"val/accuracy[time=end]": Metric(curve[-1][1], size)} if curve else {}
    # The first validation in the second half; the last one alone would make the later gain zero by construction.
    later = [value for step, value in curve[:-1] if 2 * step >= steps]
    if later:
        found["val/accuracy[time=half]"] = Metric(later[0], size)
    return found
