"""What follows from the names of two image models before any weights are loaded: classes, layers, normalisation.

A task's `check_pair` asks here for each side. The models are built on torch's ``meta`` device, where tensors have
shapes and no values: that takes milliseconds, and no file is read.

Shapes: C channels, H x W pixels of a layer; the batch dimension is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from msgspec import structs

from kdzoo.cards import Side
from kdzoo.errors import KdzooError
from kdzoo_vision.models import MODELS, build


def side(
    name: str,
    *,
    in_channels: int,
    image_size: int,
    used_as_is: bool = False,
    **heads: Any,
) -> Side:
    """The facts of one side.

    Args:
        name: a model's name, as in the settings.
        in_channels, image_size: of its input.
        used_as_is: whether it is one of timm's pretrained models and not trained further: then it has the classes
            and expects the normalisation of its weights.
        heads: the other arguments of `kdzoo_vision.models.build`.
    """
    layers = _layers(name, in_channels, image_size, tuple(sorted(heads.items())))
    facts = Side(layers=layers, classes=heads["num_classes"])
    trained = _pretrained(name) if used_as_is else None
    if trained is None:
        return facts
    normalisation = words(trained.mean, trained.std)
    return structs.replace(facts, classes=trained.num_classes, normalisation=normalisation)


def words(mean: Sequence[float], std: Sequence[float]) -> str:
    """A normalisation as cards say it: ``mean 0.485 0.456 0.406, sd 0.229 0.224 0.225``."""
    return "mean {}, sd {}".format(*(" ".join(f"{value:.4g}" for value in part) for part in (mean, std)))


def _pretrained(name: str) -> Any:
    """timm's description of a model's weights; None for a model that is not timm's or has none."""
    if name in MODELS:
        return None
    import timm

    found = timm.get_pretrained_cfg(name.removeprefix("timm:"))
    return found if found is not None and found.has_weights else None


@lru_cache(maxsize=64)
def _layers(
    name: str, in_channels: int, image_size: int, heads: tuple[tuple[str, Any], ...]
) -> dict[str, list[int]] | None:
    """Features of a model by name, with their shapes; None where they cannot be told without values."""
    given = dict(heads)
    try:
        with torch.device("meta"), torch.no_grad():
            model = build(name, in_channels=in_channels, image_size=image_size, **given).eval()
            said = model(torch.empty(1, in_channels, image_size, image_size))
    except KdzooError:
        raise
    except (
        Exception
    ):  # some of timm's models look at values while they are built; then nothing is known of them
        return None
    return {feature: list(value.shape[1:]) for feature, value in said.features.items()}
