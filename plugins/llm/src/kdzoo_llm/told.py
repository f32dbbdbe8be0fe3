"""What tasks share whose teacher is told a rule and whose student is not: one base, adapters, and who reads what.

Teacher and student are one model. The student is an adapted copy that is merged when training is over; the view
"teacher" has the rule in its prompt, "text" has not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Metric
from kdzoo_llm import adapters, engine
from kdzoo_llm.data.examples import Example
from kdzoo_llm.language import TEACHER, build_role, share, view_of_role
from kdzoo_llm.models import LanguageModel

if TYPE_CHECKING:
    from kdzoo.runs import Run

PARTS = ("id", "ood")
"""In the domain of the examples, and outside: the second part of a row's id."""


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """The base as teacher, and adapted as student; a student that is only measured is plain."""
    if role not in ("student", "teacher"):
        return None
    adapted = adapters.build_model(run, role)
    return adapted if adapted is not None else build_role(run, role, str(run.cfg["teacher"]))


@hookimpl
def fit(run: Run) -> bool:
    """The engine; then adapters are merged, so that what ships costs what the base costs."""
    student = run.models["student"]
    assert isinstance(student, LanguageModel)
    run.facts["trained_parameters"] = adapters.trained_parameters(student)
    engine.fit(run)
    adapters.merge(student)
    return True


def view_of(run: Run, role: str, split: str) -> str:
    """The student reads no rule, unless `eval.rule` says so at the end."""
    if role == "student" and run.stage == "evaluate" and run.cfg["eval.rule"]:
        return TEACHER
    return view_of_role(run, role, split)


def share_right(examples: Sequence[Example], right: Sequence[bool]) -> dict[str, Metric]:
    """The share of right answers, of all rows and of each part that there is."""
    found = {"accuracy": share(right)}
    for part in PARTS:
        if own := [one for example, one in zip(examples, right, strict=True) if f"/{part}/" in example.id]:
            found[f"accuracy[{part}]"] = share(own)
    return found
