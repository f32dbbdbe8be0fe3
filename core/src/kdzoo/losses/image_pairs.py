"""How positions of different images relate: cosine similarities across a batch, as distributions (CIRKD).

The plain form keeps B^2 matrices of N^2 similarities on both sides until the backward pass: 8 images of 64 x 64
positions are 4.3 GB a matrix of all pairs, and there are half a dozen. Here similarities are made in blocks of rows,
twice, and only their divergences are kept.

Shapes: B images, D channels (of its own on each side), h x w positions, N = h w.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.masks import Reduction, check_reduction, reduce

Pairs = Literal["all", "same", "cross"]

# Similarities a block: on a CPU three float32 buffers of 2 MB, measured best of 0.5 to 4.
BLOCK_CPU = 1 << 19
BLOCK_ACCELERATOR = 1 << 25


def cross_image_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float,
    pairs: Pairs,
    reduction: Reduction,
    teacher_grad: bool = False,
    block: int | None = None,
) -> Tensor:
    """KL(teacher || student) of which positions of image j a position of image i is like.

    With a_ip the features of position p of image i, scaled to length 1, and S_ij = a_i^T a_j (N x N):

        l_i = mean over j of 1/N sum_p KL( softmax(S^T_ij[p] / T) || softmax(S^S_ij[p] / T) )

    Args:
        student: (B, D, h, w); a position without any activation is like all others (similarity 0) and gets no gradient.
        teacher: (B, D', h, w), channels of its own, positions alike.
        temperature: T > 0. No T^2 is hidden inside.
        pairs: the images j that image i is held against: "all", "same" (i alone) or "cross" (all but i).
        reduction: "none", "sum" or "mean", over images i.
        teacher_grad: let the gradient reach the teacher too; takes the plain form, with its memory.
        block: similarities in a block; None takes the module's constant for the device.

    Returns:
        (B,) for "none", else a scalar; nats, float32 or wider.

    Raises:
        ValueError: maps of other images or positions, temperature <= 0, unknown pairs, or "cross" with one image only.

    Source: Yang et al., CVPR 2022, arXiv:2204.06986, mini-batch pixel-to-pixel distillation; winycg/CIRKD@05a2753
    losses/cirkd_mini_batch.py, whose value is reduction="mean" with pairs="all".

    Example:
        >>> maps = torch.eye(2).reshape(1, 2, 1, 2)  # two positions at right angles
        >>> alike = torch.ones(1, 3, 1, 2)
        >>> value = cross_image_divergence(alike, maps, temperature=1.0, pairs="all", reduction="mean")
        >>> round(value.item(), 4)  # log 2 - H(e / (1 + e), 1 / (1 + e))
        0.1109
    """
    check_reduction(reduction)
    if student.dim() != 4 or student.numel() == 0:
        raise ValueError(
            f"cross_image_divergence: student is {tuple(student.shape)}, expected (B, D, h, w) with entries"
        )
    if teacher.dim() != 4 or student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
        raise ValueError(
            f"cross_image_divergence: student is {tuple(student.shape)} and teacher {tuple(teacher.shape)}, expected "
            "the same images and positions: pool or resize one of them first"
        )
    if not temperature > 0.0:
        raise ValueError(
            f"temperature: got {temperature}, expected a number > 0; similarities are divided by it"
        )
    if pairs not in get_args(Pairs):
        raise ValueError(f"pairs: got {pairs!r}, expected 'all', 'same' or 'cross'")
    if pairs == "cross" and len(student) < 2:
        raise ValueError(
            "pairs='cross': got one image, expected at least two; there is no other to compare with"
        )
    # Similarities of half precision would be coarser than what tells positions apart.
    with torch.autocast(student.device.type, enabled=False):
        mine, taught = unit_rows(student), unit_rows(teacher if teacher_grad else teacher.detach())
        if teacher_grad:
            values = _plain(mine, taught, temperature, pairs)
        else:
            if block is None:
                block = BLOCK_CPU if student.device.type == "cpu" else BLOCK_ACCELERATOR
            values = _Blocks.apply(mine, taught.to(mine.dtype), temperature, pairs, block)
    return reduce(values, reduction=reduction)


def unit_rows(features: Tensor) -> Tensor:
    """(B, D, h, w) as rows (B, N, D) of length 1, float32 or wider; rows of zeros stay, with gradient 0.

    Dividing by a small constant instead would give them a gradient that is as large as its inverse.
    """
    wide = features.to(torch.promote_types(features.dtype, torch.float32)).flatten(2).transpose(1, 2)
    length = torch.linalg.vector_norm(wide, dim=2, keepdim=True)
    some = length > 1e-12  # F.normalize's bound
    return ((wide / length.masked_fill(~some, 1.0)) * some).contiguous()


def _partners(image: int, images: int, pairs: Pairs) -> list[slice]:
    """The images j of image i, in runs of neighbors, which are views of the batch."""
    if pairs == "all":
        return [slice(0, images)]
    if pairs == "same":
        return [slice(image, image + 1)]
    return [run for run in (slice(0, image), slice(image + 1, images)) if run.start < run.stop]


def _plain(mine: Tensor, taught: Tensor, temperature: float, pairs: Pairs) -> Tensor:
    """(B,) by autograd, all similarities at once."""
    values = []
    for image in range(len(mine)):
        parts = []
        for others in _partners(image, len(mine), pairs):
            likeness = [torch.einsum("pd,jqd->pjq", rows[image], rows[others]) for rows in (mine, taught)]
            parts.append(
                kl_divergence(
                    *likeness, temperature=temperature, axis=-1, reduction="none", teacher_grad=True
                )
            )
        values.append(torch.cat(parts, 1).mean())
    return torch.stack(values)


class _Blocks(torch.autograd.Function):
    """(B,) from rows (B, N, D) and (B, N, D'), some rows' similarities at a time."""

    @staticmethod
    def forward(
        ctx: Any, mine: Tensor, taught: Tensor, temperature: float, pairs: Pairs, block: int
    ) -> Tensor:
        ctx.save_for_backward(mine, taught)
        ctx.options = temperature, pairs, block
        values = mine.new_zeros(len(mine))
        scale = 1.0 / (mine.shape[1] * _count(len(mine), pairs))
        for image, others, rows in _walk(mine, pairs, block):
            log_q = _likeness(mine, image, others, rows, temperature).log_softmax(2)
            log_p = _likeness(taught, image, others, rows, temperature).log_softmax(2)
            p = log_p.exp()
            values[image] += p.mul_(log_p.sub_(log_q)).sum() * scale
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        mine, taught = ctx.saved_tensors
        temperature, pairs, block = ctx.options
        gradient = mine.new_zeros(mine.shape)
        scale = upstream / (temperature * mine.shape[1] * _count(len(mine), pairs))
        width = mine.shape[2]
        for image, others, rows in _walk(mine, pairs, block):
            # d KL / d similarity = (q - p) / T; a similarity has two sides.
            moved = _likeness(mine, image, others, rows, temperature).softmax(2)
            moved.sub_(_likeness(taught, image, others, rows, temperature).softmax(2))
            flat = moved.mul_(scale[image]).flatten(1)
            gradient[image, rows].addmm_(flat, mine[others].reshape(-1, width))
            gradient[others].view(-1, width).addmm_(flat.T, mine[image, rows])
        return gradient, None, None, None, None


def _count(images: int, pairs: Pairs) -> int:
    return {"all": images, "same": 1, "cross": images - 1}[pairs]


def _walk(mine: Tensor, pairs: Pairs, block: int) -> Iterator[tuple[int, slice, slice]]:
    """(image i, images j, some of the positions of i)."""
    images, positions = mine.shape[:2]
    for image in range(images):
        for others in _partners(image, images, pairs):
            step = max(1, block // ((others.stop - others.start) * positions))
            for first in range(0, positions, step):
                yield image, others, slice(first, first + step)


def _likeness(unit: Tensor, image: int, others: slice, rows: slice, temperature: float) -> Tensor:
    """(n, J, N) similarities of some positions of an image to all of others, divided by T."""
    anchors, keys = unit[image, rows] / temperature, unit[others]
    return (anchors @ keys.reshape(-1, unit.shape[2]).T).view(len(anchors), len(keys), -1)
