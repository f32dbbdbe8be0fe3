"""Centered kernel alignment: how alike two representations of the same samples are, whatever their widths.

Legend: N samples, D1 and D2 widths. 0 (unrelated) to 1 (equal up to rotation and one scale). Biased upwards where
widths are large against N: compare values at the same N only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdzoo.losses.vocabulary import accumulation_dtype


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """CKA with the linear kernel.

    Formula, columns centered: ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F). Computed from Gram matrices over samples or
    over widths, whichever is smaller. Keeps the graph.

    Args:
        x: (N, D1), N >= 2.
        y: (N, D2).

    Returns:
        A scalar between 0 and 1; 0 where one side does not vary at all, since nothing can then be said.

    Raises:
        ValueError: not two matrices over the same samples.

    Source: Kornblith et al. 2019, arXiv 1905.00414, equation 6.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
        >>> round(linear_cka(x, 3 * x.flip(1)).item(), 4)  # rotated and scaled
        1.0
    """
    _check(x, y)
    dtype = accumulation_dtype(x, y)
    x, y = (side.to(dtype) - side.to(dtype).mean(0) for side in (x, y))
    if max(x.shape[1], y.shape[1]) > x.shape[0]:
        return _alignment(x @ x.T, y @ y.T)
    cross = (y.T @ x).square().sum()
    return _ratio(cross, (x.T @ x).norm() * (y.T @ y).norm())


def kernel_cka(x: Tensor, y: Tensor) -> Tensor:
    """CKA with a Gaussian kernel whose squared bandwidth is the median of each side's squared distances above zero.

    Formula: K_ij = exp(-|x_i - x_j|^2 / (2 sigma^2)), L likewise; <HKH, HLH>_F / (||HKH||_F ||HLH||_F) with
    H = I - 1/N. No gradient flows through the bandwidth. Time and memory grow with N^2.

    Arguments, result and errors as in `linear_cka`.

    Source: Kornblith et al. 2019, arXiv 1905.00414, equation 4 and section 3; the median as in
    samuelstanton/gnosis@7a40c5d cka/CKA.py.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> round(kernel_cka(x, -2 * x).item(), 4)  # the bandwidth follows the scale
        1.0
    """
    _check(x, y)
    return _alignment(_centered(_gaussian(x)), _centered(_gaussian(y))).to(accumulation_dtype(x, y))


def _gaussian(x: Tensor) -> Tensor:
    # float64: squared distances as differences of large numbers lose what is near
    points = x.double() - x.double().mean(0)
    squares = points.square().sum(1)
    distance = (squares.unsqueeze(1) + squares - 2 * points @ points.T).clamp_min(0)
    distance = distance - torch.diag(distance.diagonal())
    positive = distance.detach()[distance.detach() > 0].sort().values
    if not len(positive):
        return torch.ones_like(distance)
    # Even counts: the mean of the two middle values, where torch.median takes the lower one.
    median = (positive[(len(positive) - 1) // 2] + positive[len(positive) // 2]) / 2
    return torch.exp(-distance / (2 * median))


def _centered(gram: Tensor) -> Tensor:
    return gram - gram.mean(0, keepdim=True) - gram.mean(1, keepdim=True) + gram.mean()


def _alignment(one: Tensor, other: Tensor) -> Tensor:
    return _ratio((one * other).sum(), one.norm() * other.norm())


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below.clamp_min(torch.finfo(below.dtype).tiny), 0.0)


def _check(x: Tensor, y: Tensor) -> None:
    if x.dim() != 2 or y.dim() != 2 or x.shape[0] != y.shape[0] or x.shape[0] < 2:
        raise ValueError(
            f"x, y: got shapes {tuple(x.shape)} and {tuple(y.shape)}, expected (N, D1) and (N, D2) with the same "
            "N >= 2 samples; average feature maps over their positions first"
        )
