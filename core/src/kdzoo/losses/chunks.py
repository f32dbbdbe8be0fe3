"""The walk through large logits in pieces that stay in cache: shared by all losses with their own backward.

Legend: N rows (tokens), V classes. Maps (B, C, H, W) are walked as (O, C, I): O = axes before the class axis,
I = axes after it. `part`: a piece of a tensor with its class axis at 1.

On a CPU fresh memory is dearer than arithmetic, so a loss that works through parts in a few reused buffers and keeps
nothing but its inputs is faster than one that builds arrays of N x V, although it computes the softmaxes twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Elements per buffer. CPU, for each thread: float32 buffers of 1.6 MB; smaller chunks pay more Python per element,
# larger ones leave the cache. Accelerators: large enough to fill the device, 64 MB per buffer. Above the CPU's size no
# buffer exceeds 1/16 of the logits, whatever the number of threads.
CHUNK_CPU = 400_000
CHUNK_ACCELERATOR = 1 << 24

Index = Any  # what stands between the brackets of tensor[...]


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor is, else float32: half precision is read, never summed in."""
    return torch.float64 if torch.float64 in [x.dtype for x in tensors] else torch.float32


def chunk_size(logits: Tensor) -> int:
    """Elements per buffer for logits of this size on this device."""
    most = CHUNK_CPU * torch.get_num_threads() if logits.device.type == "cpu" else CHUNK_ACCELERATOR
    return max(CHUNK_CPU, min(most, logits.numel() // 16))


class Laid(NamedTuple):
    """Tensors laid out for the walk.

    Attributes:
        tensors: each (N, V), or (..., V) where that could not be had without a copy, or (O, C, I) for maps.
        mask: the items' axes of that layout; None counts all.
        maps: whether the class axis is 1 of three.
        items: the items' axes as the caller has them.
    """

    tensors: tuple[Tensor, ...]
    mask: Tensor | None
    maps: bool
    items: torch.Size


def lay_out(tensors: Sequence[Tensor], axis: int, mask: Tensor | None) -> Laid:
    """See tensors with the same item axes as rows, or as maps, without copying any usual layout.

    Args:
        tensors: (..., V, ...) each, class axis at `axis`; V may differ unless the class axis is an inner one.
        axis: 0 <= axis < ndim.
        mask: bool, the shape without the class axis.
    """
    first = tensors[0]
    items = torch.Size(n for i, n in enumerate(first.shape) if i != axis)
    rows = tuple(x.movedim(axis, -1) for x in tensors)
    equal = all(x.shape == first.shape for x in tensors)
    if axis != first.dim() - 1 and equal and not all(x.stride(-1) == 1 for x in rows):
        outer, inner = first.shape[:axis].numel(), first.shape[axis + 1 :].numel()
        shape = (outer, first.shape[axis], inner)
        mask = None if mask is None else mask.reshape(outer, inner)
        return Laid(tuple(x.reshape(shape) for x in tensors), mask, True, items)
    if all(_viewable(x) for x in rows):
        rows = tuple(x.view(items.numel(), x.shape[-1]) for x in rows)
    return Laid(rows, mask, False, items)


def _viewable(x: Tensor) -> bool:
    """Whether (..., V) can be seen as (N, V) without a copy: each leading axis continues the next one."""
    if x.numel() == 0:
        return True
    sizes, strides = x.shape[:-1], x.stride()[:-1]
    outside_in = [(n, step) for n, step in zip(sizes, strides, strict=True) if n != 1]
    return all(a[1] == b[0] * b[1] for a, b in pairwise(outside_in))


def parts(
    tensors: Sequence[Tensor], mask: Tensor | None, maps: bool, chunk: int
) -> Iterator[tuple[tuple[Tensor, ...], Index, Index]]:
    """Walk the items: yields (a part of each tensor, where in (N, V) or (O, C, I), where in the items).

    Parts have the class axis at 1. Rows that a mask excludes are never read; in maps they are (and overwritten by the
    caller), because gathering single pixels across the class axis would cost more than it saves.
    """
    first = tensors[0]
    if maps:
        outer, classes, inner = first.shape
        width = max(1, min(inner, chunk // classes))
        height = max(1, chunk // (classes * width))
        for top in range(0, outer, height):
            for left in range(0, inner, width):
                o, i = slice(top, top + height), slice(left, left + width)
                yield tuple(x[o, :, i] for x in tensors), (o, slice(None), i), (o, i)
        return
    step = max(1, chunk // max(x.shape[-1] for x in tensors))
    lead = first.shape[:-1]
    if mask is None and first.dim() == 2:
        for start in range(0, lead[0], step):
            rows = slice(start, start + step)
            yield tuple(x[rows] for x in tensors), rows, rows
        return
    if mask is not None:
        index = mask.flatten().nonzero().squeeze(1)
    else:
        index = torch.arange(lead.numel(), device=first.device)
    for some in index.split(step):
        place = torch.unravel_index(some, lead) if len(lead) > 1 else (some,)
        yield tuple(x[place] for x in tensors), some, some


def buffers(count: int, like: Tensor, classes: int, chunk: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """`count` flat buffers, each for one part of `like`; `fit` gives them a part's shape."""
    size = min(like.numel(), max(chunk, classes))
    return tuple(torch.empty((count, size), dtype=dtype, device=like.device))


def fit(flat: Sequence[Tensor], part: Tensor) -> tuple[Tensor, ...]:
    """The beginnings of flat buffers in the shape of a part."""
    return tuple(buffer[: part.numel()].view(part.shape) for buffer in flat)


def scaled(part: Tensor, inverse: float, out: Tensor) -> Tensor:
    """part / T in the buffer's dtype; the part itself where that is already so."""
    if part.dtype != out.dtype:
        out.copy_(part)
        return out if inverse == 1.0 else out.mul_(inverse)
    return part if inverse == 1.0 else torch.mul(part, inverse, out=out)


def write(gradient: Tensor, where: Index, values: Tensor, factor: Tensor, hidden: Tensor | None) -> None:
    """gradient[where] = values * factor (spoiling `values`), each number of the result written once.

    Args:
        gradient: (N, V) or (O, C, I).
        where: as `parts` yields it.
        values: the part; a buffer.
        factor: one number per item, with an axis of length 1 for the classes.
        hidden: bool, like `factor`, items that receive 0 whatever `values` holds; None for none.
    """
    if isinstance(where, Tensor):
        gradient[where] = values.mul_(factor).to(gradient.dtype)
    elif hidden is not None:
        gradient[where] = values.mul_(factor).masked_fill_(hidden, 0.0).to(gradient.dtype)
    else:
        torch.mul(values, factor, out=gradient[where])
