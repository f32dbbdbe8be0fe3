"""Losses of segmentation methods in two forms: as kdzoo has them, and in plain code of their formulas.

The plain forms are what one writes first, from the paper or in the manner of the official code, with autograd and its
loops: one-hot masks for every class, all similarities at once, a class or a pair of images at a time.

Scores are 8 x 19 x S x S, S = 128 is what Cityscapes crops give at stride 4 to 8. Maps of features, heads at a larger
stride, and maps whose positions are all compared with each other have S / 4: at S, the plain matrices of a batch's
similarities would be 69 GB each.

A further loss is one more entry of `CASES`: both forms take what `given` makes of S. Differentiated are all tensors
among it that require a gradient, and all parameters of modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo.losses.affinity import intra_class_variation_loss, pairwise_affinity_loss
from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.image_pairs import cross_image_divergence
from kdzoo.losses.jaccard import jaccard_loss
from kdzoo.losses.maps import channel_wise_divergence
from kdzoo_segmentation.borders import bodies, edges
from kdzoo_segmentation.cutmix import pasted
from kdzoo_segmentation.incremental import label_bce
from kdzoo_segmentation.label_input import label_channel
from kdzoo_segmentation.measures import IGNORE
from kdzoo_segmentation.methods.barm import (
    branch_distillation,
    group_distillation,
    pseudo_labels,
    residual_on_background,
    residual_on_new,
    without_old_gradient,
)
from kdzoo_segmentation.methods.bpkd import edge_loss, masked_shapes
from kdzoo_segmentation.methods.lad import cwd_loss, dual_path_loss
from kdzoo_segmentation.methods.mgd_semi import (
    image_semantic_loss,
    neighbour,
    pseudo_label_loss,
    region_content_loss,
)
from kdzoo_segmentation.methods.transkd import (
    EmbeddingAlignment,
    Mixer,
    embedding_loss,
    feature_loss,
    tokens,
)
from kdzoo_segmentation.scores import at_scores

Loss = Callable[..., Tensor]
Given = tuple[Any, ...]
IMAGES, CLASSES = 8, 19
NARROW, WIDE = (
    (32, 64, 160, 256),
    (64, 128, 320, 512),
)  # stages of MiT-B0 and MiT-B2: TransKD's student and teacher
EMBEDDING_WEIGHTS = (0.1, 0.1, 0.5, 1.0)  # TransKD
MIXER_HEADS = 8  # TransKD
HEADS = (13, 4, 4)  # BARM: channels of three steps' heads, each with one of the background; 19 classes in all
REGIONS = 7  # MGD
TEMPERATURE = 4.0  # LAD


@dataclass(frozen=True)
class Case:
    """One loss in both forms, and what they are given for maps of a size."""

    given: Callable[[int], Given]
    plain: Loss
    kdzoo: Loss


# --- inputs -------------------------------------------------------------------------------------------------------


def blocks(size: int, draws: torch.Generator) -> Tensor:
    """Labels of blocks of an eighth of the side, a corner to be ignored."""
    part = max(1, size // 8)
    drawn = torch.randint(0, CLASSES, (IMAGES, size // part, size // part), generator=draws)
    labels = drawn.repeat_interleave(part, 1).repeat_interleave(part, 2)
    labels[:, :part, :part] = IGNORE
    return labels


def scores(size: int) -> Given:
    """Student (requires grad), teacher, labels."""
    draws = torch.Generator().manual_seed(size)
    student, teacher = torch.randn(2, IMAGES, CLASSES, size, size, generator=draws)
    return student.requires_grad_(), teacher, blocks(size, draws)


def features(size: int) -> Given:
    """Student (requires grad) and teacher of twice its channels, at a quarter; labels there."""
    draws, side = torch.Generator().manual_seed(size), size // 4
    student = torch.randn(IMAGES, 128, side, side, generator=draws).requires_grad_()
    return student, torch.randn(IMAGES, 256, side, side, generator=draws), blocks(side, draws)


def stages(size: int, widths: Sequence[int], draws: torch.Generator) -> list[Tensor]:
    """Maps of a hierarchical transformer, the first one of side S."""
    sides = (max(1, size >> place) for place in range(len(widths)))
    return [
        torch.randn(IMAGES, width, side, side, generator=draws)
        for width, side in zip(widths, sides, strict=True)
    ]


def fused_stages(size: int) -> Given:
    """Four maps of the student, projected to the teacher's channels (require grad), and the teacher's four."""
    draws = torch.Generator().manual_seed(size)
    student, teacher = stages(size, WIDE, draws), stages(size, WIDE, draws)
    return *(map_.requires_grad_() for map_ in student), *teacher


def embedded_stages(size: int) -> Given:
    """Mixer and alignment, four patch embeddings of the student (require grad) and four of the teacher."""
    draws = torch.Generator().manual_seed(size)
    with torch.random.fork_rng():
        torch.manual_seed(size)
        mixer = Mixer(NARROW[-1], MIXER_HEADS, residual=False)
        alignment = EmbeddingAlignment(NARROW, WIDE)
    student, teacher = stages(size, NARROW, draws), stages(size, WIDE, draws)
    return mixer, alignment, *(map_.requires_grad_() for map_ in student), *teacher


def noisings(size: int) -> Given:
    """Labels, and a code for each image and symbol."""
    draws = torch.Generator().manual_seed(size)
    return blocks(size, draws), torch.randn(IMAGES, CLASSES + 1, generator=draws)


def paths(size: int) -> Given:
    """The teacher's scores for two noisings; both require grad."""
    first, second, _ = scores(size)
    return first, second.requires_grad_()


