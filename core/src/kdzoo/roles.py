"""Build the models of a stage's roles and give them their weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from kdzoo import catalog
from kdzoo.artefacts import file_hash
from kdzoo.errors import KdzooError
from kdzoo.method import Role
from kdzoo.rng import mix

if TYPE_CHECKING:
    from kdzoo.runs import Run


def build(run: Run) -> dict[str, str]:
    """Fill ``run.models`` in the order of the roles; returns the hash of each role's first weights.

    Each role is built under a seed of its own, made of the run's seed and the role's name.
    """
    hashes = {}
    for role in run.roles.values():
        built_as = role.source.removeprefix("init:") if role.source.startswith("init:") else role.name
        torch.default_generator.manual_seed(
            mix(run.seed if role.seed is None else role.seed, "init", role.name)
        )
        model = run.hook.build_model(run=run, role=built_as)
        if model is None:
            raise KdzooError(
                f"no plugin builds the role {built_as!r} for task {run.task.slug!r}: neither the task nor the method "
                "answered build_model for it. Check [roles] in the method's card."
            )
        if path := weights_path(run, role):
            load_weights(model, path, role)
        model = model.to(run.device)
        if role.kind != "train":
            model.eval().requires_grad_(False)
        hashes[role.name] = state_hash(model)
        run.models[role.name] = model
    return hashes


def weights_path(run: Run, role: Role) -> Path | None:
    """Where a role's weights are to be read, or None for a role that starts as it was built."""
    if role.source.startswith("init") or role.source == "random":
        return None
    if role.source.startswith("stage:"):
        stage, _, name = role.source.removeprefix("stage:").partition("/")
        return run.inputs[stage] / f"{name or 'student'}.safetensors"
    if role.source != "task":
        raise KdzooError(
            f"role {role.name!r}: source {role.source!r} is none of init, init:ROLE, random, task, stage:NAME"
        )
    if "teacher" in run.inputs:
        return run.inputs["teacher"] / "student.safetensors"
    teacher = run.task.teacher
    if teacher is None or not teacher.file:
        raise KdzooError(
            f"task {run.task.slug!r} has no teacher, but the role {role.name!r} asks for the task's"
        )
    path = catalog.load().paths[run.task.slug].parent / teacher.file
    if not path.exists():
        raise KdzooError(f"the teacher's weights {path} are missing: reinstall the distribution of this task")
    found = file_hash(path)
    if found != teacher.sha256:
        raise KdzooError(
            f"the teacher's weights {path.name} have sha256 {found[:16]}..., the card says {teacher.sha256[:16]}...: "
            "the file is damaged or another version's, and results would be another teacher's. Reinstall the package."
        )
    return path


def load_weights(model: nn.Module, path: Path, role: Role) -> None:
    """Load a safetensors file into a model, strictly; what does not fit is one message."""
    try:
        load_model(model, str(path), strict=True)
    except FileNotFoundError as error:
        raise KdzooError(
            f"role {role.name!r}: {path} is missing; run the stage that makes it again"
        ) from error
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise KdzooError(
            f"role {role.name!r}: the weights in {path.name} do not fit the model that was built ({reason}). "
            "The model's settings must be those the weights were trained with."
        ) from error


def save_weights(run: Run) -> None:
    """Write the weights of every role that this stage trains or moves."""
    from kdzoo.artefacts import disk_errors

    for name, role in run.roles.items():
        if role.kind != "frozen":
            with disk_errors(run.folder):
                try:
                    save_model(run.models[name], str(run.folder / f"{name}.safetensors"))
                except SafetensorError as error:  # safetensors wraps what the disk said
                    raise OSError(
                        28 if "os error 28" in str(error) else 5, str(error), str(run.folder)
                    ) from error


def state_hash(model: nn.Module) -> str:
    """sha256 over names, shapes and values of a model's state."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
