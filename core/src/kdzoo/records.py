"""The record of a bench: one JSON file with everything needed to judge it and to repeat it."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import msgspec

from kdzoo.artefacts import dump_json, write_atomic
from kdzoo.errors import KdzooError

SCHEMA = 1


class RunRow(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One arm at one seed (None: shared by all seeds). Metric values are fractions."""

    arm: str
    seed: int | None
    status: Literal["done", "failed", "refused"]
    init_hash: str | None = None
    order_hash: str | None = None
    steps: int = 0
    examples: int = 0
    metrics: dict[str, dict[str, Any]] = {}
    curves: dict[str, list[tuple[int, float]]] = {}
    losses: dict[str, list[tuple[int, float]]] = {}
    items: str | None = None
    cost: dict[str, Any] = {}
    ships: dict[str, dict[str, Any]] = {}
    reliability: dict[str, dict[str, Any]] = {}
    warnings: list[str] = []


class Record(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """docs/records.md describes every field. `config_hash` covers what can change a number, no times, no hosts."""

    schema: int = SCHEMA
    id: dict[str, Any]
    command: str
    config: dict[str, Any]
    config_hash: str
    env: dict[str, Any]
    data: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    stages: dict[str, dict[str, Any]]
    runs: list[RunRow]
    comparisons: list[dict[str, Any]]
    claims: list[dict[str, Any]]
    paper: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    made_at: str

    def row(self, arm: str, seed: int | None) -> RunRow | None:
        return next((row for row in self.runs if row.arm == arm and row.seed == seed), None)


def to_json(record: Record) -> bytes:
    """The record as readable JSON, keys sorted."""
    return dump_json(msgspec.to_builtins(record))


def write(record: Record, path: Path) -> None:
    write_atomic(path, to_json(record))


def read(path: Path) -> Record:
    """Read a record and check its form."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except OSError as error:
        raise KdzooError(
            f"cannot read the record {path}: {error.strerror}. Name a record.json of a bench."
        ) from error
    except msgspec.DecodeError as error:
        raise KdzooError(
            f"{path} is no record of schema {SCHEMA}: {error}. Make it again with kdzoo bench."
        ) from error


def environment(device: str, dtype: str, threads: int) -> dict[str, Any]:
    """Versions and hardware."""
    import torch

    names = ["kdzoo", "torch", "accelerate", "numpy", "safetensors"]
    names += [dist.name for dist in metadata.distributions() if dist.name.startswith("kdzoo-")]
    packages = {}
    for name in sorted({*names, "timm", "torchvision"}):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "packages": packages,
        "python": platform.python_version(),
        "hardware": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else None,
        },
        "threads": threads,
        "dtype": dtype,
        "device": device,
        "commit": commit(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the checkout this code runs from, with ``+`` for uncommitted changes; None outside a checkout."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def now() -> str:
    """UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
