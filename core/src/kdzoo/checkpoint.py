"""Checkpoints: a run's whole state, written so that a crash at any moment leaves a whole one behind.

The state is in ``checkpoint-<step>.pt``; ``checkpoint.json`` names it with its hash and is replaced last. Random
state is not in it: seeds are functions of the step (`kdzoo.rng`), as is the data order.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import time
from typing import TYPE_CHECKING, Any

import torch

from kdzoo.artefacts import disk_errors, dump_json, write_atomic
from kdzoo.errors import KdzooError

if TYPE_CHECKING:
    from pathlib import Path

    from kdzoo.runs import Run

POINTER = "checkpoint.json"


def save(run: Run, optimizer: dict[str, Any] | None) -> None:
    """Write the state after ``run.step`` whole steps, the optimiser's being `optimizer`, then drop the older one."""
    run.cost.seconds += run.seconds()
    run.restart_clock()
    kept = {name: thing.state_dict() for name, thing in run.kept.items()}
    state = {
        "step": run.step,
        "models": {
            name: run.models[name].state_dict() for name, role in run.roles.items() if role.kind != "frozen"
        },
        "optimizer": optimizer,
        "kept": kept,
        "books": run.books(),
    }
    if run.kept and not run.saving_seconds:  # once: better at the first checkpoint than when it is needed
        _check_kept(run, kept)
    content = _packed(state)
    name = f"checkpoint-{run.step}.pt"
    digest = write_atomic(run.folder / name, content)
    write_atomic(run.folder / POINTER, dump_json({"file": name, "sha256": digest, "saved_at": time.time()}))
    with disk_errors(run.folder):
        for old in run.folder.glob("checkpoint-*.pt"):
            if old.name != name:
                old.unlink(missing_ok=True)


def _packed(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _check_kept(run: Run, kept: dict[str, Any]) -> None:
    """What a method keeps must be of types that can be read back without running code."""
    for name, values in kept.items():
        try:
            torch.load(io.BytesIO(_packed(values)), weights_only=True)
        except pickle.UnpicklingError as error:
            raise TypeError(
                f"run.keep({name!r}) in arm {run.arm!r}: its state_dict() got types other than tensors, numbers, "
                f"strings and containers of them, so a checkpoint could not be read back: {str(error).splitlines()[-1]}"
            ) from error


def load(folder: Path) -> dict[str, Any] | None:
    """The state to go on from, or None if there is none. A damaged one is refused."""
    pointer = folder / POINTER
    if not pointer.exists():
        return None
    try:
        said = json.loads(pointer.read_bytes())
        content = (folder / said["file"]).read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != said["sha256"]:
            raise KdzooError(
                f"the checkpoint {folder / said['file']} is damaged: sha256 {found[:16]}..., written with "
                f"{said['sha256'][:16]}...; going on from it would give other results. Start this stage again with "
                "--no-resume."
            )
        state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except (OSError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise KdzooError(
            f"the checkpoint in {folder} cannot be read ({why}). Start this stage again with --no-resume."
        ) from error
    return state


def restore(run: Run, state: dict[str, Any]) -> None:
    """Put models and books back; optimiser and kept things take theirs when they are made."""
    for name, values in state["models"].items():
        run.models[name].load_state_dict(values)
    run.step = state["step"]
    books = state["books"]
    for name, value in books["cost"].items():
        setattr(run.cost, name, value)
    run.curves.update(books["curves"])
    run.logs.update(books["logs"])
    run.restored = state
