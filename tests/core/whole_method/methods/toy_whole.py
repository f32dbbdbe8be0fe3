"""A method with a part for every check."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Batch, Metric, Output, Term
from kdzoo.testing.toy import Toy

if TYPE_CHECKING:
    from kdzoo.runs import Run

SEEN: list[Tensor] = []


class Noisy(Toy):
    """Says something else each time."""

    def forward(self, x: Tensor) -> Output:
        said = super().forward(x).logits
        return Output(logits=said + torch.rand_like(said))


class Centre:
    """A running mean of the teacher's logits."""

    value = torch.zeros(3)

    def state_dict(self) -> dict[str, Tensor]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.value = state["value"]


def centre(run: Run) -> Centre:
    return run.kept["centre"] if "centre" in run.kept else run.keep("centre", Centre())


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    return nn.Linear(3, 3) if role == "connector" else None


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    terms = {}
    student, teacher = run.out("student").logits, run.signal("teacher").logits
    target = teacher - centre(run).value
    if run.cfg.match_weight:
        total = (run.models["connector"](student) - target).square().sum()
        terms["match"] = Term(total, run.cfg.match_weight, per="item")
    if run.cfg.constant_weight:
        terms["constant"] = Term(teacher.square().sum(), run.cfg.constant_weight, per="item")
    return terms


@hookimpl
def after_step(run: Run, batch: Batch) -> None:
    kept = centre(run)
    kept.value = kept.value.lerp(run.signal("teacher").logits.mean(0), 0.5)
    for average, weight in zip(
        run.models["average"].parameters(), run.models["student"].parameters(), strict=True
    ):
        average.lerp_(weight.detach(), 0.1)


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    if run.stage != "evaluate":
        return {}
    said = run.predict("student", split).logits.softmax(1).topk(2).values
    beyond = said[:, 0] - said[:, 1] - run.cfg["eval.margin"]
    return {"beyond": Metric(float(beyond.mean()), len(beyond))}
