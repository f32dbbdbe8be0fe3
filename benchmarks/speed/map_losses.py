"""Time and peak memory of losses over maps, forward and backward, against plain code of their formulas.

    python benchmarks/speed/map_losses.py [--losses bpkd cwd] [--size 128] [--seconds 8] [--json OUT.json]

The losses, in both forms, and what they are given are `CASES` of map_cases.py. Before anything is timed, both forms'
values and all their gradients are compared; a difference above 1e-4 of their norm ends the run.

Time: CPU seconds, so that waiting for other programs does not count; both in turn in one process, the median of the
ratios of neighboring runs, so that a slow phase of the machine hits both; still, measure on an idle machine. Memory:
one fresh process for each form, its high-water mark (VmHWM, Linux) over what it held before the call, on the second
call of two sizes, so that libraries do not count. One thread. All losses take about six minutes; `--seconds 1
--no-memory` gives a first look in one.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from map_cases import CASES, Given, Loss
from torch import Tensor, nn

SMALL = 16  # side of the maps of the first call, which is not measured
MIN_ROUNDS, MAX_ROUNDS = 3, 31  # per loss: at least so many rounds, more while there is time
TOLERANCE = 1e-4  # of the norm


def differentiated(given: Given) -> list[Tensor]:
    """Tensors that require a gradient, and parameters of modules."""
    parts = (part.parameters() if isinstance(part, nn.Module) else [part] for part in given)
    return [tensor for part in parts for tensor in part if tensor.requires_grad]


def step(loss: Loss, given: Given) -> list[Tensor]:
    """Forward and backward: the value, then the gradients."""
    value, leaves = loss(*given), differentiated(given)
    return [value.detach(), *(torch.autograd.grad(value, leaves) if leaves else ())]


def seconds(loss: Loss, given: Given) -> float:
    start = time.process_time()
    step(loss, given)
    return time.process_time() - start


def difference(expected: list[Tensor], got: list[Tensor]) -> float:
    """The largest distance of a value or gradient of both forms, as a share of its norm."""
    pairs = zip(expected, got, strict=True)
    return max(((mine - true).norm() / true.norm().clamp(min=1e-12)).item() for true, mine in pairs)


def compare(name: str, size: int, budget: float) -> dict[str, Any]:
    """Times of both forms, run in turn, and how far their values and gradients are apart."""
    case = CASES[name]
    given = case.given(size)
    apart = difference(step(case.plain, given), step(case.kdzoo, given))
    if not apart < TOLERANCE:
        raise SystemExit(
            f"{name}: the two forms differ by {apart:.1e} of the norm; there is nothing to compare"
        )
    times: list[tuple[float, float]] = []
    start = time.process_time()
    while len(times) < MAX_ROUNDS and (len(times) < MIN_ROUNDS or time.process_time() - start < budget):
        times.append((seconds(case.plain, given), seconds(case.kdzoo, given)))
    ratios = sorted(a / b for a, b in times)
    first = next(
        part for part in given if isinstance(part, Tensor) and (part.requires_grad or len(given) == 2)
    )
    return {
        "loss": name,
        "shape": list(first.shape),
        "rounds": len(times),
        "plain_ms": 1e3 * statistics.median(a for a, _ in times),
        "kdzoo_ms": 1e3 * statistics.median(b for _, b in times),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]],
        "difference": apart,
    }


def status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {field}; memory can be measured on Linux only")


def measure_memory(name: str, form: str, size: int) -> float:
    """MiB above what this process held before one forward and backward. Call it once a process."""
    loss: Loss = getattr(CASES[name], form)
    step(loss, CASES[name].given(SMALL))
    given = CASES[name].given(size)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to the present size
    before = status_kib("VmRSS")
    step(loss, given)
    return (status_kib("VmHWM") - before) / 1024


def memory_in_fresh_process(name: str, form: str, size: int) -> float:
    command = [sys.executable, __file__, "--measure", name, form, str(size)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--losses", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--size", type=int, default=128, help="side of the scores, a multiple of 16")
    parser.add_argument("--seconds", type=float, default=8.0, help="CPU time a loss")
    parser.add_argument("--no-memory", action="store_true", help="times only")
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
        f"{'loss':13} {'first map':18} {'plain ms':>9} {'kdzoo ms':>9} {'ratio':>6} {'quartiles':>11} "
        f"{'difference':>10} {'plain MiB':>10} {'kdzoo MiB':>10} {'ratio':>6}"
    )
    rows = []
    for name in args.losses:
        row = compare(name, args.size, args.seconds)
        low, high = row["ratio_quartiles"]
        print(
            f"{name:13} {' x '.join(map(str, row['shape'])):18} {row['plain_ms']:9.1f} {row['kdzoo_ms']:9.1f} "
            f"{row['ratio']:6.2f} {low:5.2f}-{high:<5.2f} {row['difference']:10.1e}",
            end="" if not args.no_memory else "\n",
            flush=True,
        )
        rows.append(row)
        if args.no_memory:
            continue
        for form in ("plain", "kdzoo"):
            row[f"{form}_mib"] = memory_in_fresh_process(name, form, args.size)
        row["memory_ratio"] = row["plain_mib"] / max(row["kdzoo_mib"], 0.1)
        print(f" {row['plain_mib']:10.1f} {row['kdzoo_mib']:10.1f} {row['memory_ratio']:6.1f}", flush=True)
    if args.json:
        record = {
            "what": "losses over maps, forward and backward, one thread, float32",
            "command": "python benchmarks/speed/map_losses.py",
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "rows": rows,
        }
        args.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
