"""Weights that are small in magnitude, held at 0 while the others are trained on.

Only matrices of linear layers and embeddings are pruned; norms are not.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Masks:
    """Which weights of a model stay.

    Args:
        model: whose matrices are pruned, as they are now.
        share: of their entries that goes, in [0, 1).
        scope: "model" takes the smallest of all matrices together (class-blind), "matrix" the same share of each
            (class-uniform).
    """

    def __init__(self, model: nn.Module, share: float, scope: str) -> None:
        # A tied matrix is named once.
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.dim() == 2}
        self.kept: dict[str, Tensor] = {}
        sizes = {name: weight.detach().abs() for name, weight in self.weights.items()}
        whole = _threshold(torch.cat([size.flatten() for size in sizes.values()]), share)
        for name, size in sizes.items():
            self.kept[name] = size > (whole if scope == "model" else _threshold(size.flatten(), share))

    @torch.no_grad()
    def apply(self) -> None:
        """Set what goes to 0, in place."""
        for name, weight in self.weights.items():
            weight.mul_(self.kept[name])

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.kept)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.kept = {name: kept.to(self.weights[name].device) for name, kept in state.items()}


def _threshold(sizes: Tensor, share: float) -> Tensor:
    """The largest magnitude that goes; below all of them where nothing does."""
    count = int(share * sizes.numel())
    return sizes.kthvalue(count).values if count else sizes.new_tensor(-1.0)
