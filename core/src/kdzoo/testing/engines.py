"""What an engine promises core, as one check: ``check_engine(fit)`` raises where a promise is broken.

An engine is an implementation of the hook `fit` that hands a framework core's `StepModule`, loader and optimiser. The
promises are named E1 to E8 and described in docs/engines.md; each message here begins with the name of one. The toy
task of `kdzoo.testing.toy` is trained some thirty times, 20 steps each.
"""

from __future__ import annotations

import multiprocessing as mp
import signal
import tempfile
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kdzoo import fit as core
from kdzoo.errors import KdzooError
from kdzoo.method import Role
from kdzoo.plugins import resolve
from kdzoo.roles import state_hash
from kdzoo.runs import NotFinite, Run, Stopped
from kdzoo.testing import toy
from kdzoo.testing.extensions import BROKEN, CUT, Draws, Kill, NaN, NaNGradient, Stop, Witness

Engine = Callable[..., Any]
Refusal = Literal["accumulate", "clip"]

TOLERANCE = 1e-6


def check_engine(
    engine: Engine, *, refuses: Collection[Refusal] = (), device: str = "cpu", kill: bool = True
) -> None:
    """Hold an engine to E1 to E8.

    Args:
        engine: the `fit` hook, marked with ``@hookimpl`` or not.
        refuses: what the engine cannot do and says so: it must raise `KdzooError` for a run that asks for it.
        device: where the toy task is trained.
        kill: also kill a process with SIGKILL in the middle of a step and go on from its checkpoint. The engine must
            then be found by its module and name, since another process imports it.

    Raises:
        AssertionError: the first promise that is broken, by name, with what was seen.

    Example:
        >>> from kdzoo.fit import fit
        >>> check_engine(fit, kill=False)
    """
    if unknown := set(refuses) - {"accumulate", "clip"}:
        raise ValueError(f"refuses got {sorted(unknown)}, expected some of 'accumulate', 'clip'")
    with tempfile.TemporaryDirectory(prefix="kdzoo-engine-") as name:
        bench = _Bench(engine, Path(name), device, frozenset(refuses))
        # From the particular to the general: a difference from core's loop is named last, by its cause if possible.
        _data_in_order(bench)
        _roles_left_alone(bench)
        _counts(bench)
        _draws_move_nothing(bench)
        _same_as_core(bench)
        _accumulation(bench)
        _not_finite(bench)
        _interrupted(bench)
        if kill:
            _killed(bench)
        _teacher_moves_nothing(bench)


@dataclass
class Trained:
    """What a training left behind."""

    run: Run
    witness: Witness
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def apart(self, other: Trained) -> float:
        """Largest difference between two runs' weights, over all roles that both have."""
        return max(
            float((value - other.weights[role][name]).abs().max())
            for role in self.weights.keys() & other.weights.keys()
            for name, value in self.weights[role].items()
        )


@dataclass
class _Bench:
    engine: Engine
    root: Path
    device: str
    refuses: frozenset[str]
    made: int = 0

    def folder(self) -> Path:
        self.made += 1
        return self.root / str(self.made)

    def open(
        self,
        folder: Path | None = None,
        engine: Engine | None = None,
        roles: Sequence[Role] = toy.TAUGHT,
        add: Sequence[Any] = (),
        streams: Sequence[str] = ("train",),
        **settings: Any,
    ) -> Trained:
        witness = Witness()
        run = toy.run(
            folder or self.folder(),
            engine=engine or self.engine,
            roles=roles,
            add=[witness, *add],
            streams=streams,
            settings=settings,
            device=self.device,
        )
        run.checkpoint_seconds = float("inf")
        return Trained(run, witness)

    def train(self, **options: Any) -> Trained:
        trained = self.open(**options)
        _go(trained)
        return trained


