"""Counter-based seeds: every random number is a function of where it is used, never of what was drawn before.

A seed is made by mixing (run seed, stage, step, micro-step, purpose). So an arm that draws more random numbers moves
nothing else, a resumed run needs no saved generator state, and workers can draw in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014
_MULTIPLY_1 = 0xBF58476D1CE4E5B9
_MULTIPLY_2 = 0x94D049BB133111EB


@lru_cache(maxsize=4096)
def word(text: str) -> int:
    """64 bits that stand for a string; equal in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(*parts: int | str | None) -> int:
    """One 63-bit seed out of several numbers and words; the order matters."""
    state = 0
    for part in parts:
        value = word(part) if isinstance(part, str) else (-1 if part is None else part)
        state = _round(state, value)
    return state >> 1  # torch takes a signed 64-bit seed


def extend(seed: int, part: int) -> int:
    """One 63-bit seed out of a seed and one more number: what a training step can afford."""
    return _round(seed, part) >> 1


def _round(state: int, value: int) -> int:
    state = (state + _GOLDEN + value) & _MASK
    state = ((state ^ (state >> 30)) * _MULTIPLY_1) & _MASK
    state = ((state ^ (state >> 27)) * _MULTIPLY_2) & _MASK
    return state ^ (state >> 31)


def id_words(ids: Sequence[str]) -> Tensor:
    """(N,) int64: one word per sample id."""
    import torch

    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    return (
        torch.frombuffer(bytearray(digests), dtype=torch.int64) if ids else torch.empty(0, dtype=torch.int64)
    )


def sample_seeds(base: int, words: Tensor) -> Tensor:
    """(B,) non-negative int64 seeds out of a base seed and the samples' words: splitmix64, vectorised."""
    state = words + _signed(base)
    for shift, multiply in ((30, _MULTIPLY_1), (27, _MULTIPLY_2)):
        state = (state ^ _logical_shift(state, shift)) * _signed(multiply)
    return _logical_shift(state ^ _logical_shift(state, 31), 1)


def _signed(value: int) -> int:
    """The int64 that has the same 64 bits."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _logical_shift(value: Tensor, bits: int) -> Tensor:
    """Shift right without the sign: torch shifts int64 arithmetically."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def uniforms(seeds: Tensor, draws: int) -> np.ndarray:
    """Independent numbers for each sample, as a function of its seed: what augmentation draws from.

    Draw k of a sample is SplitMix64 of (seed, k): the same numbers in each thread, process and library version, at a
    few vector operations for a whole batch.

    Args:
        seeds: (B,) int64, any values.
        draws: how many numbers a sample gets.

    Returns:
        (B, draws) float64 in [0, 1), multiples of 2^-53.
    """
    import numpy as np

    # A mixed seed first: SplitMix64 streams of seeds that differ by a multiple of the golden gamma would overlap.
    start = splitmix(seeds.numpy().astype(np.int64).view(np.uint64))
    steps = np.arange(draws, dtype=np.uint64) * np.uint64(_GOLDEN)
    bits = splitmix(start[:, None] + steps[None, :])
    found: np.ndarray = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return found


def splitmix(state: np.ndarray) -> np.ndarray:
    """SplitMix64's output for each state: uint64 in, uint64 out, a bijection."""
    import numpy as np

    z = state + np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MULTIPLY_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MULTIPLY_2)
    moved: np.ndarray = z ^ (z >> np.uint64(31))
    return moved
