"""Magnitude pruning of linear layers: which weights stay, and a way to keep the others at zero while training goes on.

Source: See et al. 2016 (arXiv 1606.09274), whose class-blind and class-uniform schemes are those of
harvardnlp/seq2seq-attn@2d36b43 prune.lua.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdzoo.errors import KdzooError

Scheme = Literal["blind", "uniform"]


def masks(model: nn.Module, share: float, scheme: Scheme) -> dict[str, Tensor]:
    """Which weights of the linear layers stay.

    Args:
        model: its linear layers are pruned, embeddings tied to one of them too; biases and norms are not.
        share: of the weights that go, in [0, 1).
        scheme: "blind": one threshold over all layers; "uniform": the same share of each layer.

    Returns:
        Name of a weight -> bool mask of its shape, True where it stays.
    """
    if not 0 <= share < 1:
        raise KdzooError(f"the share of pruned weights is {share}, expected at least 0 and below 1.")
    weights = {
        f"{name}.weight": part.weight.detach()
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear)
    }
    if not weights:
        raise KdzooError("there is no linear layer to prune. Choose another model.")
    if scheme == "uniform":
        return {name: _above(weight.abs(), share, weight.abs()) for name, weight in weights.items()}
    everything = torch.cat([weight.abs().flatten() for weight in weights.values()])
    return {name: _above(weight.abs(), share, everything) for name, weight in weights.items()}


def _above(sizes: Tensor, share: float, among: Tensor) -> Tensor:
    """Which sizes are above the smallest `share` of `among`."""
    count = int(share * among.numel())
    if not count:
        return torch.ones_like(sizes, dtype=torch.bool)
    return sizes > among.flatten().kthvalue(count).values


@torch.no_grad()
def cut(model: nn.Module, kept: dict[str, Tensor]) -> None:
    """Put the weights that do not stay to zero."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in kept.items():
        parameters[name].mul_(mask)


def hold_zeros(model: nn.Module) -> list[RemovableHandle]:
    """Give weights that are zero no gradient until the handles are removed.

    Without a gradient, and with a decay that multiplies, no optimiser of core's moves them.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    kept = zeros(model)
    return [parameters[name].register_hook(partial(torch.mul, mask)) for name, mask in kept.items()]


def zeros(model: nn.Module) -> dict[str, Tensor]:
    """The masks of a model that was pruned: where its linear weights are not zero."""
    return {
        f"{name}.weight": part.weight.detach() != 0
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear)
    }


def density(model: nn.Module) -> float:
    """Share of the linear weights that are not zero."""
    kept = zeros(model)
    return sum(int(mask.sum()) for mask in kept.values()) / sum(mask.numel() for mask in kept.values())
