"""Time and peak memory of the losses on logits against their textbook forms.

Run: python benchmarks/speed/logit_losses.py [--json] [--pairs 7] [--cases NAME ...]

Each case is timed forward and backward on one thread in one process, ours and the textbook form in turn, as
processor time, so that other work on the machine counts less; the ratio is the median of the pairwise ratios
(above 1: ours is faster). Peak memory is measured in a fresh process per case and form: the rise of the resident
set's high-water mark (VmHWM, reset through /proc/self/clear_refs once the inputs exist and the kernels have been run
on one row) over its level before the call. It counts everything the loss allocates, with the gradient that is left
in student.grad, and not the inputs; it is given as a multiple of the student logits' size. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from kdzoo.losses.decoupled import dkd
from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.vocabulary import chunked_kl

Form = Callable[[Tensor, Tensor, float], Tensor]


def textbook(student: Tensor, teacher: Tensor, temperature: float, axis: int = -1) -> Tensor:
    """The formula as it stands in papers, for autograd."""
    log_p = torch.log_softmax(teacher / temperature, axis)
    log_q = torch.log_softmax(student / temperature, axis)
    return (torch.softmax(teacher / temperature, axis) * (log_p - log_q)).sum(axis)


def textbook_half(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The textbook form as training code writes it for half precision: cast up, then the formula."""
    return textbook(student.float(), teacher.float(), temperature)


def textbook_dkd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """DKD from probabilities, alpha = 1, beta = 8, target class 0, times T^2."""
    p, q = torch.softmax(teacher / temperature, 1), torch.softmax(student / temperature, 1)
    is_target = torch.zeros_like(p)
    is_target[:, 0] = 1.0
    p_pair = torch.stack([(p * is_target).sum(1), (p * (1 - is_target)).sum(1)], 1)
    q_pair = torch.stack([(q * is_target).sum(1), (q * (1 - is_target)).sum(1)], 1)
    target = (p_pair * (p_pair.log() - q_pair.log())).sum(1)
    rest = textbook(student / temperature - 1000 * is_target, teacher / temperature - 1000 * is_target, 1.0)
    return temperature**2 * (target + 8 * rest)


def ours_dkd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return dkd(
        student,
        teacher,
        torch.zeros(len(student), dtype=torch.long),
        alpha=1.0,
        beta=8.0,
        temperature=temperature,
        scale_by_temperature_squared=True,
        axis=1,
        reduction="none",
    )


FORMS: dict[str, Form] = {
    "textbook": textbook,
    "textbook-maps": lambda s, t, temperature: textbook(s, t, temperature, 1),
    "textbook-half": textbook_half,
    "textbook-dkd": textbook_dkd,
    "kl": lambda s, t, temperature: kl_divergence(s, t, temperature=temperature, axis=-1, reduction="none"),
    "kl-maps": lambda s, t, temperature: kl_divergence(
        s, t, temperature=temperature, axis=1, reduction="none"
    ),
    "chunked": lambda s, t, temperature: chunked_kl(s, t, temperature=(temperature, temperature), axis=1),
    "dkd": ours_dkd,
}
# name -> (shape, dtype, closed classes, temperature, textbook form, our form)
CASES: dict[str, tuple[tuple[int, ...], torch.dtype, int, float, str, str]] = {
    "kl 8x10": ((8, 10), torch.float32, 0, 4.0, "textbook", "kl"),
    "kl 64x100": ((64, 100), torch.float32, 0, 4.0, "textbook", "kl"),
    "kl 64x1000": ((64, 1000), torch.float32, 0, 4.0, "textbook", "kl"),
    "kl 256x1000": ((256, 1000), torch.float32, 0, 4.0, "textbook", "kl"),
    "kl 256x50000": ((256, 50_000), torch.float32, 0, 1.0, "textbook", "kl"),
    "kl 256x50000 T=2": ((256, 50_000), torch.float32, 0, 2.0, "textbook", "kl"),
    "kl 256x152000": ((256, 152_000), torch.float32, 0, 1.0, "textbook", "kl"),
    "kl 256x152000 T=2": ((256, 152_000), torch.float32, 0, 2.0, "textbook", "kl"),
    "kl 256x50000 bf16": ((256, 50_000), torch.bfloat16, 0, 1.0, "textbook-half", "kl"),
    "kl 256x50000, 64 classes -inf": ((256, 50_000), torch.float32, 64, 1.0, "textbook", "kl"),
    "kl maps 4x19x256x256": ((4, 19, 256, 256), torch.float32, 0, 1.0, "textbook-maps", "kl-maps"),
    "kl maps 4x150x128x128": ((4, 150, 128, 128), torch.float32, 0, 4.0, "textbook-maps", "kl-maps"),
    "dkd 64x100": ((64, 100), torch.float32, 0, 4.0, "textbook-dkd", "dkd"),
    "dkd 256x1000": ((256, 1000), torch.float32, 0, 4.0, "textbook-dkd", "dkd"),
}


