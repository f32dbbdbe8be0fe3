"""Time and peak memory of losses over score maps, forward and backward, against plain code of their formulas.

    python benchmarks/speed/map_losses.py [--losses bpkd cwd] [--size 128] [--related 32] [--json OUT.json]

The plain forms are what one writes first, from the formula, with autograd: softmax of both sides, one-hot masks for
every class, all similarities at once. Maps are 8 x 19 x 128 x 128, what Cityscapes crops give at stride 4 to 8;
relations between all positions of a batch grow with the square of their number, so theirs are 8 x 19 x 32 x 32: the
plain form's would be 69 GB a matrix at 128.

Time: CPU seconds, so that waiting for other programs does not count; both in turn in one process, the median of the
ratios of neighboring runs, so that a slow phase of the machine hits both. Memory: one fresh process for each form, its
high-water mark (VmHWM, Linux) over what it held before the call, on the second call of two sizes, so that libraries do
not count. One thread.

A further loss is one more entry of `CASES`: both forms take (student, teacher, labels) and give a scalar.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.image_pairs import cross_image_divergence
from kdzoo.losses.maps import channel_wise_divergence
from kdzoo_segmentation.borders import bodies, edges
from kdzoo_segmentation.measures import IGNORE
from kdzoo_segmentation.methods.bpkd import edge_loss, masked_shapes

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
IMAGES, CLASSES, SMALL = 8, 19, 8  # SMALL: side of the maps of the first call, which is not measured
MIN_ROUNDS, MAX_ROUNDS, SECONDS = 3, 31, 8.0  # per loss: at least so many rounds, more while there is time


@dataclass(frozen=True)
class Case:
    """One loss in both forms; `related` ones compare positions with each other, on smaller maps."""

    plain: Loss
    kdzoo: Loss
    related: bool = False


def plain_divergence(student: Tensor, teacher: Tensor, axis: int) -> Tensor:
    with torch.no_grad():
        p = teacher.softmax(axis)
    return (p * (p.log() - student.log_softmax(axis))).sum(axis)


def plain_pixel_kd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return plain_divergence(student, teacher, 1).mean()


def plain_cwd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return plain_divergence(student.flatten(2), teacher.flatten(2), 2).mean()


def plain_bpkd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    counted = labels != IGNORE
    masks = F.one_hot(labels.where(counted, 0), CLASSES).permute(0, 3, 1, 2).float() * counted[:, None]
    others = (1 - masks) * counted[:, None]  # eroding what counts: a pixel to be ignored erodes nothing
    edge = F.max_pool2d(masks, 3, 1, 1) * F.max_pool2d(others, 3, 1, 1) * counted[:, None]
    body, near = masks * (1 - edge), edge.amax(1)
    pixels = plain_divergence(student, teacher, 1)
    shapes = plain_divergence((student * body).flatten(2), (teacher * body).flatten(2), 2)
    return 50 * (pixels * near).sum() / near.sum() + 20 * shapes.mean()


def kdzoo_bpkd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    edge = edges(labels, radius=1, element="square")
    pixels = edge_loss(student, teacher, edge, temperature=1.0, reduction="sum") / edge.sum()
    body = bodies(labels, edge, classes=CLASSES)
    shapes = masked_shapes(student, teacher, body, temperature=1.0, mask_mode="zero", reduction="mean")
    return 50 * pixels + 20 * shapes


def plain_cirkd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    mine, taught = (F.normalize(side, dim=1).flatten(2) for side in (student, teacher))
    total = student.new_zeros(())
    for i in range(len(mine)):
        for j in range(len(mine)):
            total = total + plain_divergence(mine[i].T @ mine[j], taught[i].T @ taught[j], 1).mean()
    return total / len(mine) ** 2


CASES: dict[str, Case] = {
    "pixel-kd": Case(
        plain_pixel_kd, lambda s, t, _: kl_divergence(s, t, temperature=1.0, axis=1, reduction="mean")
    ),
    "cwd": Case(plain_cwd, lambda s, t, _: channel_wise_divergence(s, t, temperature=1.0, reduction="mean")),
    "bpkd": Case(plain_bpkd, kdzoo_bpkd),
    "cirkd": Case(
        plain_cirkd,
        lambda s, t, _: cross_image_divergence(s, t, temperature=1.0, pairs="all", reduction="mean"),
        related=True,
    ),
}


def maps(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Student (requires grad), teacher, and labels of blocks of an eighth of the side, a corner to be ignored."""
    draws = torch.Generator().manual_seed(size)
    student, teacher = torch.randn(2, IMAGES, CLASSES, size, size, generator=draws)
    part = max(1, size // 8)
    blocks = torch.randint(0, CLASSES, (IMAGES, size // part, size // part), generator=draws)
    labels = blocks.repeat_interleave(part, 1).repeat_interleave(part, 2)
    labels[:, :part, :part] = IGNORE
    return student.requires_grad_(), teacher, labels


def step(loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Forward and backward; the gradient."""
    (gradient,) = torch.autograd.grad(loss(student, teacher, labels), student)
    return gradient


def seconds(loss: Loss, *given: Tensor) -> float:
    start = time.process_time()
    step(loss, *given)
    return time.process_time() - start


def compare(name: str, size: int) -> dict[str, Any]:
    """Times of both forms, run in turn, and how far their gradients are apart."""
    given, case = maps(size), CASES[name]
    expected, got = step(case.plain, *given), step(case.kdzoo, *given)
    times: list[tuple[float, float]] = []
    start = time.process_time()
    while len(times) < MAX_ROUNDS and (len(times) < MIN_ROUNDS or time.process_time() - start < SECONDS):
        times.append((seconds(case.plain, *given), seconds(case.kdzoo, *given)))
    ratios = sorted(a / b for a, b in times)
    return {
        "loss": name,
        "shape": [IMAGES, CLASSES, size, size],
        "rounds": len(times),
        "plain_ms": 1e3 * statistics.median(a for a, _ in times),
        "kdzoo_ms": 1e3 * statistics.median(b for _, b in times),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]],
        "gradient_difference": ((got - expected).norm() / expected.norm()).item(),
    }


def status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {field}; memory can be measured on Linux only")


def measure_memory(name: str, form: str, size: int) -> float:
    """MiB above what this process held before one forward and backward. Call it once a process."""
    loss: Loss = getattr(CASES[name], form)
    step(loss, *maps(SMALL))
    given = maps(size)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to the present size
    before = status_kib("VmRSS")
    step(loss, *given)
    return (status_kib("VmHWM") - before) / 1024


def memory_in_fresh_process(name: str, form: str, size: int) -> float:
    command = [sys.executable, __file__, "--measure", name, form, str(size)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--losses", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--size", type=int, default=128, help="side of the maps")
    parser.add_argument(
        "--related", type=int, default=32, help="side where positions are related to each other"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.measure:
        name, form, size = args.measure
        print(measure_memory(name, form, int(size)))
        return
    print(f"torch {torch.__version__}, one thread, float32, forward + backward")
    print(
        f"{'loss':10} {'maps':18} {'plain ms':>9} {'kdzoo ms':>9} {'ratio':>6} {'quartiles':>11} {'plain MiB':>10} "
        f"{'kdzoo MiB':>10} {'ratio':>6} {'grad diff':>10}"
    )
    rows = []
    for name in args.losses:
        size = args.related if CASES[name].related else args.size
        row = compare(name, size)
        for form in ("plain", "kdzoo"):
            row[f"{form}_mib"] = memory_in_fresh_process(name, form, size)
        row["memory_ratio"] = row["plain_mib"] / row["kdzoo_mib"]
        rows.append(row)
        low, high = row["ratio_quartiles"]
        print(
            f"{name:10} {' x '.join(map(str, row['shape'])):18} {row['plain_ms']:9.1f} {row['kdzoo_ms']:9.1f} "
            f"{row['ratio']:6.2f} {low:5.2f}-{high:<5.2f} {row['plain_mib']:10.1f} {row['kdzoo_mib']:10.1f} "
            f"{row['memory_ratio']:6.1f} {row['gradient_difference']:10.1e}",
            flush=True,
        )
    if args.json:
        record = {
            "what": "losses over score maps, forward and backward, one thread, float32",
            "command": "python benchmarks/speed/map_losses.py",
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "rows": rows,
        }
        args.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
