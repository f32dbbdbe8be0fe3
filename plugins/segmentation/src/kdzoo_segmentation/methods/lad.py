"""Make a Strong Teacher with Label Assistance (Shou et al., ECCV 2024, arXiv:2407.13254); card: lad.

The teacher is as light as the student, but sees the labels, too: coded so that the names of the classes are hidden and
only the partition of the image is told. It is trained on two noisings of the same labels, whose answers must agree,
and then teaches where in the image each class is.

Here: noised labels (C1) as one more channel of the student's architecture (C2), both in
`kdzoo_segmentation.label_input`; training on two paths (C3), fixed or random codes while it teaches (C4), the student's
loss and its official alternatives (C5), a student with an empty label channel (C6). Not here: a student that starts
from a trained one.

Shapes: B images, I input channels, C classes, H x W pixels, h x w positions of the head's scores.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.correlation import dist
from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.maps import channel_wise_divergence
from kdzoo.losses.masks import Reduction, reduce
from kdzoo.method import Batch, Metric, Role, Stage, Term, evaluate_stage, fit_stage
from kdzoo_segmentation.label_input import code_table, label_channel, random_codes, with_label_input
from kdzoo_segmentation.measures import IGNORE, Areas
from kdzoo_segmentation.models import resized
from kdzoo_segmentation.scores import at_scores, on_grid
from kdzoo_segmentation.segmentation import Mean, predictions

if TYPE_CHECKING:
    from kdzoo.runs import Run
    from kdzoo.settings import Settings

Terms = list[dict[str, Term]]

LABEL, PLAIN = "label-teacher", "plain-teacher"  # each a stage, and the role that it makes
TEACHERS = {"labels": LABEL, "image": PLAIN}
OF_THE_TEACHER = ("paths", "consistency_weight", "consistency_temperature", "train_codes", "train_noise")
OF_THE_STUDENT = (
    "teacher_input", "codes", "teach_noise", "loss", "lad_weight", "temperature", "auxiliary_weight",
    "zero_channel", "own_teachers",
)  # fmt: skip
"""Settings that the label teacher does not depend on: without them in its key, arms share it."""


def cwd_loss(student: Tensor, teacher: Tensor, *, temperature: float, reduction: Reduction) -> Tensor:
    """C5: where in the image each class is, by its scores: ``T^2 / C sum over c of KL(phi(t_c) || phi(s_c))``.

    phi is a softmax over positions at temperature T.

    Args:
        student, teacher: (B, C, h, w) scores; the teacher is detached.
        temperature: T > 0; 4 in the official code.
        reduction: "none" = one value per image, "mean" or "sum" over images.

    Returns:
        (B,) or scalar; nats times T^2.

    Source: skyshoumeng/Label_Assisted_Distillation@cd08406 train_baseline.py:CriterionCWD, the mean over images.
    """
    values = channel_wise_divergence(student, teacher, temperature=temperature, reduction="none")
    return reduce(temperature**2 * values.mean(1), reduction=reduction)


def dual_path_loss(first: Tensor, second: Tensor, *, temperature: float, reduction: Reduction) -> Tensor:
    """C3: how far the answers to two noisings are apart, ``cwd(o1, sg(o2)) + cwd(o2, sg(o1))``, sg without gradient.

    Args:
        first, second: (B, C, h, w) scores of the teacher in training; each gets the gradient of one of the parts.
        temperature: as in `cwd_loss`.
        reduction: "none" = one value per image, "mean" or "sum" over images.

    Returns:
        (B,) or scalar; nats times T^2.

    Source: skyshoumeng/Label_Assisted_Distillation@cd08406 train_baseline.py, before its weight of 5.
    """
    there = cwd_loss(first, second, temperature=temperature, reduction=reduction)
    return there + cwd_loss(second, first, temperature=temperature, reduction=reduction)


def plan(cfg: Settings) -> list[Stage]:
    """Train the teacher, once for all seeds and all arms that have the same; then the student."""
    _check(cfg)
    if not cfg.lad_weight:
        return [fit_stage(roles=(Role("student"),)), evaluate_stage()]
    name = TEACHERS[cfg.teacher_input]
    hidden = OF_THE_STUDENT + (() if name == LABEL else (*OF_THE_TEACHER, "label_scale"))
    teacher = fit_stage(
        name,
        reads=("*", "!eval.*", *(f"!{setting}" for setting in hidden)),
        set={"steps": cfg.label_teacher_steps, "task_weight": 1.0},
        seeded=bool(cfg.own_teachers),
        roles=(Role("student"),),
    )
    frozen = Role(name, "frozen", f"stage:{name}")
    return [
        teacher,
        fit_stage(needs=(name,), roles=(Role("student"), frozen)),
        evaluate_stage(roles=(frozen,)),
    ]


def _check(cfg: Settings) -> None:
    """Refuse arms that would not be what they are called, before anything trains."""
    if cfg.paths == 1 and cfg.consistency_weight:
        raise KdzooError(
            f"paths = 1 with consistency_weight = {cfg.consistency_weight:g}: with one noising there is nothing to "
            "agree with. Set consistency_weight = 0, or paths = 2."
        )
    if cfg.loss == "dist" and int(cfg.get("accumulate", 1)) > 1:
        raise KdzooError(
            f"loss = 'dist' with accumulate = {cfg.accumulate}: it correlates over all pixels of a batch, so in "
            "micro-batches it is another loss. Set accumulate = 1, or loss = 'cwd'."
        )


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """C2, C6: the student as the task builds it, with one more channel where labels may come in."""
    if role not in (LABEL, PLAIN, "student"):
        return None
    assisted = role == LABEL or (
        role == "student" and (run.stage == LABEL or (run.stage != PLAIN and run.cfg.zero_channel))
    )
    if role == "student" and not assisted:
        return None
    others = run.manager.subset_hook_caller("build_model", remove_plugins=[run.manager.get_plugin("method")])
    model = others(run=run, role="student")
    if not assisted:
        return model
    return with_label_input(model, run.task.sizes["channels"], init=float(run.cfg.label_init))


def noised(run: Run, batch: Batch, generator: torch.Generator) -> Tensor:
    """C1: the batch's labels as the teacher sees them in training, (B, 1, H, W)."""
    fixed = run.cfg.train_codes == "fixed"
    return _coded(run, batch, generator, fixed=fixed, noise=float(run.cfg.train_noise))


