"""The Trainer as an engine: what it promises core."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdzoo.errors import KdzooError
from kdzoo.testing import toy
from kdzoo.testing.engines import check_engine
from kdzoo_llm.engine import _arguments, fit


def test_it_keeps_every_promise() -> None:
    """A Trainer that seeds, fetches ahead or divides on its own would train something else than core's loop."""
    check_engine(fit)


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_who_would_own_the_weights_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of core's would hold a part of the weights only."""
    monkeypatch.setenv(name, "true")
    with pytest.raises(KdzooError, match=f"{name} is set.*set shard=true"):
        fit(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_trainer_has_the_precision_of_the_device(tmp_path: Path, dtype: str) -> None:
    """accelerate refuses a second precision in one process: the stage after `fit` could not open its device."""
    run = toy.run(tmp_path)
    run.device_info = replace(run.device_info, dtype=dtype, accelerator=object())
    assert _arguments(run, str(tmp_path), 1, 0.0).bf16 == (dtype == "bfloat16")
