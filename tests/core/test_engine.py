"""Core's engine keeps its promises, and the check of engines sees each of them broken."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdzoo.errors import KdzooError
from kdzoo.fit import StepModule, fit, fit_stage
from kdzoo.hookspecs import hookimpl
from kdzoo.method import Batch, Term
from kdzoo.runs import NotFinite, Run
from kdzoo.testing import check_engine, toy
from kdzoo.testing.extensions import Stop


def plain(
    run: Run,
    *,
    loader: Callable[[Any], Iterator[Batch]] = iter,
    scale: float = 1.0,
    clip_first_group: bool = False,
    forgive: bool = False,
    close: Callable[[Run, Batch, Any], bool] | None = None,
    before: Callable[[Run], None] = lambda run: None,
    optimizer: Callable[[Run], torch.optim.Optimizer] = lambda run: run.optimizer(),
) -> bool:
    """An engine like core's, with places to break it."""
    module, chosen = StepModule(run), optimizer(run)
    parts, clip = int(run.cfg.accumulate), float(run.cfg.clip)
    for done, batch in enumerate(loader(run.loader()), 1):
        before(run)
        try:
            (module(batch) * scale).backward()
        except NotFinite:
            if not forgive:
                raise
        if done % parts:
            continue
        groups = chosen.param_groups[:1] if clip_first_group else chosen.param_groups
        trained = [parameter for group in groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, clip) if clip else None
        chosen.step()
        chosen.zero_grad()
        if (close or Run.stepped)(run, batch, norm):
            break
    return True


def one_ahead(loader: Any) -> Iterator[Batch]:
    batches = iter(loader)
    held = next(batches)
    for batch in batches:
        yield held
        held = batch
    yield held


def backwards(loader: Any) -> Iterator[Batch]:
    for batch in loader:
        batch.ids = batch.ids[::-1]
        yield batch


def carries_the_generator_on(run: Run) -> bool:
    """Restores the random state that the last step left, as frameworks do that save and load it."""
    state: list[torch.Tensor] = []

    def close(run: Run, batch: Batch, norm: Any) -> bool:
        stop = run.stepped(batch, norm)
        state.append(torch.default_generator.get_state())
        return stop

    class Carried(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Any) -> Any:
            if state and self.training:
                torch.default_generator.set_state(state[-1])
            return self.inner(x)

    inner = run.models["student"]
    run.models["student"] = Carried(inner).train()
    try:
        return plain(run, close=close)
    finally:
        run.models["student"] = inner


def swallows_nan(run: Run) -> bool:
    return plain(run, forgive=True)


def hides_the_norm(run: Run) -> bool:
    return plain(run, close=lambda run, batch, norm: run.stepped(batch, None))


def halves(run: Run) -> bool:
    return plain(run, scale=1 / int(run.cfg.accumulate))


def prefetches(run: Run) -> bool:
    return plain(run, loader=one_ahead)


def renames(run: Run) -> bool:
    return plain(run, loader=backwards)


def clips_one_group(run: Run) -> bool:
    return plain(run, clip_first_group=True)


def wakes_the_teacher(run: Run) -> bool:
    def wake(run: Run) -> None:
        for module in run.models.values():
            module.train()

    return plain(run, before=wake)


def forgets_the_optimizer(run: Run) -> bool:
    """As a framework does that was given the weights and not the momentum."""

    def fresh(run: Run) -> torch.optim.Optimizer:
        restored, run.restored = run.restored, None
        try:
            return run.optimizer()
        finally:
            run.restored = restored

    return plain(run, optimizer=fresh)


def own_schedule(run: Run) -> bool:
    def constant(run: Run) -> None:
        assert run.current_optimizer is not None
        for group in run.current_optimizer.param_groups:
            group["lr"] = 0.01

    return plain(run, before=constant)


def saves_by_itself(run: Run) -> bool:
    (run.folder / "framework.ckpt").write_bytes(b"state")
    return plain(run)


def looks_twice(run: Run) -> bool:
    """As a framework does that runs the model once more to measure or to draw it."""

    def look(run: Run) -> None:
        assert run.batch is not None
        run.out("student")

    return plain(run, before=look)


def trains_longer(run: Run) -> bool:
    run.steps += 1
    return plain(run)


def swallows_the_stop(run: Run) -> bool:
    from kdzoo.runs import Stopped

    try:
        return plain(run)
    except Stopped:
        return True


BROKEN: dict[str, tuple[Any, str]] = {
    "carries the generator on": (carries_the_generator_on, "E1"),
    "prefetches": (prefetches, "E2"),
    "renames": (renames, "E2"),
    "own schedule": (own_schedule, "E3"),
    "saves by itself": (saves_by_itself, "E3"),
    "swallows the stop": (swallows_the_stop, "E3"),
    "forgets the optimizer": (forgets_the_optimizer, "E3"),
    "swallows NaN": (swallows_nan, "E4"),
    "hides the norm": (hides_the_norm, "E4"),
    "halves": (halves, "E5"),
    "clips one group": (clips_one_group, "E6"),
    "wakes the teacher": (wakes_the_teacher, "E6"),
    "looks twice": (looks_twice, "E7"),
    "trains longer": (trains_longer, "E7"),
}


def test_cores_engine_keeps_its_promises() -> None:
    """E1 to E8 on core's loop, SIGKILL in a process of its own included."""
    check_engine(fit)


def test_a_plain_function_counts_as_an_engine() -> None:
    """A third party may pass the function without the mark; the healthy form of the broken engines below passes."""
    check_engine(plain, kill=False)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_named(name: str) -> None:
    """A check that cannot fail proves nothing: each engine breaks one promise."""
    engine, promise = BROKEN[name]
    with pytest.raises(AssertionError, match=f"^{promise}: "):
        check_engine(engine, kill=False)


