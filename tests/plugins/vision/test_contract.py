"""What every method of the plugin must keep, on every local task it runs on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdzoo import catalog
from kdzoo.arms import claims_on
from kdzoo.artefacts import Store
from kdzoo.bench import make_record
from kdzoo.errors import KdzooError
from kdzoo.execute import source_hash
from kdzoo.fit import StepModule
from kdzoo.plan import Request, make_plan
from kdzoo.runs import Run
from kdzoo.workers import Options, run_all

Open = Callable[..., Run]
Use = tuple[str, str]


def step(run: Run) -> torch.Tensor:
    """The loss of the first batch, with its gradient computed."""
    module = StepModule(run)
    loss = module(next(iter(run.loader())))
    loss.backward()
    return loss.detach()


def test_no_gradient_reaches_a_frozen_role(open_arm: Open, local_use: Use) -> None:
    """A teacher that moves is no teacher."""
    run = open_arm(*local_use)
    step(run)
    for name, role in run.roles.items():
        gradients = [p.grad for p in run.models[name].parameters() if p.grad is not None]
        if role.kind == "train":
            assert gradients, f"{name} gets no gradient"
        else:
            assert not gradients, f"{name} gets a gradient"
            assert not run.models[name].training


def test_same_seed_same_loss_other_seed_other_loss(open_arm: Open, local_use: Use) -> None:
    """Unseeded randomness makes a run unrepeatable."""
    first, again = (step(open_arm(*local_use)) for _ in range(2))
    assert torch.equal(first, again)


def test_finite_in_bfloat16(open_arm: Open, local_use: Use) -> None:
    """A loss that overflows in bf16 fails on GPUs only, after hours."""
    run = open_arm(*local_use, dtype="bfloat16")
    with run.device_info.autocast():
        loss = StepModule(run)(next(iter(run.loader())))
    loss.backward()
    assert torch.isfinite(loss)
    for parameter in run.models["student"].parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def test_every_switch_changes_the_loss(open_arm: Open, local_use: Use) -> None:
    """A switch that does nothing makes its ablation a copy of the method."""
    method, task = local_use
    card = catalog.load().methods[method]
    # The last step: stages and warm-ups that begin at step 0 are over.
    whole = late_loss(open_arm(method, task, set=("steps=4",)))
    for name, switch in card.switches.items():
        if switch.tasks and task not in switch.tasks:
            continue
        early, late = (
            f(open_arm(method, task, arm=f"{method}.without-{name}", set=("steps=4",)))
            for f in (first_loss, late_loss)
        )
        assert late != whole or early != first_loss(open_arm(method, task, set=("steps=4",))), name


def first_loss(run: Run) -> float:
    return float(StepModule(run)(next(iter(run.loader()))).detach())


def late_loss(run: Run) -> float:
    run.step = run.steps - 1
    return first_loss(run)


def test_all_arms_run_and_make_a_record(tmp_path: Path, local_use: Use) -> None:
    """Every bench path runs: all arms for a few steps, a whole record, fair arms."""
    method, task = local_use
    plan = make_plan(Request(method=method, task=task, arms="all", seeds=1, smoke=True))
    made = run_all(plan.specs, Options(tmp_path, jobs=0), lambda *_: None)
    record = make_record(plan, made, Store(tmp_path), "kdzoo bench", {})
    assert not record.failures
    assert {row.status for row in record.runs} == {"done"}
    assert {row.arm for row in record.runs} == set(plan.all_arms)
    assert not list(tmp_path.rglob("*.part"))
    assert {claim["verdict"] for claim in record.claims} <= {"not testable", "not run"}


@pytest.mark.parametrize("seed", [0, 1])
def test_student_starts_alike_in_all_arms(tmp_path: Path, seed: int) -> None:
    """One more projector or teacher must not move the student's initialisation or the data order."""
    plan = make_plan(Request(method="fitnets", arms="fitnets,hinton-kd", seeds=seed + 1, smoke=True))
    made = run_all(plan.specs, Options(tmp_path, jobs=0), lambda *_: None)
    record = make_record(plan, made, Store(tmp_path), "kdzoo bench", {})
    rows = [row for row in record.runs if row.seed == seed]
    assert len(rows) == 3
    assert len({row.init_hash for row in rows}) == 1
    assert len({row.order_hash for row in rows}) == 1
    assert len({row.steps for row in rows}) == 1


def test_every_claim_fits_a_task() -> None:
    """A misspelt metric must not make a claim vanish from every bench."""
    cards = catalog.load()
    for card in cards.methods.values():
        answered = [claim for task in card.tasks for claim in claims_on(card, cards.tasks[task])]
        assert all(claim in answered for claim in card.claims), card.slug


def test_a_loss_that_couples_the_batch_is_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of the triplet loss over two half batches is another loss than the student's in the record."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(KdzooError, match="2 processes with 'student'"):
        make_plan(Request("fitnets", task="emoji-retrieval"))
    make_plan(Request("hinton-kd"))


def test_code_that_tasks_share_counts_as_their_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed triplet loss must not pass for unchanged because it is not in the task's own file."""
    spec = next(iter(make_plan(Request("rkd", smoke=True)).specs.values()))
    before = source_hash(spec)
    monkeypatch.setattr(
        "kdzoo.execute._code", lambda module: module.__name__.replace("vision.retrieval", "changed")
    )
    named = source_hash(spec)
    monkeypatch.setattr("kdzoo.execute._code", lambda module: module.__name__)
    assert len({before, named, source_hash(spec)}) == 3


def test_seeds_may_begin_elsewhere() -> None:
    """A search on the records' own seeds would choose what fits their luck."""
    plan = make_plan(Request("hinton-kd", seeds=2, first_seed=100))
    assert {seed for arm, seed in plan.runs if arm == "student"} == {100, 101}
