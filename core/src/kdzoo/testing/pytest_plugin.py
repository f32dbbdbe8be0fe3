"""What kdzoo gives to pytest: fixtures that open arms. Loaded by pytest wherever kdzoo is installed.

Nothing happens here until a test asks for a fixture; the imports are in the functions. The contract itself is a class
to inherit, `kdzoo.testing.contract.MethodContract`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kdzoo.runs import Run
    from kdzoo.testing.subject import Subject

_SUBJECTS = 8  # kept at once: each holds the weights of its short trainings


@pytest.fixture(scope="session")
def kdzoo_subject(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Subject]:
    """``kdzoo_subject("rkd", "emoji-retrieval")`` -> a `Subject`; all of a session share one store of artefacts."""
    root = tmp_path_factory.mktemp("kdzoo")

    @lru_cache(_SUBJECTS)
    def subject(method: str, task: str, settings: Sequence[str] = (), rows: int = 500) -> Subject:
        from kdzoo.testing.subject import Subject

        return Subject(method, task, root, settings, rows)

    return subject


@pytest.fixture
def open_arm(tmp_path: Path) -> Callable[..., Run]:
    """``open_arm("rkd", "emoji-retrieval", arm="rkd.without-angle", set=("lr=0.1",))`` -> a run ready for a step.

    The task may be left out: it is then the method's default. Models are built and in the modes of training; earlier
    stages were made in three steps each. Nothing of it enters the results that a bench keeps.
    """

    def opened(method: str, task: str | None = None, arm: str | None = None, **options: object) -> Run:
        from kdzoo import catalog
        from kdzoo.plan import Request, choose_task
        from kdzoo.testing.subject import Subject

        cards = catalog.load()
        task = task or choose_task(cards.method(method), cards, Request(method)).slug
        return Subject(method, task, tmp_path / "kdzoo").built(arm or "", **options)

    return opened
