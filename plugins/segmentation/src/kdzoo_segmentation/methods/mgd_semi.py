"""Multi-Granularity Distillation for lightweight semi-supervised semantic segmentation (Qin et al., ECCV 2022).

arXiv:2208.10169; card: mgd-semi. A small net learns from few labels, and from two frozen teachers on labelled and
unlabelled images: the labels of both at every pixel, the deep one's class scores of the whole image, the wide one's
likeness of regions. The teachers are trained before, on the same labels, each labelling unlabelled images for itself.

Here: CutMix of unlabelled images (C1), pixel-level losses on both kinds of images (C2), the image-level (C3) and the
region-level loss (C4), cross-entropy on labels, plain or on hard pixels (C5), their sum (C6). Not here: the official
loss terms on the teachers' outputs, which have no gradient; joint training of the teachers.

Shapes: B images of a batch, n of them labelled, P = B - n not; C classes, H x W pixels, D x h x w a head's map.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.affinity import pairwise_affinity_loss
from kdzoo.losses.masks import Reduction, reduce
from kdzoo.method import Batch, Metric, Role, Stage, Term, evaluate_stage, fit_stage
from kdzoo.runs import as_output
from kdzoo_segmentation import models
from kdzoo_segmentation.cutmix import box_masks, pasted
from kdzoo_segmentation.hard_pixels import hard_cross_entropy, hard_pixels
from kdzoo_segmentation.measures import IGNORE, Areas
from kdzoo_segmentation.models import resized
from kdzoo_segmentation.segmentation import AUXILIARY, Mean, predictions

if TYPE_CHECKING:
    from kdzoo.method import Output
    from kdzoo.runs import Run
    from kdzoo.settings import Settings

Terms = list[dict[str, Term]]

PAIR = ("wide", "deep")
LABELLERS = {"both": PAIR, "wide": ("wide",), "deep": ("deep",), "self": ("student",)}


def pseudo_label_loss(logits: Tensor, labels: list[Tensor], *, reduction: Reduction) -> Tensor:
    """C2: cross-entropy with each teacher's most probable class at a pixel, mean over pixels, summed over teachers.

    ``l_b = sum over k of mean over p of -log softmax(s_bp)[y^k_bp]``. Not a divergence: it is not 0 at equality.

    Args:
        logits: (B, C, H, W) of the student.
        labels: one (B, H, W) int64 a teacher, classes.
        reduction: "none" = one value per image, "mean" or "sum" over images.

    Returns:
        (B,) or scalar; nats.

    Source: JayQine/MGD-SSSS@9309105 exp.voc/voc8.resnet18_deeplabv3plus/train.py.
    """
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
    each = [F.nll_loss(log_p, one, reduction="none").mean((1, 2)) for one in labels]
    return reduce(torch.stack(each).sum(0), reduction=reduction)


def image_semantic_loss(
    student: Tensor, teacher: Tensor, *, reduction: Reduction, teacher_grad: bool = False
) -> Tensor:
    """C3: how far the two sides' logits, averaged over the image, are apart, summed over classes.

    ``l_b = sum over c of | mean over p of s_bcp - mean over p of t_bcp |``, on logits, not on probabilities.

    Args:
        student, teacher: (B, C, H, W) logits; each side may have a size of its own.
        reduction: "none" = one value per image, "mean" or "sum" over images.
        teacher_grad: let the gradient reach the teacher too.

    Returns:
        (B,) or scalar; units of a logit.

    Raises:
        ValueError: other images or classes on the two sides.

    Source: JayQine/MGD-SSSS@9309105 exp.voc/voc8.resnet18_deeplabv3plus/train.py, which sums over the batch.
    """
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"image_semantic_loss: student is {tuple(student.shape)} and teacher {tuple(teacher.shape)}, expected the "
            "same images and classes: broadcasting would hold one class against another"
        )
    taught = teacher if teacher_grad else teacher.detach()
    wide = torch.promote_types(student.dtype, torch.float32)
    apart = student.to(wide).mean((2, 3)) - taught.to(wide).mean((2, 3))
    return reduce(apart.abs().sum(1), reduction=reduction)


def regions(features: Tensor, grid: int) -> Tensor:
    """Features (B, D, h, w) averaged over `grid` x `grid` regions, float32 or wider: (B, D, grid, grid)."""
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    return F.adaptive_avg_pool2d(wide, grid)


def region_content_loss(
    student: Tensor, teacher: Tensor, *, grid: int, reduction: Reduction, teacher_grad: bool = False
) -> Tensor:
    """C4: mean squared difference of the cosine similarities of all pairs of regions.

    ``l_b = 1 / N^2 sum over ij of (q^S_bij - q^T_bij)^2``, q the cosine of two regions' mean features, N = grid^2.

    Args:
        student, teacher: (B, D, h, w), channels and size of its own on each side.
        grid: regions along a side, at least 1; 7 in the official code.
        reduction: "none" = one value per image, "mean" or "sum" over images.
        teacher_grad: let the gradient reach the teacher too.

    Returns:
        (B,) or scalar, 0 to 4.

    Source: JayQine/MGD-SSSS@9309105 exp.voc/voc8.resnet18_deeplabv3plus/criterion.py:CriterionCosineSimilarity.
    """
    return pairwise_affinity_loss(
        regions(student, grid), regions(teacher, grid), reduction=reduction, teacher_grad=teacher_grad
    )


def sources(cfg: Settings) -> dict[str, tuple[str, ...]]:
    """Who gives the pixels' labels, the image's scores and the regions' likeness in this arm; nobody at weight 0."""
    one = LABELLERS[cfg.teachers] if cfg.teachers != "both" else None
    return {
        "pixel": LABELLERS[cfg.teachers] if cfg.pixel_weight else (),
        "image": (one or (cfg.image_from,)) if cfg.image_weight else (),
        "region": (one or (cfg.region_from,)) if cfg.region_weight else (),
    }


