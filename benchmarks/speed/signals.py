"""What a recorded teacher signal costs in a training step, beside a live teacher and beside no teacher at all.

The task is fashion-few-labels, 32 labelled and 96 unlabelled images a step, one thread, core's own step. The pair is
cnn-m (24,058 parameters) and resnet-14 (174,970) unless others are named; a teacher that is not the task's own has
random weights, which cost as much. Contenders:

    student    the task's loss alone
    in memory  hinton-kd, the teacher's logits in a tensor, looked up by row: what no cache can be faster than
    recorded   hinton-kd, the teacher's logits read from disk
    live       hinton-kd, the teacher asked in every step

Two forms of the batch: "all" without augmentation, so that every row is read; "mixed" as the task has it, where the
teacher is asked live about the 32 augmented images. The distance from "student" to "in memory" is the loss itself,
the KL of 128 rows and its gradient, about 0.2 ms: beside the task's own cnn-s (6,274 parameters, 5.3 ms a step) that
alone is all of the 5 % that the bound on recorded / student allows.

The contenders take turns, in an order that changes with each turn; times are CPU time of the process. Printed: median
milliseconds a step, and the median over turns of the ratios. Bounds, for "all": recorded / student and recorded / in
memory at most 1.05, recorded / live at most 0.6; the program exits with 1 where one is missed.

    python benchmarks/speed/signals.py [--steps 40] [--turns 11] [--student cnn-m] [--teacher resnet-14] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from kdzoo import fit
from kdzoo.artefacts import Store
from kdzoo.execute import open_run
from kdzoo.hookspecs import hookimpl
from kdzoo.method import Output
from kdzoo.plan import Request, make_plan
from kdzoo.runs import Run
from kdzoo_vision.data import fashion

CLOCK = time.process_time
CONTENDERS = ("student", "in memory", "recorded", "live")
BOUNDS = {"recorded / student": 1.05, "recorded / in memory": 1.05, "recorded / live": 0.6}
TAUGHT = "cnn-deep"  # whose weights the task ships
WARM = 3  # steps that are not counted: the first one records, or compares


class InMemory:
    """Answers for the teacher out of tensors, by sample id."""

    def __init__(self) -> None:
        self.logits = torch.empty(0)
        self.places: dict[str, int] = {}

    @hookimpl
    def teacher_signal(self, run: Run, role: str, view: str) -> Output:
        assert run.batch is not None
        if not self.places:
            said = [run.predict("teacher", split) for split in ("train", "pool")]
            self.logits = torch.cat([part.logits for part in said if part.logits is not None])
            self.places = {name: row for row, name in enumerate(said[0].ids + said[1].ids)}
        drawn = torch.tensor([self.places[name] for name in run.batch.ids])
        return Output(logits=self.logits.index_select(0, drawn))


def open_contender(contender: str, mixed: bool, steps: int, pair: tuple[str, str], root: Path) -> Run:
    arm = "student" if contender == "student" else "hinton-kd"
    signals = "recorded" if contender == "recorded" else "live"
    settings = (f"steps={max(1000, steps + WARM + 1)}", "eval_every=0", "warmup=1")
    settings += (f"student={pair[0]}", f"teacher={pair[1]}")
    plan = make_plan(Request("hinton-kd", seeds=1, signals=signals, set=settings))
    run = open_run(plan.runs[(arm, 0)][0], Store(root), Path(tempfile.mkdtemp(dir=root)))
    run.store = Store(root)
    if not mixed:
        run._serve = lambda run, split: fashion.load(split, augment=False)
    if contender == "in memory":
        run.manager.register(InMemory(), name="in memory")
    if "teacher" in run.roles and pair[1] != TAUGHT:
        run.roles["teacher"] = replace(run.roles["teacher"], source="random")
    fit.roles.build(run)
    for name, module in run.models.items():
        module.train(name == "student")
    run.orders()
    return run


def milliseconds(run: Run, steps: int) -> float:
    """A step of core's loop: batch, forward, loss, backward, update, books."""
    step_module, optimizer, began = fit.StepModule(run), run.optimizer(), 0.0
    for number, batch in enumerate(run.loader()):
        if number == WARM:
            began = CLOCK()
        if number == WARM + steps:
            break
        loss = step_module(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.stepped(batch)
    return (CLOCK() - began) / steps * 1000


def measure(mixed: bool, steps: int, turns: int, pair: tuple[str, str], root: Path) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for turn in range(turns + 1):
        for place in range(len(CONTENDERS)):
            name = CONTENDERS[(place + turn) % len(CONTENDERS)]
            spent = milliseconds(open_contender(name, mixed, steps, pair, root), steps)
            if turn:  # the first turn warms up
                times[name].append(spent)

    def ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))

    pairs = [
        ("recorded", "student"),
        ("recorded", "in memory"),
        ("in memory", "student"),
        ("recorded", "live"),
    ]
    return {
        "ms": {name: statistics.median(values) for name, values in times.items()},
        "ratios": {f"{one} / {other}": ratio(one, other) for one, other in pairs},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="steps of one turn")
    parser.add_argument("--turns", type=int, default=11, help="turns of each contender")
    parser.add_argument("--student", default="cnn-m", help="the student's architecture")
    parser.add_argument("--teacher", default="resnet-14", help="the teacher's architecture")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        found = {
            form: measure(
                form == "mixed", options.steps, options.turns, (options.student, options.teacher), Path(name)
            )
            for form in ("all", "mixed")
        }
    missed = [pair for pair, bound in BOUNDS.items() if found["all"]["ratios"][pair] > bound]
    if options.json:
        print(json.dumps({"steps": options.steps, "turns": options.turns, "batch": 128, **found}, indent=1))
    else:
        print(
            f"{options.student} and {options.teacher}, {options.turns} turns of {options.steps} steps, batch 128"
        )
        for form, rows in found.items():
            print(f"{form}:  " + ", ".join(f"{name} {value:.3f} ms" for name, value in rows["ms"].items()))
            for pair, value in rows["ratios"].items():
                bound = f"  (at most {BOUNDS[pair]:g})" if form == "all" and pair in BOUNDS else ""
                print(f"  {pair:<22} {value:.3f}{bound}")
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
