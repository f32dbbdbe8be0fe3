"""What must not change a training: how a step is split, whether the teacher was recorded, recomputed activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdzoo.artefacts import Store
from kdzoo.plan import Plan, Request, make_plan
from kdzoo.workers import Options, run_all

SMALL = ("steps=3", "labelled=32", "measured=4", "student=llama-xs", "warmup=0", "eval_every=0")


def trained(folder: Path, *changes: str, signals: str = "live") -> dict[str, torch.Tensor]:
    """The weights of token-kd's student on verses after three steps."""
    request = Request(
        "token-kd", task="verses", arms="token-kd", seeds=1, set=(*SMALL, *changes), signals=signals
    )
    plan: Plan = make_plan(request)
    fit = next(spec for spec in plan.runs[("token-kd", 0)] if spec.stage.name == "fit")
    made: dict[str, Any] = run_all({fit.key: fit}, Options(folder, jobs=0), lambda *_: None)[fit.key]
    assert "error" not in made, made["error"]
    return load_file(Store(folder).folder(fit.key) / "student.safetensors")


def gap(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return trained(tmp_path_factory.mktemp("whole"), "batch=8", "optimizer=sgd", "lr=0.1")


def test_eight_times_one_is_one_times_eight(tmp_path: Path, whole: dict[str, torch.Tensor]) -> None:
    """A mean of micro-batch means weighs the tokens of short verses more; over whole trajectories it would be seen."""
    split = trained(tmp_path, "batch=8", "optimizer=sgd", "lr=0.1", "accumulate=8")
    assert gap(whole, split) < 1e-6
    start = trained(tmp_path, "batch=8", "optimizer=sgd", "lr=0.0")
    assert gap(whole, start) > 1e-3


@pytest.mark.parametrize("signals", ["recorded", "top-k=999"])
def test_a_recorded_teacher_is_the_live_one(tmp_path: Path, signals: str) -> None:
    """With answers padded to one length a teacher's words can be read from disk; where 999 of 1,000 pieces are kept,
    what is left is the last one."""
    live = trained(tmp_path / "live", "batch=8", "pad=fixed")
    read = trained(tmp_path / "read", "batch=8", "pad=fixed", signals=signals)
    assert any((tmp_path / "read" / "signals").rglob("*.safetensors")), "the teacher was asked live"
    assert gap(live, read) < (
        1e-6 if signals == "recorded" else 5e-3
    )  # the top-k's are kept in half precision
