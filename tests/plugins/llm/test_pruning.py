"""Pruning by magnitude: masks by hand, tied weights, rounds, and zeros that stay."""

from __future__ import annotations

import torch
from torch import nn

from kdzoo_llm import pruning


class Tied(nn.Module):
    """A head that is tied to its embedding, and a layer with large weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 2)
        self.inner, self.head = nn.Linear(2, 2), nn.Linear(2, 4, bias=False)
        self.head.weight = self.embedding.weight
        with torch.no_grad():
            self.head.weight.copy_(torch.arange(1.0, 9).view(4, 2))
            self.inner.weight.copy_(torch.tensor([[10.0, -20.0], [30.0, -40.0]]))


def test_masks_by_hand() -> None:
    """Would catch a sign that counts, tied weights that count twice, and one scheme in the other's place."""
    model = Tied()
    blind = pruning.masks(model, 0.5, "blind")
    assert {name: int(mask.sum()) for name, mask in blind.items()} == {"inner.weight": 4, "head.weight": 2}
    uniform = pruning.masks(model, 0.5, "uniform")
    assert uniform["inner.weight"].tolist() == [[False, False], [True, True]]
    assert int(uniform["head.weight"].sum()) == 4
    pruning.cut(model, blind)
    assert model.embedding.weight.tolist() == [[0, 0], [0, 0], [0, 0], [7, 8]]
    assert pruning.density(model) == 0.5
    assert all(mask.all() for mask in pruning.masks(model, 0.0, "blind").values())


def test_rounds_go_on_from_one_another() -> None:
    """Would catch a round that revives what an earlier one has cut."""
    model = Tied()
    before = pruning.masks(model, 0.25, "blind")
    pruning.cut(model, before)
    after = pruning.masks(model, 0.5, "blind")
    assert not any((after[name] & ~before[name]).any() for name in after)


def test_zeros_stay_zero_under_decay_and_momentum_until_released() -> None:
    """Would catch an optimiser that moves what was cut."""
    torch.manual_seed(0)
    model = Tied()
    pruning.cut(model, pruning.masks(model, 0.5, "blind"))
    held = pruning.hold_zeros(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model.head(model.inner(model.embedding(torch.tensor([0, 3])))).square().sum().backward()
        optimizer.step()
    assert pruning.density(model) == 0.5
    for handle in held:
        handle.remove()
    optimizer.zero_grad()
    model.head(model.inner(model.embedding(torch.tensor([0, 3])))).square().sum().backward()
    optimizer.step()
    assert pruning.density(model) > 0.5
