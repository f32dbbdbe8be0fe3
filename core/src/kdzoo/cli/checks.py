"""Core's checks for ``kdzoo doctor``: each returns one line, or raises with the remedy."""

from __future__ import annotations

import os
import platform
import shutil
import sys

from kdzoo.errors import KdzooError


def python() -> str:
    return f"Python {platform.python_version()} at {sys.executable}"


def torch() -> str:
    try:
        import torch
    except ImportError as error:
        raise KdzooError(f"torch cannot be imported ({error}): pip install torch") from error
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"torch {torch.__version__}, {gpu}"


def cores() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{usable} cores: a bench starts {usable} workers of one thread each"


def home() -> str:
    from kdzoo.artefacts import home as folder
    from kdzoo.bench import check_writable

    check_writable(folder())
    free = shutil.disk_usage(folder()).free / 1e9
    if free < 1:
        raise KdzooError(
            f"{folder()} has {free:.1f} GB free, expected at least 1: free some space or set KDZOO_HOME"
        )
    return f"{folder()} is writable, {free:.0f} GB free"


def cards() -> str:
    from kdzoo import catalog

    found = catalog.load()
    if found.broken:
        raise KdzooError("; ".join(found.broken.values()))
    return f"{len(found.methods)} methods, {len(found.tasks)} tasks"