def plan(cfg: Settings) -> list[Stage]:
    """Train the teachers that this arm asks, once for all seeds and arms; then the student."""
    _check(cfg)
    asked = {role for roles in sources(cfg).values() for role in roles}
    names = [name for name in PAIR if name in asked]
    # Constant whatever the arm says: so all arms have the same teachers.
    own = {
        "steps": cfg.pair_steps,
        "task_weight": 1.0,
        "teachers": "self",
        "distill_on": "both",
        "pixel_weight": 1.0,
        "image_weight": 0.0,
        "region_weight": 0.0,
        "image_from": "deep",
        "region_from": "wide",
        "cutmix": True,
        "teacher_bn": "eval",
    }
    # Tasks on photos start backbones from local weights; a teacher's are not the student's.
    starts = {name: {"pretrained": cfg[f"{name}_pretrained"]} for name in names if "pretrained" in cfg}
    stages = [
        fit_stage(
            name,
            reads=("*", "!eval.*", *(f"!{one}{end}" for one in PAIR for end in ("", "_pretrained"))),
            set={**own, **starts.get(name, {}), "student": cfg[name]},
            seeded=False,
            roles=(Role("student"),),
        )
        for name in names
    ]
    frozen = tuple(Role(name, "frozen", f"stage:{name}") for name in names)
    fit = fit_stage(needs=tuple(names), roles=(Role("student"), *frozen))
    return [*stages, fit, evaluate_stage(roles=frozen)]


def _check(cfg: Settings) -> None:
    """Refuse arms that would not be what they are called, before anything trains."""
    if cfg.teachers == "self" and (cfg.image_weight or cfg.region_weight):
        raise KdzooError(
            f"teachers = 'self' with image_weight = {cfg.image_weight:g} and region_weight = {cfg.region_weight:g}, "
            "expected 0 and 0: the student's own scores and features differ from themselves by nothing. Set both to 0."
        )
    if cfg.teachers == "self" and cfg.distill_on == "labelled" and cfg.pixel_weight:
        raise KdzooError(
            "teachers = 'self' with distill_on = 'labelled': there is nothing left to learn from, since a net labels "
            "only unlabelled images for itself. Set distill_on = both."
        )
    if not cfg.box_low <= cfg.box_high:
        raise KdzooError(
            f"box_low = {cfg.box_low:g} is above box_high = {cfg.box_high:g}: no area lies between them. Swap them."
        )


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """The teachers by the names in the settings; student and task's teacher are the task's."""
    if role not in PAIR:
        return None
    sizes = run.task.sizes
    return models.build(run.cfg[role], classes=sizes["classes"], channels=sizes["channels"])


