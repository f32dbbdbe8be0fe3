"""Weights from local files: a whole segmentation model, or a backbone trained on ImageNet, in mmseg's names.

Files may be safetensors, or checkpoints of torch that hold nothing but tensors and plain values: they are read with
``weights_only=True``, so no code in them runs. Checkpoints of OpenMMLab may hold more in their "meta"; such a file is
refused: reading it would mean to run what is in it.
"""

from __future__ import annotations

import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kdzoo.artefacts import file_hash
from kdzoo.errors import KdzooError
from kdzoo_segmentation.models import Segmentor

CLASSIFIERS = ("fc.", "head.", "classifier.")  # of networks trained on ImageNet: a backbone has none


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU; "state_dict" or "model" of a checkpoint, without "module.".

    Raises:
        KdzooError: no such file, or one that cannot be read without running code from it.
    """
    if not path.is_file():
        raise KdzooError(
            f"the weights {path} are not there: expected a file, .safetensors or .pth. Without it the model would "
            "start from random numbers. Put the path right, or leave the setting empty to start so on purpose."
        )
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise KdzooError(
            f"{path} holds more than tensors ({_first_line(error)}), so reading it would run code from it. "
            "Take a file with tensors alone: whoever made it can save its state_dict with "
            "safetensors.torch.save_file(state_dict, 'weights.safetensors')."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise KdzooError(
            f"{path} cannot be read as weights ({_first_line(error)}): get the file again."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {
        str(name).removeprefix("module."): value
        for name, value in (content.items() if isinstance(content, dict) else ())
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise KdzooError(f"{path} holds no tensors by name: expected a state_dict, or a checkpoint with one.")
    return tensors


def _first_line(error: Exception) -> str:
    said = str(error).strip().splitlines()
    return said[0][:200] if said else type(error).__name__


def load_whole(model: Segmentor, path: Path) -> None:
    """Fill a segmentation model with weights of mmseg (backbone.*, decode_head.*) or of kdzoo (net.*).

    Raises:
        KdzooError: a file that cannot be read, or weights of another model or of other classes.
    """
    found = read(path)
    if not any(name.startswith("net.") for name in found):
        found = {f"net.{name}": value for name, value in found.items()}
    _fill(model, found, path, "the model")


def load_backbone(model: Segmentor, path: Path) -> None:
    """Fill the backbone with weights trained on ImageNet; their classifier is left out.

    Raises:
        KdzooError: a file that cannot be read, or weights of another backbone.
    """
    found = read(path)
    if any(name.startswith("backbone.") for name in found):  # mmpretrain's checkpoints
        found = {name: value for name, value in found.items() if name.startswith("backbone.")}
    plain = {name.removeprefix("backbone."): value for name, value in found.items()}
    kept = {name: value for name, value in plain.items() if not name.startswith(CLASSIFIERS)}
    backbone = model.net.backbone
    assert isinstance(backbone, nn.Module)
    _fill(backbone, kept, path, "the backbone")


def _fill(model: nn.Module, found: dict[str, Tensor], path: Path, what: str) -> None:
    own = model.state_dict()
    problems = {
        "missing": sorted(own.keys() - found.keys()),
        "not in it": sorted(found.keys() - own.keys()),
        "of another shape": [
            f"{name} {tuple(found[name].shape)} for {tuple(own[name].shape)}"
            for name in sorted(own.keys() & found.keys())
            if own[name].shape != found[name].shape
        ],
    }
    if any(problems.values()):
        said = "; ".join(
            f"{len(names)} {kind}, such as {', '.join(names[:2])}"
            for kind, names in problems.items()
            if names
        )
        raise KdzooError(
            f"the weights in {path} are not {what}'s: {said}. A part of it would stay random. Take weights of the "
            "architecture and the classes that the settings name."
        )
    model.load_state_dict(found)


def fingerprint(path: str) -> str:
    """sha256 of a file named in the settings; "" for none. What is trained from it depends on what is in it."""
    if not path:
        return ""
    place = Path(path)
    if not place.is_file():
        read(place)  # says what is wrong
    about = place.stat()
    return _hash(place, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=16)
def _hash(place: Path, size: int, changed: int) -> str:
    return file_hash(place)