def inputs(shape: tuple[int, ...], dtype: torch.dtype, closed: int) -> tuple[Tensor, Tensor]:
    """Normal logits of standard deviation 3; the last `closed` classes are -inf on both sides."""
    generator = torch.Generator().manual_seed(0)
    pair = []
    for _ in range(2):
        logits = torch.randn(shape, generator=generator).mul_(3).to(dtype)
        if closed:
            logits[:, -closed:] = -torch.inf
        pair.append(logits)
    return pair[0].requires_grad_(), pair[1]


def milliseconds(form: Form, student: Tensor, teacher: Tensor, temperature: float, repeats: int) -> float:
    """One forward and backward pass, the gradient's memory included; the mean of `repeats`."""
    start = time.process_time()
    for _ in range(repeats):
        student.grad = None
        form(student, teacher, temperature).sum().backward()
    return 1000 * (time.process_time() - start) / repeats


def peak_bytes(work: Callable[[], object]) -> int:
    """How far the resident set rises over its present level while `work` runs."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # 5: the high-water mark falls to the present resident set
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def measure_peak(case: str, which: str) -> float:
    """In this, fresh, process: the peak as a multiple of the student logits' size."""
    torch.set_num_threads(1)
    shape, dtype, closed, temperature, *forms = CASES[case]
    form = FORMS[forms[which == "ours"]]
    student, teacher = inputs(shape, dtype, closed)
    form(student[:1], teacher[:1], temperature).sum().backward()  # kernels and libraries are loaded here
    student.grad = None
    return peak_bytes(lambda: form(student, teacher, temperature).sum().backward()) / student.nbytes


def measure_time(case: str, pairs: int) -> dict[str, float]:
    shape, dtype, closed, temperature, theirs, ours = CASES[case]
    student, teacher = inputs(shape, dtype, closed)
    repeats = max(1, round(20 / milliseconds(FORMS[ours], student, teacher, temperature, 2)))
    milliseconds(FORMS[theirs], student, teacher, temperature, 1)
    rows = []
    for _ in range(pairs):
        a = milliseconds(FORMS[theirs], student, teacher, temperature, repeats)
        b = milliseconds(FORMS[ours], student, teacher, temperature, repeats)
        rows.append((a, b, a / b))
    a, b, ratio = (statistics.median(column) for column in zip(*rows, strict=True))
    return {"textbook_ms": a, "ours_ms": b, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument("--pairs", type=int, default=7, help="interleaved pairs of timings for each case")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "WHICH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(measure_peak(*args.peak))
        return
    torch.set_num_threads(1)
    rows: dict[str, dict[str, float | None]] = {}
    if not args.json:
        print(
            f"{'case':32}{'textbook ms':>12}{'ours ms':>10}{'ratio':>7}{'textbook peak':>15}{'ours peak':>11}"
        )
    for case in args.cases:
        row: dict[str, float | None] = {**measure_time(case, args.pairs)}
        shape, dtype, *_ = CASES[case]
        big = (
            torch.Size(shape).numel() * dtype.itemsize > 4 << 20
        )  # below, pages of the allocator drown the figure
        for which in ("textbook", "ours"):
            row[f"{which}_peak"] = None
            if big and sys.platform == "linux":
                command = [sys.executable, __file__, "--peak", case, which]
                out = subprocess.run(command, capture_output=True, text=True, check=True)
                row[f"{which}_peak"] = float(out.stdout)
        rows[case] = row
        if not args.json:
            peaks = [f"{p:.2f}" if (p := row[f"{w}_peak"]) is not None else "-" for w in ("textbook", "ours")]
            times = f"{row['textbook_ms']:12.3f}{row['ours_ms']:10.3f}{row['ratio']:7.2f}"
            print(f"{case:32}{times}{peaks[0]:>15}{peaks[1]:>11}", flush=True)
    if args.json:
        environment = {"torch": torch.__version__, "python": platform.python_version(), "threads": 1}
        environment["machine"] = platform.processor() or platform.machine()
        print(json.dumps({"environment": environment, "pairs": args.pairs, "cases": rows}, indent=1))


if __name__ == "__main__":
    main()