def labelled_rows(batch: Batch, cfg: Settings) -> int:
    """n: the first rows of a batch are those of the stream with labels, the others those of the pool.

    Raises:
        KdzooError: the task streams no pool, or the last rows have labels.
    """
    pool = int(cfg.get("pool_batch", 0))
    n = len(batch.ids) * int(cfg.batch) // (int(cfg.batch) + pool)
    if not pool or bool((batch.labels[n:] != IGNORE).any()):
        raise KdzooError(
            f"mgd-semi: of {len(batch.ids)} images the last {len(batch.ids) - n} should be of the pool, "
            f"{'but they have labels' if pool else 'which this task does not stream'}: there is nothing to mix that is "
            "unlabelled. Choose a task whose second stream is its pool."
        )
    return n


def mixes(cfg: Settings) -> bool:
    """Whether the student sees mixed images: only where it learns from unlabelled ones."""
    return bool(cfg.cutmix) and cfg.distill_on != "labelled" and any(sources(cfg).values())


@hookimpl
def prepare_batch(run: Run, batch: Batch) -> None:
    """C1: the pool's images, each with boxes of its neighbour in the batch.

    Views: "image" (B, ...) what the student sees; "labelled" (n, ...) and "pool" (P, ...) as they come; "mixed"
    (P, ...) the last rows of "image"; "boxes" (P, 1, H, W) bool.
    """
    n, images, cfg = labelled_rows(batch, run.cfg), batch.views["image"], run.cfg
    pool = images[n:]
    batch.counts |= {"labelled": n, "pool": len(pool)}
    batch.views |= {"labelled": images[:n], "pool": pool, "mixed": pool}
    if not mixes(cfg):
        return
    if len(pool) < 2:
        raise KdzooError(
            "mgd-semi: one image of the pool a micro-batch, expected at least two: it would be pasted into itself. "
            "Raise pool_batch, or lower accumulate."
        )
    seed = int(torch.randint(1 << 32, (), generator=run.rng("boxes")))
    masks = box_masks(
        len(pool),
        (images.shape[2], images.shape[3]),
        random=np.random.RandomState(seed),
        boxes=int(cfg.boxes),
        low=float(cfg.box_low),
        high=float(cfg.box_high),
        random_aspect=True,
        invert=True,
    ).to(images.device)
    mixed = pasted(pool, neighbour(pool), masks)
    batch.views |= {"mixed": mixed, "image": torch.cat((images[:n], mixed)), "boxes": masks}


def neighbour(pool: Tensor) -> Tensor:
    """What is pasted into each row: the row before it, the last one into the first."""
    return pool.roll(1, 0)


@hookimpl
def teacher_signal(run: Run, role: str, view: str) -> Output | None:
    """A student that labels for itself, in evaluation mode; and teachers in training mode, if asked for.

    Core answers for frozen teachers in evaluation mode.
    """
    if role not in (*PAIR, "student") or (role != "student" and run.cfg.teacher_bn == "eval"):
        return None
    assert run.batch is not None
    image = run.batch.views[view]
    run.cost.teacher_forwards += len(image) * run.device_info.ranks
    with torch.no_grad(), run.device_info.autocast():
        return answer(run.models[role], image, training=run.cfg.teacher_bn == "train")


def answer(module: nn.Module, image: Tensor, *, training: bool) -> Output:
    """What a net says in either mode, its running statistics and its own mode left as they are."""
    modes = [(part, part.training) for part in module.modules()]
    module.train(training)
    try:
        buffers = {name: value.clone() for name, value in module.named_buffers()} if training else {}
        return as_output(functional_call(module, buffers, (image,)))
    finally:
        for part, mode in modes:
            part.training = mode


def classes_of(run: Run, role: str, view: str) -> Tensor:
    """(N, H, W) the most probable class of each pixel of a view, as `role` sees it."""
    logits = run.signal(role, view).logits
    assert logits is not None
    return logits.argmax(1)


def mixed_classes(run: Run, role: str) -> Tensor:
    """(P, H, W): what `role` says about the unmixed images, mixed as they are.

    The mask is 0 or 1 everywhere, so mixing classes is mixing logits before the argmax.
    """
    assert run.batch is not None
    said, masks = classes_of(run, role, "pool"), run.batch.views.get("boxes")
    return said if masks is None else pasted(said, neighbour(said), masks)


