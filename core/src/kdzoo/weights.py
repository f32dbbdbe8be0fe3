"""Where the trained weights lie while a run trains: whole in every process, unless an engine shares them among ranks.

Core asks ``run.weights`` wherever it looks at them: for a validation, and for a checkpoint. An engine that shares puts
an object of its own there while it trains; checkpoints hold whole tensors in either case.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.optim import Optimizer

_NOTHING = nullcontext()


class Weights:
    """Weights and optimiser state that are whole in every process."""

    def whole(self) -> AbstractContextManager[None]:
        """Inside, ``run.models`` are plain modules with whole weights, to be read. Every rank must enter."""
        return _NOTHING

    def agreed(self, *wishes: bool) -> tuple[bool, ...]:
        """What the ranks do at this step, where they must do it together; every rank must ask."""
        return wishes

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state for a checkpoint, whole on rank 0; every rank must ask."""
        return optimizer.state_dict()

    def give_optimizer_state(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Put back a state of a checkpoint."""
        optimizer.load_state_dict(state)
