"""What core's training loop costs over a loop written by hand for the same mathematics.

Both train the same small net at batch 8 on one thread with the same fused optimiser: cross-entropy plus
T^2 KL(teacher || student), a live teacher, a cosine learning rate, batches from the same shuffled epochs through the
same collate function and the same loss function (whose own cost is measured by logit_losses.py; a row with the common
form of KL is shown beside). The hand-written loop draws no augmentation seeds, checks no NaN, logs and saves nothing.
The core's loop is a whole run: `fit_stage` with hooks, loader, per-sample seeds, guard, logs, progress.

The loops take turns. Times are CPU time of the process, which on one thread is wall-clock time without what other
processes take. Printed: median milliseconds a step, and the median over turns of difference and ratio. The third
loop is the one written by hand with model, optimiser and backward wrapped by accelerate.

    python benchmarks/speed/loop.py [--steps 1000] [--pairs 11] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from torch import nn

from kdzoo import fit
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.method import Batch, Role, Term
from kdzoo.rng import mix
from kdzoo.runs import Run
from kdzoo.testing import toy

CLOCK = (
    time.process_time
)  # with one thread the same as wall-clock time on an idle machine, and right on a busy one
ROLES = (Role("student"), Role("teacher", "frozen", seed=1))
ROWS = 4096
SETTINGS = {
    "optimizer": "adamw",
    "lr": 0.01,
    "dropout": 0.0,
    "hidden": 32,
    "eval_every": 0,
    "temperature": 4.0,
}


class Distil:
    """The plain distillation term, as the method hinton-kd has it."""

    @hookimpl
    def loss_terms(self, run: Run, batch: Batch) -> dict[str, Term]:
        student, teacher = run.out("student").logits, run.signal("teacher").logits
        temperature = float(run.cfg.temperature)
        total = kl_divergence(student, teacher, temperature=temperature, axis=1, reduction="sum")
        return {"kd": Term(total, weight=float(run.cfg.kd_weight) * temperature**2, per="item")}


def core(steps: int, folder: Path) -> tuple[float, nn.Module]:
    """Milliseconds a step of core's loop, and the student."""
    run = toy.run(folder, roles=ROLES, settings={**SETTINGS, "steps": steps}, add=[Distil()], method=False)
    fit.roles.build(run)
    for name, module in run.models.items():
        module.train(name == "student")
    run.orders()  # as fit_stage does for the order's hash
    began = CLOCK()
    run.hook.fit(run=run)
    return (CLOCK() - began) / steps * 1000, run.models["student"]


def by_hand(
    steps: int, folder: Path, wrap: bool = False, divergence: Callable[..., torch.Tensor] = kl_divergence
) -> tuple[float, nn.Module]:
    """The same with nothing of core in the loop; with `wrap`, through accelerate's wrappers."""
    student, teacher = models()
    data = toy.data(None, "train")
    batch, n, warmup, base = 8, len(data), toy.SETTINGS["warmup"], SETTINGS["lr"]
    optimizer = torch.optim.AdamW(student.parameters(), lr=base, weight_decay=0.01, fused=True)
    if wrap:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        student, optimizer = accelerator.prepare(student, optimizer)
    temperature = SETTINGS["temperature"]
    seeds = torch.zeros(batch, dtype=torch.int64)
    began = CLOCK()
    epoch, position, order = 0, 0, shuffled(n, 0)
    for step in range(steps):
        rows = order[position : position + batch]
        position += batch
        if position >= n:
            epoch, position, order = epoch + 1, 0, shuffled(n, epoch + 1)
        part = data.collate(data.items, rows, seeds)
        x, y = part.views["image"], part.labels
        lr = base * (step + 1) / warmup if step < warmup else cosine(base, step, steps, warmup)
        for group in optimizer.param_groups:
            group["lr"] = lr
        logits = student(x).logits
        with torch.no_grad():
            taught = teacher(x).logits
        apart = divergence(logits, taught, temperature=temperature, axis=1, reduction="mean")
        loss = F.cross_entropy(logits, y) + temperature**2 * apart
        if wrap:
            accelerator.backward(loss)
        else:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return (CLOCK() - began) / steps * 1000, student


def plain_kl(logits: torch.Tensor, taught: torch.Tensor, temperature: float, **_: object) -> torch.Tensor:
    """KL as it is commonly written: no check, no mask, no care for classes of probability 0."""
    p, log_q = F.log_softmax(taught / temperature, 1), F.log_softmax(logits / temperature, 1)
    return F.kl_div(log_q, p, reduction="batchmean", log_target=True)


def by_hand_plain_kl(steps: int, folder: Path) -> tuple[float, nn.Module]:
    return by_hand(steps, folder, divergence=plain_kl)


def accelerated(steps: int, folder: Path) -> tuple[float, nn.Module]:
    return by_hand(steps, folder, wrap=True)


def cosine(base: float, step: int, steps: int, warmup: int) -> float:
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def shuffled(n: int, epoch: int) -> torch.Tensor:
    """The same epochs as core's, so that both loops see the same rows."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(mix(0, "order", "train", epoch)))


def models() -> tuple[nn.Module, nn.Module]:
    """Student and teacher with the weights that core's loop starts from."""
    made = []
    for name, seed in (("student", 0), ("teacher", 1)):
        torch.manual_seed(mix(seed, "init", name))
        made.append(toy.Toy(SETTINGS["hidden"], 0.0))
    made[1].eval().requires_grad_(False)
    return made[0], made[1]


def check_same(folder: Path) -> float:
    """Largest difference of the weights after 50 steps without augmentation: the two loops do the same maths."""
    plain = toy.collate
    toy.collate = lambda items, rows, seeds: plain(items, rows, torch.zeros_like(rows))
    try:
        ours, theirs = core(50, folder / "same")[1], by_hand(50, folder)[1]
    finally:
        toy.collate = plain
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="steps of one turn")
    parser.add_argument("--pairs", type=int, default=11, help="turns of each loop")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    toy.SIZES["train"] = ROWS
    contenders: dict[str, Callable[[int, Path], tuple[float, nn.Module]]] = {"by hand": by_hand, "core": core}
    contenders |= {"by hand, plain KL": by_hand_plain_kl, "accelerate": accelerated}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        apart = check_same(folder)
        if apart > 1e-5:
            sys.exit(f"the loops do not compute the same: weights differ by {apart:.2g} after 50 steps")
        for contender in contenders.values():
            contender(50, folder / "warm")
        for pair in range(options.pairs):
            for contender, function in contenders.items():
                times[contender].append(function(options.steps, folder / f"{contender}-{pair}")[0])
    result = {
        "steps": options.steps,
        "pairs": options.pairs,
        "batch": 8,
        "threads": 1,
        "weights_apart": apart,
    }
    rows = {}
    for contender, measured in times.items():
        hand = times["by hand"]
        rows[contender] = {
            "ms": statistics.median(measured),
            "over_ms": statistics.median(a - b for a, b in zip(measured, hand, strict=True)),
            "ratio": statistics.median(a / b for a, b in zip(measured, hand, strict=True)),
        }
    if options.json:
        print(json.dumps({**result, "loops": rows}, indent=1))
        return
    print(
        f"{options.pairs} turns of {options.steps} steps each, batch 8, one thread; weights apart by {apart:.1g}"
    )
    print(f"{'loop':<18} {'ms/step':>8} {'over hand':>10} {'ratio':>6}")
    for contender, row in rows.items():
        print(f"{contender:<18} {row['ms']:>8.3f} {row['over_ms']:>+10.3f} {row['ratio']:>6.2f}")


if __name__ == "__main__":
    main()
