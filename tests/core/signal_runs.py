"""Runs of the toy task under recorded signals, for the tests of signals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdzoo import fit
from kdzoo.artefacts import Store
from kdzoo.method import Role
from kdzoo.runs import Run
from kdzoo.testing import toy

ROLES = (Role("student"), Role("teacher", "frozen", seed=1))


class Open:
    """Runs of the toy task with an augmented labelled stream and an unlabelled one that always looks the same."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0

    def __call__(
        self, signals: str = "recorded", add: Sequence[Any] = (toy.SoftLabels(),), **options: Any
    ) -> Run:
        self.count += 1
        plain = {"roles": ROLES, "streams": ("train", "pool"), "method": False, "fixed": ("pool",)}
        run = toy.run(self.root / f"run-{self.count}", signals=signals, add=add, **{**plain, **options})
        run.store = Store(self.root)
        return run


def trained(run: Run) -> dict[str, Tensor]:
    fit.fit_stage(run)
    return {name: value.clone() for name, value in run.models["student"].state_dict().items()}


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    return all(torch.allclose(value, other[name], rtol=0, atol=tolerance) for name, value in one.items())


def said(run: Run, view: str = "image", role: str = "teacher") -> dict[str, Any]:
    return run.facts["signals"][f"{role}/{view}"]