def test_a_refusal_must_be_an_error_of_the_engine() -> None:
    """An engine that says it cannot accumulate and then silently does is worse than one that fails."""

    def honest(run: Run) -> bool:
        if int(run.cfg.accumulate) > 1:
            raise KdzooError("this engine does not accumulate gradients")
        return plain(run)

    check_engine(honest, refuses=["accumulate"], kill=False)
    with pytest.raises(AssertionError, match=r"^E8: the engine is said to refuse accumulate"):
        check_engine(fit, refuses=["accumulate"], kill=False)


def test_an_engine_that_cannot_be_imported_is_refused_for_kill() -> None:
    """The killed process must run this engine, not another."""
    with pytest.raises(ValueError, match="kill=False"):
        check_engine(lambda run: plain(run))


def by_hand(steps: int, folder: Path, clip: float) -> dict[str, torch.Tensor]:
    """The toy run written out with torch alone: what core's loop must compute."""
    run = toy.run(folder, settings={"steps": steps, "dropout": 0.0, "noise": 0.0, "clip": clip})
    from kdzoo import roles

    roles.build(run)
    student, connector, teacher = (run.models[name] for name in ("student", "connector", "teacher"))
    trained = [*connector.parameters(), *student.parameters()]
    optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)
    (order,) = run.orders()
    for step in range(steps):
        lr = 0.05 * (step + 1) / 3 if step < 3 else 0.025 * (1 + math.cos(math.pi * (step - 3) / (steps - 3)))
        optimizer.param_groups[0]["lr"] = lr
        batch = toy.collate(order.data.items, *order.rows(step))
        logits = student(batch.views["image"]).logits
        p = (teacher(batch.views["image"]).logits / 2).softmax(1).detach()
        q = (connector(logits) / 2).log_softmax(1)
        loss = F.cross_entropy(logits, batch.labels) + (p * (p.log() - q)).sum() / 8
        optimizer.zero_grad()
        loss.backward()
        if clip:
            norm = sum(parameter.grad.square().sum() for parameter in trained).sqrt()
            for parameter in trained:
                parameter.grad *= min(1.0, clip / (norm.item() + 1e-6))
        optimizer.step()
    return {name: value.detach() for name, value in student.state_dict().items()}


@pytest.mark.parametrize("clip", [0.0, 0.3])
def test_core_computes_what_torch_written_out_computes(tmp_path: Path, clip: float) -> None:
    """The engines are compared with core's loop; this compares core's loop with one that shares no code with it."""
    run = toy.run(tmp_path / "core", settings={"dropout": 0.0, "noise": 0.0, "clip": clip})
    fit_stage(run)
    for name, value in by_hand(20, tmp_path / "hand", clip).items():
        assert (run.models["student"].state_dict()[name] - value).abs().max() < 1e-6


def test_a_stop_at_the_last_step_leaves_nothing_to_train(tmp_path: Path) -> None:
    """The engine is then started for no step at all, and must neither fail nor take one more."""
    whole = toy.run(tmp_path / "whole", settings={"steps": 7})
    fit_stage(whole)
    stopped = toy.run(tmp_path / "stopped", settings={"steps": 7}, add=[Stop()])
    with pytest.raises(BaseException, match="stopped at step 7 of 7"):
        fit_stage(stopped)
    resumed = toy.run(tmp_path / "stopped", settings={"steps": 7})
    fit_stage(resumed)
    assert resumed.curves == whole.curves
    for name, value in whole.models["student"].state_dict().items():
        assert (value == resumed.models["student"].state_dict()[name]).all()


class InfiniteAtTheEnd:
    @hookimpl
    def loss_terms(self, run: Run, batch: Batch) -> dict[str, Term]:
        logits = run.out("student").logits
        assert logits is not None
        return {"odd": Term((logits * (run.step != run.steps - 1)).square().sum().sqrt() * 1e-3)}


def test_a_nan_gradient_in_the_last_step_is_not_saved(tmp_path: Path) -> None:
    """Without clipping nobody looks at the gradient, and no forward pass follows the last update."""
    run = toy.run(tmp_path, add=[InfiniteAtTheEnd()])
    with pytest.raises(NotFinite, match="are not finite"):
        fit_stage(run)
    assert not list(tmp_path.glob("*.safetensors"))


def test_two_terms_of_one_name_and_no_term_are_refused(tmp_path: Path) -> None:
    """A second term of the same name would silently take the place of the first; no term would train nothing."""

    class Twice:
        @hookimpl
        def loss_terms(self, run: Run, batch: Batch) -> dict[str, Term]:
            return {"task": Term(torch.zeros(()))}

    with pytest.raises(KdzooError, match="two plugins give the loss term 'task'"):
        fit_stage(toy.run(tmp_path / "twice", add=[Twice()], roles=toy.ALONE))
    with pytest.raises(KdzooError, match="has no loss term"):
        fit_stage(toy.run(tmp_path / "none", roles=toy.ALONE, settings={"task_weight": 0.0}))


def test_a_term_per_an_unknown_unit_is_refused(tmp_path: Path) -> None:
    """A unit that the batch does not count cannot normalise anything."""

    class PerToken:
        @hookimpl
        def loss_terms(self, run: Run, batch: Batch) -> dict[str, Term]:
            return {"odd": Term(torch.zeros(()), per="token")}

    with pytest.raises(KdzooError, match="per 'token', but the batch counts only item, label, step"):
        fit_stage(toy.run(tmp_path, add=[PerToken()], roles=toy.ALONE))