@hookimpl(wrapper=True)
def loss_terms(run: Run, batch: Batch) -> Generator[None, Terms, Terms]:
    """C6: the sum of all terms; a wrapper, since on hard pixels (C5) the task's own term is another one."""
    others = yield
    if run.cfg.supervised == "ohem":
        others = [
            {name: _hard(run, batch) if name == "task" else term for name, term in part.items()}
            for part in others
        ]
    return [*others, _own_terms(run, batch)]


def _hard(run: Run, batch: Batch) -> Term:
    """Cross-entropy on the hard pixels of the labelled rows, a mean over them; auxiliary heads as in the task."""
    n, cfg = labelled_rows(batch, run.cfg), run.cfg
    output, labels = run.out("student"), batch.labels[:n]
    assert output.logits is not None
    at_least, total = int(cfg.ohem_pixels) * n, torch.zeros((), device=labels.device)
    for weight, logits in [
        (1.0, output.logits[:n]),
        *((AUXILIARY, resized(score[:n], labels)) for score in output.extra.get("auxiliary", [])),
    ]:
        keep = hard_pixels(logits, labels, threshold=float(cfg.ohem_threshold), at_least=at_least)
        total = total + weight * hard_cross_entropy(logits, labels, keep)
    return Term(total, per="step")


def _own_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """The distillation terms of this arm, each a sum over the images that it looks at."""
    cfg, n, asked = run.cfg, labelled_rows(batch, run.cfg), sources(run.cfg)
    terms: dict[str, Term] = {}
    if not any(asked.values()):
        return terms
    student = run.out("student")
    assert student.logits is not None
    # Image and region terms look at mixed images; an arm without unlabelled images takes the labelled ones.
    alone = cfg.distill_on == "labelled"
    rows, view, unit = (slice(0, n), "labelled", "labelled") if alone else (slice(n, None), "mixed", "pool")
    if asked["pixel"]:
        weight = float(cfg.pixel_weight)
        if not alone and not _too_early(run):
            said = [mixed_classes(run, role) for role in asked["pixel"]]
            total = pseudo_label_loss(student.logits[n:], said, reduction="sum")
            terms["pixel-pool"] = Term(total, weight, per="pool")
        if cfg.distill_on != "pool" and cfg.teachers != "self":
            said = [classes_of(run, role, "labelled") for role in asked["pixel"]]
            total = pseudo_label_loss(student.logits[:n], said, reduction="sum")
            terms["pixel-labelled"] = Term(total, weight, per="labelled")
    for role in asked["image"]:
        taught = run.signal(role, view).logits
        assert taught is not None
        total = image_semantic_loss(student.logits[rows], taught, reduction="sum") / taught.shape[1]
        terms["image"] = Term(total, float(cfg.image_weight), per=unit)
    for role in asked["region"]:
        total = region_content_loss(
            student.features["head"][rows],
            run.signal(role, view).features["head"],
            grid=int(cfg.region_grid),
            reduction="sum",
        )
        terms["region"] = Term(total, float(cfg.region_weight), per=unit)
    return terms


def _too_early(run: Run) -> bool:
    """Whether a net that labels for itself does not do so yet: at first it would learn its own background."""
    return run.cfg.teachers == "self" and run.step < float(run.cfg.self_from) * run.steps


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """At the end, how good each of the two teachers is, and how often the student says the same."""
    found: dict[str, Metric] = {}
    if run.stage != "evaluate":
        return found
    size, batch = len(run.data(split)), int(run.cfg.get("eval_batch", 16))
    for role in (name for name in PAIR if name in run.models):
        areas, same = Areas(run.task.sizes["classes"]), Mean()
        sides = [predictions(run, name, split, batch) for name in (role, "student")]
        for (taught, part), (said, _) in zip(*sides, strict=True):
            areas.add(taught.argmax(1), part.labels)
            same.add((taught.argmax(1) == said.argmax(1))[part.labels != IGNORE].float())
        found[f"miou[model={role}]"] = Metric(areas.mean_iou(), size)
        found[f"agreement[teacher={role}]"] = Metric(same.value, size)
    return found
