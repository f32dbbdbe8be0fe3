"""Learning rates by step, and the parameters that have their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdzoo.errors import KdzooError
from kdzoo.fit import fit_stage, learning_rate
from kdzoo.hookspecs import hookimpl
from kdzoo.method import Batch
from kdzoo.parameter_groups import parameter_groups
from kdzoo.runs import Run
from kdzoo.settings import Settings
from kdzoo.testing import toy


def test_poly_is_the_recursion_of_mmengine() -> None:
    """mmengine's PolyLR multiplies the last rate step by step; a formula that only begins and ends alike would pass."""
    steps, base, least, power = 40, 0.01, 1e-4, 0.9
    cfg = {"lr": base, "schedule": "poly", "power": power, "min_lr": least}
    rate = base
    for step in range(steps):
        assert learning_rate(cfg, step, steps) == pytest.approx(rate)
        rate = (rate - least) * (1 - 1 / (steps - step)) ** power + least
    assert learning_rate(cfg, steps, steps) == pytest.approx(least)
    assert learning_rate(cfg, steps + 3, steps) == pytest.approx(least)  # no root of a negative number


def test_poly_after_a_warm_up() -> None:
    """The fall is spread over the steps after the warm-up."""
    cfg = {"lr": 1.0, "schedule": "poly", "power": 1.0, "warmup": 10}
    assert [learning_rate(cfg, step, 30) for step in (0, 9, 10, 20, 30)] == pytest.approx(
        [0.1, 1.0, 1.0, 0.5, 0.0]
    )


def test_an_unknown_schedule() -> None:
    """A misspelt name that trains at a constant rate."""
    with pytest.raises(KdzooError, match="expected constant, cosine, poly or steps"):
        learning_rate({"lr": 1.0, "schedule": "polly"}, 0, 10)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
        self.decode_head = nn.Linear(3, 2)
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def named(cfg: dict[str, Any]) -> dict[tuple[float, float | None], set[str]]:
    """(lr_scale, weight_decay) of each group -> names in it."""
    net = Net()
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {
        (group.get("lr_scale", 1.0), group.get("weight_decay")): {names[id(p)] for p in group["params"]}
        for group in parameter_groups(cfg, "student", net)
    }


ALL = {
    "body.0.weight",
    "body.0.bias",
    "body.1.weight",
    "body.1.bias",
    "decode_head.weight",
    "decode_head.bias",
}


@pytest.mark.parametrize(
    ("cfg", "expected"),
    [
        ({}, {(1.0, None): ALL}),
        ({"lr_scale": 10.0, "lr_scale_of": [], "no_decay_of": []}, {(1.0, None): ALL}),
        (
            {"lr_scale": 10.0, "lr_scale_of": ["head"]},
            {
                (1.0, None): {name for name in ALL if "head" not in name},
                (10.0, None): {name for name in ALL if "head" in name},
            },
        ),
        (
            {"no_decay_of": ["body.1"]},
            {
                (1.0, None): {name for name in ALL if "body.1" not in name},
                (1.0, 0.0): {"body.1.weight", "body.1.bias"},
            },
        ),
        (
            {"no_decay_vectors": True, "lr_scale": 2.0, "lr_scale_of": ["head"]},
            {
                (1.0, None): {"body.0.weight"},
                (1.0, 0.0): {"body.0.bias", "body.1.weight", "body.1.bias"},
                (2.0, None): {"decode_head.weight"},
                (2.0, 0.0): {"decode_head.bias"},
            },
        ),
    ],
)
def test_parameters_are_set_apart(
    cfg: dict[str, Any], expected: dict[tuple[float, float | None], set[str]]
) -> None:
    """A parameter in no group or in two; a frozen one that is trained; heads at the backbone's rate."""
    assert named(cfg) == expected


class Rates:
    """An extension that notes the rates of both groups after each step."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    @hookimpl
    def after_step(self, run: Run, batch: Batch) -> None:
        assert run.current_optimizer is not None
        self.rates.append(sorted({group["lr"] for group in run.current_optimizer.param_groups}))


def test_a_scaled_rate_follows_the_schedule(tmp_path: Path) -> None:
    """The factor must hold at the first step and at every other."""
    run, seen = toy.run(tmp_path, settings={"steps": 4}), Rates()
    changed = {
        "schedule": "poly",
        "power": 1.0,
        "lr": 0.1,
        "warmup": 0,
        "lr_scale": 10.0,
        "lr_scale_of": ["bias"],
    }
    run.cfg = Settings({**run.cfg, **changed})
    run.manager.register(seen, "rates")
    fit_stage(run)
    assert seen.rates == [pytest.approx([0.1 * left, left]) for left in (1.0, 0.75, 0.5, 0.25)]
