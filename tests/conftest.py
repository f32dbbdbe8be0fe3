"""What several tests share: an own home folder, the command line in this process, plugins made of text."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

TASK = """
slug = "toy-task"
title = "A toy"
summary = "Points in a plane."
plugin = "toy"
kind = "classification"
kd = { method = "toy-kd" }
sizes = { train = 4, val = 4, test = 4 }
models = { student = "a line", teacher = "a curve" }

[data.points]
source = "made here"
licence = "none needed"
ships = true

[metrics.accuracy]
better = "higher"
text = "share of points on the right side"
primary = true

[[streams]]
split = "train"
batch = "batch"

[teacher]
text = "a curve trained on all points"
set = { steps = 30 }

[params]
steps = { default = 10, text = "optimiser steps", low = 1 }
batch = { default = 4, text = "points a step", low = 1 }
lr = { default = 0.1, text = "learning rate", low = 0.0 }
accumulate = { default = 1, text = "micro-batches an optimiser step", low = 1 }
milestones = { default = [0.5, 0.75], text = "shares of the run" }
nesterov = { default = true, text = "look ahead" }
schedule = { default = "cosine", text = "learning-rate schedule", choices = ["constant", "cosine"] }
task_weight = { default = 1.0, text = "weight of the labels", low = 0.0 }
"eval.bins" = { default = 15, text = "bins of the calibration error", low = 1 }
"""

METHOD = """
slug = "toy-kd"
title = "Toy distillation"
summary = "Match the teacher."
plugin = "toy"
knowledge = ["response"]
scheme = "offline"
family = "soft labels"
teacher = ["logits"]
fidelity = "paper"
fidelity_text = "equations"

[paper]
title = "Toy distillation"
year = 2020
venue = "nowhere"

[components.C1]
text = "soft targets"

[params]
kd_weight = { default = 1.0, text = "weight of the term", low = 0.0 }

[tasks.toy-task]
default = true
"""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, not yet made."""
    folder = tmp_path / "home"
    monkeypatch.setenv("KDZOO_HOME", str(folder))
    return folder


@pytest.fixture
def kdzoo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path
) -> Callable[..., Outcome]:
    """Run the program in this process, as the installed script does: exit code, stdout, stderr."""

    def run(*words: str) -> Outcome:
        from kdzoo.cli import main

        monkeypatch.setattr(sys, "argv", ["kdzoo", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        code = stop.value.code
        return Outcome(code if isinstance(code, int) else 0, said.out, said.err)

    return run


@pytest.fixture
def plugged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[Callable[..., None]]:
    """Install plugins made of source text: ``plugged(good="...", extensions={"ext": "..."})``.

    Core is found as it is installed; of the other distributions nothing is.
    """
    from kdzoo import catalog, plugins

    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    real = metadata.entry_points
    before = set(sys.modules)

    def install(extensions: dict[str, str] | None = None, **sources: str) -> None:
        entries = {"kdzoo": [e for e in real(group="kdzoo") if e.name == "core"], "kdzoo.extensions": []}
        for group, texts in (("kdzoo", sources), ("kdzoo.extensions", extensions or {})):
            for name, source in texts.items():
                module = f"toy_plugin_{name}"
                (folder / f"{module}.py").write_text(
                    "from kdzoo.hookspecs import hookimpl\n" + textwrap.dedent(source), encoding="utf-8"
                )
                entries[group].append(metadata.EntryPoint(name, module, group))

        def entry_points(**wanted: str) -> Any:
            group = wanted.get("group")
            return entries[group] if group in entries else real(**wanted)

        monkeypatch.setattr(metadata, "entry_points", entry_points)
        forget()

    clears = (plugins.load.cache_clear, catalog.load.cache_clear)

    def forget() -> None:
        for clear in clears:
            clear()

    yield install
    forget()
    for name in set(sys.modules) - before:
        if name.startswith("toy_"):
            del sys.modules[name]


@pytest.fixture
def write_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Write the toy cards, changed by (old, new) replacements or by text put at the end; returns the package.

    The package can be imported; it is forgotten before and after the test, since each test writes its own.
    """
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(
        method: tuple[str, str] | str = "", task: tuple[str, str] | str = "", modules: bool = True
    ) -> Path:
        package = tmp_path / "toy_cards"
        for kind, name, text, change in (
            ("methods", "toy-kd", METHOD, method),
            ("tasks", "toy-task", TASK, task),
        ):
            folder = package / kind
            folder.mkdir(parents=True, exist_ok=True)
            if isinstance(change, tuple):
                assert text.count(change[0]) == 1, f"{change[0]!r} is not in the card exactly once"
                text = text.replace(*change)
            else:
                text += change
            (folder / f"{name}.toml").write_text(text, encoding="utf-8")
            (folder / "__init__.py").write_text("")
            if modules:
                (folder / f"{name.replace('-', '_')}.py").write_text('"""A toy."""\n')
        (package / "__init__.py").write_text("")
        return package

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "toy_cards"]:
            del sys.modules[name]

    forget()
    yield write
    forget()


@pytest.fixture(scope="session")
def two_ranks() -> Callable[..., tuple[list[int], list[str]]]:
    """Run a script as two ranks on this machine, as torchrun starts them: ``two_ranks(script, *words, home=...)``.

    Returns the exit codes and what was written to stderr, by rank.
    """

    def start(script: Path, *words: str, home: Path) -> tuple[list[int], list[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(2):
            place = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": 2,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": 1,
                "KDZOO_HOME": home,
            }
            env = {**os.environ, **{name: str(value) for name, value in place.items()}}
            command = [sys.executable, str(script), *words]
            children.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
        try:
            errors = [child.communicate(timeout=240)[1] for child in children]
        finally:
            for child in children:
                child.kill()
        return [child.returncode for child in children], errors

    return start
