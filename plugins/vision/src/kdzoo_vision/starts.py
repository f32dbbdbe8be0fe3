"""Where a student starts: between its own random weights and a teacher's; and what its batch norms then know.

Also the layers at which two nets of one architecture are compared.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def interpolated(
    random: Mapping[str, Tensor], taught: Mapping[str, Tensor], *, random_share: float
) -> dict[str, Tensor]:
    """A state between two of the same architecture: ``share * random + (1 - share) * taught``, entry by entry.

    Running means and variances are interpolated too; whole numbers (batches that a norm has seen) are the teacher's.

    Args:
        random: the student's own first state.
        taught: the teacher's state, of the same names and shapes.
        random_share: lambda; 0 gives the teacher, 1 the random student.

    Raises:
        ValueError: names or shapes differ, so there is nothing between the two.

    Source: samuelstanton/gnosis@7a40c5d gnosis/utils/initialization.py:interpolate_net.
    """
    wrong = [name for name in {*random, *taught} if _shape(random, name) != _shape(taught, name)]
    if wrong:
        name = min(wrong)
        raise ValueError(
            f"states: {name} has shape {_shape(random, name)} in the student and {_shape(taught, name)} in the "
            "teacher; expected one architecture, or no weights lie between the two"
        )
    found = {}
    for name, own in random.items():
        other = taught[name].to(own.device)
        found[name] = torch.lerp(other, own, random_share) if own.is_floating_point() else other.clone()
    return found


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """All batch norms by name, in the order of the modules."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


@torch.no_grad()
def estimate_batch_norms(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Running means and variances measured anew: the average over the batches, each seen in training mode.

    The modes of the modules come back; no batch at all leaves the statistics as they were.

    Source: samuelstanton/gnosis@7a40c5d goes over the data once with the usual momentum, from interpolated statistics;
    the plain average forgets them whatever the number of batches.
    """
    norms = batch_norms(model)
    if not norms:
        return
    modes = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms.values()}
    try:
        for k, images in enumerate(batches):
            model.train()  # for each batch: whoever makes them may change modes
            for norm in norms.values():
                if not k:
                    norm.reset_running_stats()
                norm.momentum = None  # a cumulative average
            model(images)
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode


def freeze_batch_norms(model: nn.Module) -> None:
    """Batch norms use their running statistics and keep them; scales and shifts go on learning.

    To be said again after every ``model.train()``.
    """
    for norm in batch_norms(model).values():
        norm.training = False


@contextmanager
def pre_activations(model: nn.Module) -> Generator[dict[str, list[Tensor]]]:
    """What every batch norm gives while the context lasts, averaged over positions: name -> list of (B, C).

    The average is taken inside the hook: the ReLU that follows may change the map in place.
    """
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str, value: Tensor) -> None:
        seen.setdefault(name, []).append(value.flatten(2).mean(2) if value.dim() > 2 else value.clone())

    handles = [
        norm.register_forward_hook(lambda _, inputs, value, name=name: keep(name, value))
        for name, norm in batch_norms(model).items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