def _go(trained: Trained) -> None:
    core.fit_stage(trained.run)
    trained.weights = {
        role: {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
        for role, module in trained.run.models.items()
    }


def _fail(name: str, text: str) -> AssertionError:
    return AssertionError(f"{name}: {text}")


def _cases(bench: _Bench) -> dict[str, dict[str, Any]]:
    """Settings under which an engine must do what core's loop does."""
    cases: dict[str, dict[str, Any]] = {
        "sgd, cosine": {},
        "adamw, constant": {"optimizer": "adamw", "schedule": "constant", "lr": 0.01},
        "two streams": {"streams": ("train", "pool")},
        "no teacher": {"roles": toy.ALONE},
        "clip": {"clip": 0.5},
        "accumulate": {"accumulate": 2},
        "clip and accumulate": {"clip": 0.5, "accumulate": 2},
    }
    return {name: case for name, case in cases.items() if not bench.refuses & case.keys()}


def _same_as_core(bench: _Bench) -> None:
    """E8, and with it E5 (scale) and E3 (schedules): 20 steps end where core's loop ends."""
    for refused in sorted(bench.refuses):
        value = 2 if refused == "accumulate" else 0.5
        try:
            bench.train(**{refused: value})
        except KdzooError:
            continue
        raise _fail("E8", f"the engine is said to refuse {refused}, but trained with {refused} = {value}")
    for name, case in _cases(bench).items():
        ours, theirs = bench.train(engine=core.fit, **case), bench.train(**case)
        steps = ours.run.steps
        if theirs.witness.closed != list(range(steps)):
            raise _fail(
                "E8",
                f"{name}: run.stepped was called at the steps {theirs.witness.closed}, expected 0 to {steps - 1}",
            )
        if theirs.witness.rates != ours.witness.rates:
            seen, due = theirs.witness.rates, ours.witness.rates
            raise _fail("E3", f"{name}: learning rates {seen}, expected {due}: schedules are core's")
        if (apart := ours.apart(theirs)) > TOLERANCE:
            why = "E5" if "accumulate" in case else "E6" if "clip" in case else "E8"
            hint = {
                "E5": "batch.norm covers accumulation already; undo the framework's own division",
                "E6": "the gradient norm is taken over all groups of the one optimiser",
                "E8": "forward, backward and step must be core's",
            }[why]
            raise _fail(
                why, f"{name}: weights differ from core's loop by {apart:.3g} after {steps} steps; {hint}"
            )


def _draws_move_nothing(bench: _Bench) -> None:
    """E1: dropout, augmentation and noise do not depend on who else draws."""
    plain, drawing = bench.train(), bench.train(add=[Draws()])
    if apart := plain.apart(drawing):
        raise _fail(
            "E1",
            f"an extension that only draws random numbers moved the weights by {apart:.3g}: the engine draws ahead, "
            "seeds by itself or runs the model outside core's StepModule",
        )


def _data_in_order(bench: _Bench) -> None:
    """E2: core's batches, each once, none prepared ahead of its step."""
    for accumulate in (1,) if "accumulate" in bench.refuses else (1, 2):
        trained = bench.train(streams=("train", "pool"), accumulate=accumulate)
        run, witness = trained.run, trained.witness
        expected = [step for step in range(run.steps) for _ in range(accumulate)]
        if [step for step, _ in witness.prepared] != expected:
            raise _fail(
                "E2",
                f"batches were prepared at the steps {[step for step, _ in witness.prepared]}, expected {expected}: "
                "something fetches ahead or leaves batches out; hand run.loader() to the framework as it is",
            )
        if witness.seen != witness.prepared:
            raise _fail(
                "E2",
                "the batches that reached the loss are not those of run.loader(), each once and in order",
            )
        ids = [name for _, names in witness.seen for name in names]
        rows = [(order, order.rows(step)[0].tolist()) for step in range(run.steps) for order in run.orders()]
        drawn = [order.data.ids[row] for order, chosen in rows for row in chosen]
        if sorted(ids) != sorted(drawn):
            raise _fail("E2", "the samples trained on are not those of the orders")


def _roles_left_alone(bench: _Bench) -> None:
    """E6: only trained roles are in the module and the optimiser; no other role is moved, trained or switched."""
    trained = bench.train()
    run = trained.run
    if trained.witness.odd:
        raise _fail(
            "E6", f"{trained.witness.odd[0]}, expected training mode for trained roles and for no other"
        )
    module = core.StepModule(run)
    learning = {
        id(p)
        for name, role in run.roles.items()
        if role.kind == "train"
        for p in run.models[name].parameters()
    }
    if {id(parameter) for parameter in module.parameters()} != learning:
        raise _fail("E6", "StepModule.parameters() are not exactly the parameters of the trained roles")
    assert run.current_optimizer is not None, "E6: the engine did not ask for run.optimizer()"
    optimized = {
        id(parameter) for group in run.current_optimizer.param_groups for parameter in group["params"]
    }
    if optimized != learning:
        raise _fail("E6", "the optimiser does not hold exactly the parameters of the trained roles")
    if state_hash(run.models["teacher"]) != run.facts["roles"]["teacher"]:
        raise _fail("E6", "the frozen teacher's weights have changed")
    if any(parameter.grad is not None for parameter in run.models["teacher"].parameters()):
        raise _fail("E6", "the frozen teacher has received a gradient")
    strange = sorted(path.name for path in run.folder.rglob("*") if path.suffix != ".safetensors")
    if strange:
        raise _fail("E3", f"the engine left {strange} in the run's folder; framework checkpoints must be off")


def _counts(bench: _Bench) -> None:
    """E7: the engine counts nothing and adds no forward pass."""
    ours, theirs = bench.train(engine=core.fit).run.cost, bench.train().run.cost
    for name in ("steps", "examples", "student_forwards", "teacher_forwards"):
        if getattr(ours, name) != getattr(theirs, name):
            raise _fail("E7", f"{name} = {getattr(theirs, name)}, core's loop has {getattr(ours, name)}")


def _accumulation(bench: _Bench) -> None:
    """E5: two micro-batches of 4 are one of 8, for terms per item or label, in weights and in logged losses."""
    if "accumulate" in bench.refuses:
        return
    whole, halves = (bench.train(dropout=0.0, noise=0.0, accumulate=parts) for parts in (1, 2))
    if (apart := whole.apart(halves)) > TOLERANCE:
        raise _fail("E5", f"accumulate = 2 moves the weights by {apart:.3g} against accumulate = 1")
    for name, points in whole.run.logs.items():
        others = halves.run.logs[name]
        if any(abs(a - b) > 1e-5 for (_, a), (_, b) in zip(points, others, strict=True)):
            raise _fail(
                "E5", f"accumulate = 2 logs other values of {name}: {others[:3]}, expected {points[:3]}"
            )


def _not_finite(bench: _Bench) -> None:
    """E4: NaN in a loss or a gradient stops the run and is named."""
    cases: list[tuple[str, Any, dict[str, Any], str]] = [("a NaN loss term", NaN(), {}, "odd = nan")]
    if "clip" not in bench.refuses:
        cases.append(("a NaN gradient with clipping", NaNGradient(), {"clip": 1.0}, "gradient"))
    for name, extension, settings, said in cases:
        try:
            trained = bench.train(add=[extension], **settings)
        except NotFinite as error:
            if f"step {BROKEN}" not in str(error) or said not in str(error):
                raise _fail("E4", f"{name} at step {BROKEN} was reported as: {error}") from error
        else:
            raise _fail(
                "E4", f"{name} at step {BROKEN} did not stop the run; it went on to step {trained.run.step}"
            )


def _interrupted(bench: _Bench) -> None:
    """E3: stopped at a whole step and started again for the steps that are left, the run ends bit-equal."""
    whole = bench.train()
    folder = bench.folder()
    stopped = bench.open(folder=folder, add=[Stop()])
    with suppress(Stopped):
        _go(stopped)
        raise _fail("E3", "a run that was asked to stop did not raise kdzoo.runs.Stopped out of the engine")
    if stopped.run.step != CUT:
        raise _fail("E3", f"asked to stop after {CUT} steps, the run stopped after {stopped.run.step}")
    _same_end(whole, _resumed(bench, folder), f"interrupted after {CUT} steps")


def _resumed(bench: _Bench, folder: Path) -> Trained:
    trained = bench.open(folder=folder)
    _go(trained)
    if trained.witness.closed != list(range(CUT, trained.run.steps)):
        raise _fail(
            "E3", f"resumed at step {CUT}, run.stepped was called at the steps {trained.witness.closed}"
        )
    return trained


def _same_end(whole: Trained, resumed: Trained, how: str) -> None:
    if apart := whole.apart(resumed):
        raise _fail("E3", f"{how} and resumed, the weights differ by {apart:.3g} from an uninterrupted run's")
    for name in ("curves", "logs"):
        if getattr(whole.run, name) != getattr(resumed.run, name):
            raise _fail("E3", f"{how} and resumed, the {name} differ from an uninterrupted run's")
    for name in ("steps", "examples", "student_forwards", "teacher_forwards"):
        if getattr(whole.run.cost, name) != getattr(resumed.run.cost, name):
            raise _fail("E7", f"{how} and resumed, {name} = {getattr(resumed.run.cost, name)}")


def _doomed(target: str, folder: Path, device: str) -> None:
    """What the child does: train with a checkpoint after every step until it is killed."""
    torch.set_num_threads(1)
    run = toy.run(folder, engine=resolve(target), add=[Witness(), Kill()], device=device)
    run.checkpoint_seconds = 0.0
    core.fit_stage(run)


def _killed(bench: _Bench) -> None:
    """E3: the same after SIGKILL."""
    engine = bench.engine
    target = f"{getattr(engine, '__module__', '?')}:{getattr(engine, '__qualname__', '?')}"
    try:
        found = resolve(target)
    except KdzooError:
        found = None
    if found is not engine:
        raise ValueError(
            f"check_engine: the engine {engine!r} is not what {target} names, so the process that will be killed "
            "cannot import it. Pass a function of a module, or kill=False."
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole, folder = bench.train(), bench.folder()
        child = mp.get_context("spawn").Process(target=_doomed, args=(target, folder, bench.device))
        child.start()
        child.join(timeout=300)
        if child.exitcode != -signal.SIGKILL:
            raise _fail(
                "E3", f"the process that kills itself at step {CUT} ended with {child.exitcode} instead"
            )
        _same_end(whole, _resumed(bench, folder), f"killed at step {CUT}")
    finally:
        torch.set_num_threads(threads)


def _teacher_moves_nothing(bench: _Bench) -> None:
    """E8: the student starts from the same weights and sees the same samples with and without a teacher."""
    alone, taught = bench.train(roles=toy.ALONE).run.facts, bench.train().run.facts
    for name in ("init_hash", "order_hash"):
        if alone[name] != taught[name]:
            raise _fail(
                "E8", f"the {name} is {taught[name][:12]} with a teacher and {alone[name][:12]} without"
            )