def told(run: Run, batch: Batch, generator: torch.Generator) -> Tensor:
    """C4: the batch's labels as the teacher sees them while it teaches, (B, 1, H, W)."""
    fixed = run.cfg.codes == "fixed"
    return _coded(run, batch, generator, fixed=fixed, noise=float(run.cfg.teach_noise))


def drawn(run: Run, batch: Batch, generator: torch.Generator) -> Tensor:
    """The batch's labels under random codes, whatever the teacher was trained with, (B, 1, H, W)."""
    return _coded(run, batch, generator, fixed=False, noise=float(run.cfg.train_noise))


def _coded(run: Run, batch: Batch, generator: torch.Generator, *, fixed: bool, noise: float) -> Tensor:
    labels, classes = at_scores(batch.labels, batch.views["image"]), run.task.sizes["classes"]
    codes = code_table(classes) if fixed else random_codes(len(labels), classes, generator)
    return label_channel(labels, codes, noise=noise, scale=float(run.cfg.label_scale), generator=generator)


@hookimpl
def prepare_batch(run: Run, batch: Batch) -> None:
    """The labels beside the image: for the teacher in training on each path, for the student in a view of its own.

    Views: "image" (B, I, H, W) what the student sees; "assisted" (B, I + 1, H, W) what its teacher sees. While the
    label teacher is trained, "image" is (paths * B, I + 1, H, W), path after path, and the labels are repeated; the
    counts are not, so its cross-entropy is the sum over paths.
    """
    image = batch.views["image"]
    if run.stage == LABEL:
        paths = int(run.cfg.paths)
        channels = [noised(run, batch, run.rng(f"path-{path}", image.device)) for path in range(paths)]
        batch.views["image"] = torch.cat([torch.cat((image, channel), 1) for channel in channels])
        batch.labels, batch.ids = torch.cat([batch.labels] * paths), batch.ids * paths
    elif LABEL in run.roles:
        batch.views["assisted"] = torch.cat((image, told(run, batch, run.rng("told", image.device))), 1)


@hookimpl(wrapper=True)
def loss_terms(run: Run, batch: Batch) -> Generator[None, Terms, Terms]:
    """C3 for the label teacher, C5 for the student; a wrapper, since its auxiliary heads have another weight."""
    if run.stage == PLAIN:
        return (yield)
    if run.stage == LABEL:
        others = yield
        return [*others, _agreement(run)]
    # Taken out before the task's term, which would give them the weight of its own recipe.
    scores = run.out("student").extra.pop("auxiliary", [])
    others = yield
    return [*others, _auxiliary(run, batch, scores), _distillation(run)]


