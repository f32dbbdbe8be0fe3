"""The Trainer as an engine: what it promises core."""

from __future__ import annotations

import pytest

from kdzoo.errors import KdzooError
from kdzoo.testing.engines import check_engine
from kdzoo_llm.engine import fit


def test_it_keeps_every_promise() -> None:
    """A Trainer that seeds, fetches ahead or divides on its own would train something else than core's loop."""
    check_engine(fit)


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_who_would_own_the_weights_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of core's would hold a part of the weights only."""
    monkeypatch.setenv(name, "true")
    with pytest.raises(KdzooError, match=f"{name} is set"):
        fit(None)  # type: ignore[arg-type]
