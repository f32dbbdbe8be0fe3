"""What the engine does beyond the promises of every engine: tokens as units, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdzoo.artefacts import Store
from kdzoo.errors import KdzooError
from kdzoo.plan import Request, make_plan
from kdzoo.workers import Options, run_all
from kdzoo_llm.engine import refuse_launchers


def trained(home: Path, *settings: str) -> dict[str, torch.Tensor]:
    """Weights of a student of rule-reading after two steps of eight prompts."""
    common = ("student=llama-xs", "steps=2", "batch=8", "warmup=0", "val_answers=2", "clip=0", "labelled=200")
    request = Request("token-kd", task="rule-reading", arms="student", seeds=1, set=(*common, *settings))
    plan = make_plan(request)
    spec = next(one for one in plan.runs[("student", 0)] if one.stage.name == "fit")
    made = run_all({spec.key: spec}, Options(home, 0), lambda *event: None)[spec.key]
    assert "error" not in made, made
    return load_file(Store(home).folder(spec.key) / "student.safetensors")


def test_one_token_weighs_the_same_however_the_batch_is_cut(tmp_path: Path) -> None:
    """Means of micro-batches, in which the tokens of short answers weigh more."""
    whole = trained(tmp_path / "whole")
    cut = trained(tmp_path / "cut", "accumulate=8")
    assert max(float((whole[name] - cut[name]).abs().max()) for name in whole) < 1e-6


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_sharded_models_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that holds one rank's piece of the weights."""
    monkeypatch.setenv(name, "true")
    with pytest.raises(KdzooError, match=r"whole models.*torchrun"):
        refuse_launchers()