def _agreement(run: Run) -> dict[str, Term]:
    """The two paths' difference, summed over images."""
    cfg = run.cfg
    if int(cfg.paths) == 1 or not cfg.consistency_weight:
        return {}
    first, second = run.out("student").features["score"].chunk(2)
    total = dual_path_loss(first, second, temperature=float(cfg.consistency_temperature), reduction="sum")
    return {"consistency": Term(total, float(cfg.consistency_weight), per="item")}


def _auxiliary(run: Run, batch: Batch, scores: list[Tensor]) -> dict[str, Term]:
    """Cross-entropy of the student's auxiliary heads, with a weight of their own."""
    weight = float(run.cfg.auxiliary_weight) * float(run.cfg.get("task_weight", 1.0))
    if not scores or not weight:
        return {}
    said = [
        F.cross_entropy(resized(score, batch.labels), batch.labels, ignore_index=IGNORE, reduction="sum")
        for score in scores
    ]
    return {"auxiliary": Term(torch.stack(said).sum(), weight, per="pixel")}


def _distillation(run: Run) -> dict[str, Term]:
    """C5: the student's scores against its teacher's, by one of three losses."""
    cfg = run.cfg
    if not cfg.lad_weight:
        return {}
    student = run.out("student").features["score"]
    said = run.signal(LABEL, "assisted") if LABEL in run.roles else run.signal(PLAIN)
    teacher, weight, t = (
        on_grid(said.features["score"], student),
        float(cfg.lad_weight),
        float(cfg.temperature),
    )
    if cfg.loss == "dist":
        # Without temperature, and over all pixels of the batch at once, as the official code has it.
        total = dist(
            student,
            teacher,
            beta=1.0,
            gamma=1.0,
            temperature=1.0,
            scale_by_temperature_squared=False,
            axis=1,
        )
        return {"lad": Term(total, weight, per="step")}
    if cfg.loss == "pixel-kl":
        values = kl_divergence(student, teacher, temperature=t, axis=1, reduction="none")
        return {"lad": Term(values.mean((1, 2)).sum(), weight * t**2, per="item")}
    total = cwd_loss(student, teacher, temperature=t, reduction="sum")
    return {"lad": Term(total, weight, per="item")}


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """How good the teacher is while it is given the labels: a diagnosis, never a model to be used.

    ``miou[model=own-teacher]``: as it teaches, in its own training as it is trained; the plain one without labels;
    ``miou[model=own-teacher-noised]``: under codes drawn anew for each image;
    ``agreement[of=noisings]``: share of the labelled pixels that get the same class under two such noisings.
    """
    role = (
        "student" if run.stage == LABEL else next((name for name in (LABEL, PLAIN) if name in run.models), "")
    )
    if not role or run.stage not in (LABEL, "evaluate"):
        return {}
    found, classes, size = {}, run.task.sizes["classes"], len(run.data(split))
    batch = int(run.cfg.get("eval_batch", 16))
    areas, labels = Areas(classes), told if run.stage == "evaluate" else noised
    before = _telling(run, labels, "told") if role != PLAIN else None
    for logits, part in predictions(run, role, split, batch, before):
        areas.add(logits.argmax(1), part.labels)
    found["miou[model=own-teacher]"] = Metric(areas.mean_iou(), size)
    if role == PLAIN:
        return found
    areas, same = Areas(classes), Mean()
    passes = (predictions(run, role, split, batch, _telling(run, drawn, name)) for name in ("one", "two"))
    for (first, part), (second, _) in zip(*passes, strict=True):
        areas.add(first.argmax(1), part.labels)
        same.add((first.argmax(1) == second.argmax(1))[part.labels != IGNORE].float())
    found["miou[model=own-teacher-noised]"] = Metric(areas.mean_iou(), size)
    found["agreement[of=noisings]"] = Metric(same.value, size)
    return found


def _telling(
    run: Run, channel: Callable[[Run, Batch, torch.Generator], Tensor], purpose: str
) -> Callable[[Batch], None]:
    """What puts the labels beside the images of one pass over a split."""
    generator = run.rng(purpose, run.device)

    def tell(batch: Batch) -> None:
        batch.views["image"] = torch.cat((batch.views["image"], channel(run, batch, generator)), 1)

    return tell
