"""Whose data a stage trains on, and which view of them is meant where none is named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdzoo import execute
from kdzoo.cards import Side
from kdzoo.method import Batch, Output
from kdzoo.runs import Run
from kdzoo.testing import toy


def served(monkeypatch: pytest.MonkeyPatch, method: Any, split: str) -> str:
    """Where `execute.serve` takes a split from: the hash of its data."""
    modules = {"toy": SimpleNamespace(data=toy.data), "maker": method}
    monkeypatch.setattr(execute.catalog, "load", lambda: SimpleNamespace(module=modules.__getitem__))
    run: Any = SimpleNamespace(spec=SimpleNamespace(task="toy", method="maker" if method else None))
    return execute.serve(run, split).hash


def generated(run: Run, split: str) -> Any:
    return SimpleNamespace(hash=f"generated {split}")


@pytest.mark.parametrize("split", ["train", "pool"])
def test_a_method_serves_what_it_has_generated(monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    """A pipeline whose student is trained on the task's answers and not on those that the teacher wrote."""
    assert served(monkeypatch, SimpleNamespace(data=generated), split) == f"generated {split}"


@pytest.mark.parametrize(
    "method",
    [None, SimpleNamespace(), SimpleNamespace(data=lambda run, split: None)],
    ids=["no method", "no data", "none here"],
)
def test_else_the_task_serves(monkeypatch: pytest.MonkeyPatch, method: Any) -> None:
    """A stage without any data, because the method has none for it."""
    assert served(monkeypatch, method, "train") == "toy train"


@pytest.mark.parametrize("split", ["dev", "val", "test"])
def test_what_is_measured_on_stays_the_tasks(monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    """A method that is measured on questions of its own choice."""
    monkeypatch.setitem(toy.SIZES, "dev", 4)
    assert served(monkeypatch, SimpleNamespace(data=generated), split) == f"toy {split}"


@pytest.mark.parametrize(("gives", "view"), [({}, "image"), ({"student": Side(view="text")}, "text")])
def test_the_students_view_is_meant(gives: dict[str, Side], view: str) -> None:
    """A task of texts whose losses would have to name the view at every call, and core's sizes an image."""
    run: Any = SimpleNamespace(task=SimpleNamespace(gives=gives))
    assert Run.__dict__["view"].func(run) == view


def test_a_teacher_that_reads_something_else_is_given_it() -> None:
    """Sizes and probabilities of a teacher with a tokenizer of its own, taken from the student's ids."""
    gives = {"student": Side(view="text"), "teacher": Side(view="teacher")}
    run: Any = SimpleNamespace(task=SimpleNamespace(gives=gives), view="text")
    assert [Run.view_of(run, role) for role in ("student", "teacher", "mentor")] == [
        "text",
        "teacher",
        "text",
    ]
    run.task.gives = {"student": Side(view="text")}
    assert Run.view_of(run, "teacher") == "text"


def test_outputs_are_those_of_the_students_view() -> None:
    """`run.out("student")` of a batch that has no image."""

    class Echo(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Output:
            return Output(logits=x)

    run: Any = Run.__new__(Run)
    run.__dict__ |= {
        "view": "text",
        "task": SimpleNamespace(gives={}),
        "models": {"student": Echo()},
        "_memory": {},
        "_micro_base": 0,
    }
    run.__dict__ |= {"_elsewhere": "", "cost": SimpleNamespace(student_forwards=0)}
    run.__dict__ |= {"device_info": SimpleNamespace(ranks=1)}
    run.batch = Batch(["a"], {"text": torch.ones(1, 3), "image": torch.zeros(1, 3)})
    assert torch.equal(run.out("student").logits, torch.ones(1, 3))
    assert torch.equal(run.out("student", "image").logits, torch.zeros(1, 3))
