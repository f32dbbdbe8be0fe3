"""Open one arm of a method on a task, ready for a step, without a worker process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdzoo import catalog, roles
from kdzoo.artefacts import Store
from kdzoo.execute import execute, open_run
from kdzoo.plan import Request, make_plan
from kdzoo.runs import Run

Open = Callable[..., Run]


@pytest.fixture
def open_arm(tmp_path: Path) -> Open:
    """``open_arm("rkd", "fashion-few-labels", arm="rkd.without-angle", set=("steps=4",))`` -> a Run with its models."""

    def opened(method: str, task: str | None = None, arm: str | None = None, **request: object) -> Run:
        plan = make_plan(Request(method=method, task=task, arms=arm or method, seeds=1, **request))  # type: ignore[arg-type]
        store = Store(tmp_path)
        *before, spec = [s for s in plan.runs[(arm or method, 0)] if s.stage.name != "evaluate"]
        for earlier in before:
            execute(earlier, store)
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        run = open_run(spec, store, folder)
        roles.build(run)
        for role, module in run.models.items():
            module.train(run.roles[role].kind == "train")
        return run

    return opened


def method_tasks(profile: str) -> list[tuple[str, str]]:
    """Every (method, task) of the vision plugin in a profile."""
    cards = catalog.load()
    return [
        (slug, task)
        for slug, card in sorted(cards.methods.items())
        if card.plugin == "vision"
        for task, use in card.tasks.items()
        if use.profile == profile
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``local_use`` runs a test on every method x local task of the plugin."""
    if "local_use" in metafunc.fixturenames:
        uses = method_tasks("local")
        metafunc.parametrize("local_use", uses, ids=[f"{method}-{task}" for method, task in uses])
