"""Time and peak memory of RKD's losses, forward and backward, against their textbook forms.

    python benchmarks/speed/relation_losses.py [--losses rkd_angle] [--sizes 64 128] [--dim 128]
        [--json OUT.json]

The textbook forms are what one writes first: unit differences as an N x N x D tensor, one batched product,
smooth L1, autograd; and the Gram form of the distances. Time: CPU seconds, so that waiting for other programs
does not count; both in turn in one process, the median of the ratios of neighboring runs, so that a slow phase
of the machine hits both. Memory: one fresh process for each form and size,
its high-water mark (VmHWM, Linux) over what it held before the call, on the second call of two sizes, so that
libraries and thread pools do not count. One thread.
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
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdzoo.losses.relations import rkd_angle, rkd_distance

Loss = Callable[[Tensor, Tensor], Tensor]
MIN_ROUNDS, SECONDS = 3, 5.0  # per loss and size: at least so many rounds, more while there is time
MAX_ROUNDS = 101


def textbook_angle(student: Tensor, teacher: Tensor) -> Tensor:
    def cosines(rows: Tensor) -> Tensor:
        unit = F.normalize(rows.unsqueeze(0) - rows.unsqueeze(1), dim=2)
        return torch.bmm(unit, unit.transpose(1, 2))

    with torch.no_grad():
        target = cosines(teacher)
    return F.smooth_l1_loss(cosines(student), target)


def textbook_distance(student: Tensor, teacher: Tensor) -> Tensor:
    def relative(rows: Tensor) -> Tensor:
        norms = rows.square().sum(dim=1)
        squared = norms.unsqueeze(1) + norms.unsqueeze(0) - 2 * rows @ rows.T
        distances = squared.clamp(min=1e-12).sqrt() * (1 - torch.eye(len(rows)))
        return distances / distances[distances > 0].mean()

    with torch.no_grad():
        target = relative(teacher)
    return F.smooth_l1_loss(relative(student), target)


FORMS: dict[str, dict[str, Loss]] = {
    "rkd_angle": {
        "textbook": textbook_angle,
        "kdzoo": lambda s, t: rkd_angle(s, t, reduction="mean"),
    },
    "rkd_distance": {
        "textbook": textbook_distance,
        "kdzoo": lambda s, t: rkd_distance(s, t, reduction="mean"),
    },
}


def embeddings(n: int, dim: int, *, near: bool) -> tuple[Tensor, Tensor]:
    """Student (requires grad) and teacher; `near` makes every row a near-duplicate of another one."""
    draws = torch.Generator().manual_seed(n)
    student, teacher = torch.randn(2, n, dim, generator=draws)
    if near:
        half = n // 2
        student[half : 2 * half] = student[:half] + 1e-3 * torch.randn(half, dim, generator=draws)
    return student.requires_grad_(), teacher


def step(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    """Forward and backward; the gradient."""
    (gradient,) = torch.autograd.grad(loss(student, teacher), student)
    return gradient


def seconds(loss: Loss, student: Tensor, teacher: Tensor) -> float:
    start = time.process_time()
    step(loss, student, teacher)
    return time.process_time() - start


def compare(name: str, n: int, dim: int, *, near: bool) -> dict[str, Any]:
    """Times of both forms, run in turn, and how far their gradients are apart."""
    student, teacher = embeddings(n, dim, near=near)
    textbook, ours = FORMS[name]["textbook"], FORMS[name]["kdzoo"]
    expected, got = step(textbook, student, teacher), step(ours, student, teacher)
    times: list[tuple[float, float]] = []
    start = time.process_time()
    while len(times) < MAX_ROUNDS and (len(times) < MIN_ROUNDS or time.process_time() - start < SECONDS):
        times.append((seconds(textbook, student, teacher), seconds(ours, student, teacher)))
    ratios = sorted(a / b for a, b in times)
    return {
        "loss": name,
        "n": n,
        "dim": dim,
        "near_duplicates": near,
        "rounds": len(times),
        "textbook_ms": 1e3 * statistics.median(a for a, _ in times),
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


def measure_memory(name: str, form: str, n: int, dim: int, *, near: bool) -> float:
    """MiB above what this process held before one forward and backward at size n. Call it once a process."""
    step(FORMS[name][form], *embeddings(16, dim, near=near))
    student, teacher = embeddings(n, dim, near=near)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to the present size
    before = status_kib("VmRSS")
    step(FORMS[name][form], student, teacher)
    return (status_kib("VmHWM") - before) / 1024


def memory_in_fresh_process(name: str, form: str, n: int, dim: int, *, near: bool) -> float:
    command = [sys.executable, __file__, "--measure", name, form, str(n), str(dim), str(int(near))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 512], metavar="N")
    parser.add_argument("--losses", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--dim", type=int, default=128, metavar="D")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.measure:
        name, form, n, dim, near = args.measure
        print(measure_memory(name, form, int(n), int(dim), near=bool(int(near))))
        return
    print(f"torch {torch.__version__}, one thread, D = {args.dim}, float32, forward + backward")
    header = (
        f"{'loss':13} {'rows':10} {'N':>4} {'textbook ms':>12} {'kdzoo ms':>9} {'ratio':>6} {'quartiles':>13} "
        f"{'textbook MiB':>13} {'kdzoo MiB':>10} {'grad diff':>10}"
    )
    print(header)
    rows = []
    for name in args.losses:
        # Near-duplicates take another way through the angles only.
        for near in (False, True) if name == "rkd_angle" else (False,):
            for n in args.sizes:
                row = compare(name, n, args.dim, near=near)
                for form in ("textbook", "kdzoo"):
                    row[f"{form}_mib"] = memory_in_fresh_process(name, form, n, args.dim, near=near)
                rows.append(row)
                low, high = row["ratio_quartiles"]
                print(
                    f"{name:13} {'near pairs' if near else 'random':10} {n:4} {row['textbook_ms']:12.2f} "
                    f"{row['kdzoo_ms']:9.2f} {row['ratio']:6.1f} {low:6.1f}-{high:<6.1f} "
                    f"{row['textbook_mib']:13.1f} {row['kdzoo_mib']:10.1f} {row['gradient_difference']:10.1e}",
                    flush=True,
                )
    if args.json:
        record = {
            "what": "RKD losses, forward and backward, one thread, float32",
            "command": "python benchmarks/speed/relation_losses.py",
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "rows": rows,
        }
        args.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