def pool(size: int) -> Given:
    """Student's scores and features (require grad), both teachers' scores for the unmixed images, the deep one's for
    the mixed ones, the wide one's features, and the boxes.
    """
    draws = torch.Generator().manual_seed(size)
    student, wide, deep, mixed = torch.randn(4, IMAGES, CLASSES, size, size, generator=draws)
    mine, taught, _ = features(size)
    boxes = torch.zeros(IMAGES, 1, size, size, dtype=torch.bool)
    boxes[:, :, size // 4 : size // 2, size // 8 : size // 2] = True
    return student.requires_grad_(), wide, deep, mixed, mine, taught, boxes


def increment(size: int) -> Given:
    """Labels of the newest classes, scores of the net (require grad) and of the one before; the heads of all steps and
    the branches of all but the last (require grad); heads and branches of the net before.
    """
    draws, side = torch.Generator().manual_seed(size), size // 4
    old = CLASSES - (HEADS[-1] - 1)
    labels = blocks(size, draws)
    labels = labels.masked_fill(labels < old, 0)
    now = torch.randn(IMAGES, CLASSES, size, size, generator=draws).requires_grad_()
    before = torch.randn(IMAGES, old, size, size, generator=draws)
    kept = (*HEADS[:-1], *(256 for _ in HEADS[:-1]))
    maps = [
        torch.randn(IMAGES, width, side, side, generator=draws)
        for width in (*HEADS, *kept[len(HEADS) - 1 :], *kept)
    ]
    mine = len(HEADS) + len(HEADS) - 1
    return labels, now, before, *(map_.requires_grad_() for map_ in maps[:mine]), *maps[mine:]


# --- both forms ---------------------------------------------------------------------------------------------------


def plain_divergence(student: Tensor, teacher: Tensor, axis: int) -> Tensor:
    with torch.no_grad():
        p = teacher.softmax(axis)
    return (p * (p.log() - student.log_softmax(axis))).sum(axis)


def plain_pixel_kd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return plain_divergence(student, teacher, 1).mean()


def kdzoo_pixel_kd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return kl_divergence(student, teacher, temperature=1.0, axis=1, reduction="mean")


def plain_cwd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return plain_divergence(student.flatten(2), teacher.flatten(2), 2).mean()


def kdzoo_cwd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return channel_wise_divergence(student, teacher, temperature=1.0, reduction="mean")


def plain_bpkd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    counted = labels != IGNORE
    masks = F.one_hot(labels.where(counted, 0), CLASSES).permute(0, 3, 1, 2).float() * counted[:, None]
    others = (1 - masks) * counted[:, None]  # eroding what counts: a pixel to be ignored erodes nothing
    edge = F.max_pool2d(masks, 3, 1, 1) * F.max_pool2d(others, 3, 1, 1) * counted[:, None]
    body, near = masks * (1 - edge), edge.amax(1)
    pixels = plain_divergence(student, teacher, 1)
    shapes = plain_divergence((student * body).flatten(2), (teacher * body).flatten(2), 2)
    return 50 * (pixels * near).sum() / near.sum() + 20 * shapes.mean()


def kdzoo_bpkd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    edge = edges(labels, radius=1, element="square")
    pixels = edge_loss(student, teacher, edge, temperature=1.0, reduction="sum") / edge.sum()
    body = bodies(labels, edge, classes=CLASSES)
    shapes = masked_shapes(student, teacher, body, temperature=1.0, mask_mode="zero", reduction="mean")
    return 50 * pixels + 20 * shapes


def plain_cirkd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    mine, taught = (F.normalize(side, dim=1).flatten(2) for side in (student, teacher))
    total = student.new_zeros(())
    for i in range(len(mine)):
        for j in range(len(mine)):
            total = total + plain_divergence(mine[i].T @ mine[j], taught[i].T @ taught[j], 1).mean()
    return total / len(mine) ** 2


def kdzoo_cirkd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return cross_image_divergence(student, teacher, temperature=1.0, pairs="all", reduction="mean")


def plain_skd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    mine, taught = (F.normalize(side, dim=1).flatten(2) for side in (student, teacher))
    likeness = [torch.einsum("icm,icn->imn", side, side) for side in (mine, taught)]
    return (likeness[1] - likeness[0]).square().mean()


def kdzoo_skd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return pairwise_affinity_loss(student, teacher, reduction="mean")


def plain_variation(side: Tensor, labels: Tensor) -> Tensor:
    """Cosine of each position with its class's mean, written over the features class by class as in IFVD's code."""
    wide, center = labels[:, None].expand_as(side), side.clone()
    for k in range(CLASSES):
        member = (wide == k).float()
        mean = (member * side).sum((2, 3), keepdim=True) / (member.sum((2, 3), keepdim=True) + 1e-6)
        center = (1 - member) * center + member * mean
    return F.cosine_similarity(side, center, dim=1)


def plain_ifvd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        taught = plain_variation(teacher, labels)
    return F.mse_loss(plain_variation(student, labels), taught)


def kdzoo_ifvd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return intra_class_variation_loss(student, teacher, labels, classes=CLASSES, reduction="mean")


def plain_jaccard(student: Tensor, y: Tensor, keep: Tensor, active: Tensor) -> Tensor:
    """JML-1 over the batch, smooth = 1, on a target with all classes' maps, as JDTLosses has it."""
    p, y = student.log_softmax(1).exp() * keep, y * keep
    mine, theirs = p.sum((0, 2, 3)), y.sum((0, 2, 3))
    shared = (mine + theirs - (p - y).abs().sum((0, 2, 3))) / 2
    extra, missed = mine - shared, theirs - shared
    return (1 - (shared + 1) / (shared + extra + missed + 1))[active].mean()


def plain_jml_hard(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    keep = labels != IGNORE
    y = F.one_hot(labels.where(keep, 0), CLASSES).permute(0, 3, 1, 2).float()
    return plain_jaccard(student, y, keep[:, None], (y * keep[:, None]).amax((0, 2, 3)) > 0.01)


def plain_jml_soft(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        q = teacher.softmax(1)
    return plain_jaccard(student, q, (labels != IGNORE)[:, None], torch.ones(CLASSES, dtype=torch.bool))


def kdzoo_jaccard(student: Tensor, target: Tensor, keep: Tensor, active: Any) -> Tensor:
    return jaccard_loss(
        student,
        target,
        axis=1,
        form="jml-1",
        over="batch",
        active=active,
        reduction="mean",
        smooth=1.0,
        mask=keep,
    )


def kdzoo_jml_hard(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return kdzoo_jaccard(student, labels, labels != IGNORE, "present")


def kdzoo_jml_soft(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return kdzoo_jaccard(student, teacher.softmax(1), labels != IGNORE, "all")


def plain_hcl(*maps: Tensor) -> Tensor:
    total = maps[0].new_zeros(())
    half = len(maps) // 2
    for mine, taught in zip(maps[:half], maps[half:], strict=True):
        loss, weight, whole = F.mse_loss(mine, taught), 1.0, 1.0
        for level in (4, 2, 1):
            if level >= mine.shape[2]:
                continue
            weight /= 2
            whole += weight
            loss = loss + weight * F.mse_loss(
                F.adaptive_avg_pool2d(mine, level), F.adaptive_avg_pool2d(taught, level)
            )
        total = total + loss / whole
    return total


def kdzoo_hcl(*maps: Tensor) -> Tensor:
    half = len(maps) // 2
    pairs = zip(maps[:half], maps[half:], strict=True)
    return torch.stack([feature_loss(s, t, kind="hcl", temperature=1.0).mean() for s, t in pairs]).sum()


def plain_mixer(mixer: Mixer, embedded: Tensor) -> Tensor:
    """Attention with its matrix of weights, beside a gated convolution along the sequence, as in TransKD's code."""
    images, count, width = embedded.shape
    each = width // mixer.heads
    qkv = mixer.qkv(embedded).reshape(images, count, 3, mixer.heads, each).permute(2, 0, 3, 1, 4)
    weights = (qkv[0] @ qkv[1].transpose(2, 3) * each**-0.5).softmax(-1)
    seen = mixer.out((weights @ qkv[2]).transpose(1, 2).reshape(images, count, width))
    along = embedded.permute(0, 2, 1)
    local = (mixer.conv(along) * torch.sigmoid(mixer.gate(along))).permute(0, 2, 1)
    return mixer.attention_weight * seen + mixer.local_weight * local


def plain_embeddings(mixer: Mixer, alignment: EmbeddingAlignment, *maps: Tensor) -> Tensor:
    flat = [map_.flatten(2).transpose(1, 2) for map_ in maps]
    half = len(flat) // 2
    total = flat[0].new_zeros(())
    for place in range(half):
        mine = plain_mixer(mixer, flat[place]) if place == half - 1 else flat[place]
        apart = F.mse_loss(alignment.stages[place](mine), flat[half + place])
        total = total + EMBEDDING_WEIGHTS[place] * apart
    return total


def kdzoo_embeddings(mixer: Mixer, alignment: EmbeddingAlignment, *maps: Tensor) -> Tensor:
    half = len(maps) // 2
    embedded = [tokens(map_) for map_ in maps[:half]]
    embedded[-1] = mixer(embedded[-1])
    return embedding_loss(
        alignment(embedded), [tokens(map_) for map_ in maps[half:]], EMBEDDING_WEIGHTS
    ).mean()


def plain_lad(student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
    """Channel-wise distillation as in LAD's code: a softmax of both sides, then a logarithm."""
    shape = (student.shape[0] * student.shape[1], -1)
    q = (student / TEMPERATURE).reshape(shape).softmax(1)
    p = (teacher.detach() / TEMPERATURE).reshape(shape).softmax(1)
    return TEMPERATURE**2 * F.kl_div(q.log(), p, reduction="sum") / shape[0]


def kdzoo_lad(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return cwd_loss(student, teacher, temperature=TEMPERATURE, reduction="mean")


def plain_two_paths(first: Tensor, second: Tensor) -> Tensor:
    return plain_lad(first, second) + plain_lad(second, first)


def kdzoo_two_paths(first: Tensor, second: Tensor) -> Tensor:
    return dual_path_loss(first, second, temperature=TEMPERATURE, reduction="mean")


def plain_noise(labels: Tensor, codes: Tensor) -> Tensor:
    """A code an image and class, written where the class is, as in LAD's code."""
    draws = torch.Generator().manual_seed(0)
    channel = torch.zeros(labels.shape)
    for image in range(len(labels)):
        for k in range(CLASSES):
            channel[image][labels[image] == k] = codes[image, k]
        channel[image][labels[image] == IGNORE] = codes[image, CLASSES]
    return 100 * (channel + 0.03 * torch.randn(labels.shape, generator=draws))[:, None]


def kdzoo_noise(labels: Tensor, codes: Tensor) -> Tensor:
    return label_channel(labels, codes, noise=0.03, scale=100.0, generator=torch.Generator().manual_seed(0))


def plain_mgd(
    student: Tensor, wide: Tensor, deep: Tensor, mixed: Tensor, mine: Tensor, taught: Tensor, boxes: Tensor
) -> Tensor:
    """Pixels, image and regions, scores mixed before the argmax as in MGD's code."""
    share = boxes.float()
    total = student.new_zeros(())
    for said in (wide, deep):
        total = total + F.cross_entropy(student, (said * (1 - share) + said.roll(1, 0) * share).argmax(1))
    total = total + 0.002 * (student.mean((2, 3)) - mixed.mean((2, 3))).abs().sum()
    likeness = []
    for side in (mine, taught):
        cells = F.adaptive_avg_pool2d(side, REGIONS).flatten(2)
        lengths = cells.norm(dim=1)
        likeness.append(cells.transpose(1, 2) @ cells / (lengths[:, :, None] * lengths[:, None, :]))
    return total + 100 * F.mse_loss(*likeness)


def kdzoo_mgd(
    student: Tensor, wide: Tensor, deep: Tensor, mixed: Tensor, mine: Tensor, taught: Tensor, boxes: Tensor
) -> Tensor:
    classes = (said.argmax(1) for said in (wide, deep))
    labels = [pasted(said, neighbour(said), boxes) for said in classes]
    pixels = pseudo_label_loss(student, labels, reduction="mean")
    image = image_semantic_loss(student, mixed, reduction="sum")
    return pixels + 0.002 * image + 100 * region_content_loss(mine, taught, grid=REGIONS, reduction="mean")


def plain_barm(labels: Tensor, now: Tensor, before: Tensor, *parts: Tensor) -> Tensor:
    """The sum of an increment's losses, with one-hot labels and masks in floating point as in BARM's code."""
    steps, old = len(HEADS), before.shape[1]
    heads, branches, rest = parts[:steps], parts[steps : 2 * steps - 1], parts[2 * steps - 1 :]
    probability, said = before.sigmoid().max(1)
    pseudo = torch.where((labels == 0) & (said > 0) & (probability >= 0.7), said, labels)
    logits = torch.cat([now[:, :1], now[:, 1:old].detach(), now[:, old:]], 1)
    symbols = pseudo.masked_fill(pseudo == IGNORE, CLASSES)
    target = F.one_hot(symbols, CLASSES + 1)[..., :CLASSES].permute(0, 3, 1, 2).float()
    values = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)
    total = values[target.sum(1) > 0].mean()
    grid = F.interpolate(labels[:, None].float(), heads[-1].shape[2:], mode="nearest")[:, 0]
    new, none = ((grid != 0) & (grid != IGNORE)).float(), (grid == 0).float()
    residual = heads[-1][:, 0]
    s = residual.sigmoid()
    on = F.binary_cross_entropy_with_logits(residual, torch.zeros_like(residual), reduction="none")
    total = total + (on * new).sum() / new.sum()
    total = total + 5 * (((s - 1) ** 2 * none - s**2 * none).clamp(min=0)).sum() / none.sum()
    for k in range(steps - 1):
        apart = F.mse_loss(branches[k] * none[:, None], rest[steps - 1 + k] * none[:, None])
        same = F.binary_cross_entropy_with_logits(heads[k], rest[k].sigmoid(), reduction="none")
        total = total + 4 * apart + same.mean((0, 2, 3)).sum()
    return total


def kdzoo_barm(labels: Tensor, now: Tensor, before: Tensor, *parts: Tensor) -> Tensor:
    steps = len(HEADS)
    heads, branches, rest = parts[:steps], parts[steps : 2 * steps - 1], parts[2 * steps - 1 :]
    pseudo = pseudo_labels(labels, before, 0.7)
    total = label_bce(without_old_gradient(now, HEADS[-1] - 1), pseudo, reduction="mean")
    grid, residual = at_scores(labels, heads[-1]), heads[-1][:, 0]
    total = total + residual_on_new(residual, grid, reduction="mean")
    total = total + 5 * residual_on_background(residual, grid, reduction="mean")
    total = total + 4 * branch_distillation(branches, rest[steps - 1 :], grid == 0, reduction="mean")
    return total + group_distillation(heads, rest[: steps - 1], reduction="mean")


CASES: dict[str, Case] = {
    "pixel-kd": Case(scores, plain_pixel_kd, kdzoo_pixel_kd),
    "cwd": Case(scores, plain_cwd, kdzoo_cwd),
    "bpkd": Case(scores, plain_bpkd, kdzoo_bpkd),
    "cirkd": Case(lambda size: scores(size // 4), plain_cirkd, kdzoo_cirkd),
    "skd": Case(features, plain_skd, kdzoo_skd),
    "ifvd": Case(features, plain_ifvd, kdzoo_ifvd),
    "jml-hard": Case(scores, plain_jml_hard, kdzoo_jml_hard),
    "jml-soft": Case(scores, plain_jml_soft, kdzoo_jml_soft),
    "transkd-hcl": Case(fused_stages, plain_hcl, kdzoo_hcl),
    "transkd-gl": Case(embedded_stages, plain_embeddings, kdzoo_embeddings),
    "lad": Case(scores, plain_lad, kdzoo_lad),
    "lad-two-paths": Case(paths, plain_two_paths, kdzoo_two_paths),
    "lad-noise": Case(noisings, plain_noise, kdzoo_noise),
    "mgd-semi": Case(pool, plain_mgd, kdzoo_mgd),
    "barm": Case(increment, plain_barm, kdzoo_barm),
}
