"""Time and peak memory of the token losses for large vocabularies against their textbook forms.

Run: python benchmarks/speed/vocabulary_losses.py [--json] [--pairs 3] [--cases NAME ...] [--no-peak]

256 tokens, V = 50,000 and 152,000, float32 logits of standard deviation 3, one thread. As in logit_losses.py, each case
is timed forward and backward in one process, ours and its rival in turn, as processor time; the ratio is the median of
the pairwise ratios (above 1: ours is faster). Peak: the rise of the resident set in a fresh process, gradients
included and inputs not, as a multiple of the student's 256 x V logits.

Rivals. Divergences: the formula under autograd. top-k: the same, with the teacher made dense first. transport: softmax,
torch.sort, pad, absolute difference, as the official code of ULD has it; "recorded" has its teacher sorted beforehand,
and its rival sorts live. head: hidden states and heads of width 256 on both sides, KL + cross-entropy; once against
whole logits under autograd, once against the same chunks of rows with gradients summed in the forward pass (the idea of
Liger-Kernel's distillation losses, in plain torch). The gradient of the head's weight is 256 x V numbers, 1.0 times the
logits, and has to exist in every form. Liger-Kernel itself needs a GPU; by its code (ops/fused_linear_jsd.py@0eaa2d5,
float32) it holds that gradient, the product that is added to it, and losses of 256 x V: 3.0, and chunks of logits
beside. Its cross-entropy alone (ops/fused_linear_cross_entropy.py@00eba63) holds the first two: 2.0.

Bounds: divergences and top-k at least 2.0 times as fast, peak at most 2.1; transport at least as fast live and 2.5
times recorded; head: a peak at most that of the plain chunks, and 2.0. The program exits with 1 where one is missed.
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
from typing import NamedTuple

import torch
from logit_losses import peak_bytes
from torch import Tensor

from kdzoo.losses.bounded import skew_kl, skew_reverse_kl, total_variation
from kdzoo.losses.chunk_forms import KL
from kdzoo.losses.divergences import js_divergence, kl_divergence, reverse_kl
from kdzoo.losses.fused_head import LEAST_ROWS, Head, head_loss
from kdzoo.losses.top_k import top_k_kl
from kdzoo.losses.transport import sorted_probabilities, sorted_transport, transport_to_recorded
from kdzoo.top_k import compress, dense

TOKENS, WIDTH, KEPT = 256, 256, 64
ALPHA, BETA = 0.1, 0.5
LIGER = 2.0  # peak of the head's losses in Liger-Kernel, see above
PLAIN = {"axis": -1, "reduction": "none"}

Loss = Callable[[], Tensor]  # one forward pass to a scalar


class Contest(NamedTuple):
    """One case: the tensors that get gradients, the rival's loss and ours."""

    learns: list[Tensor]
    rival: Loss
    ours: Loss


def formula(name: str, student: Tensor, teacher: Tensor) -> Tensor:
    """The divergences as they stand in papers, for autograd."""
    log_p, log_q = torch.log_softmax(teacher, -1), torch.log_softmax(student, -1)
    p, q = log_p.exp(), log_q.exp()
    if name == "kl":
        return (p * (log_p - log_q)).sum(-1)
    if name == "reverse kl":
        return (q * (log_q - log_p)).sum(-1)
    if name == "jsd":
        log_m = (BETA * p + (1 - BETA) * q).log()
        return BETA * (p * (log_p - log_m)).sum(-1) + (1 - BETA) * (q * (log_q - log_m)).sum(-1)
    if name == "skew kl":
        return (p * (log_p - (ALPHA * p + (1 - ALPHA) * q).log())).sum(-1)
    if name == "skew reverse kl":
        return (q * (log_q - ((1 - ALPHA) * p + ALPHA * q).log())).sum(-1)
    return 0.5 * (p - q).abs().sum(-1)


def own(name: str, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    pair = {"student_logits": student, "teacher_logits": teacher, "temperature": temperature, **PLAIN}
    if name == "jsd":
        return js_divergence(beta=BETA, **pair)
    if name == "skew kl":
        return skew_kl(alpha=ALPHA, **pair)
    if name == "skew reverse kl":
        return skew_reverse_kl(alpha=ALPHA, **pair)
    return {"kl": kl_divergence, "reverse kl": reverse_kl, "total variation": total_variation}[name](**pair)


def official_transport(student: Tensor, teacher: Tensor) -> Tensor:
    q = torch.softmax(student, -1).sort(dim=-1, descending=True).values
    p = torch.softmax(teacher, -1).sort(dim=-1, descending=True).values
    p = torch.cat((p, p.new_zeros(len(p), q.shape[1] - p.shape[1])), 1)
    return (q - p).abs().sum(-1)


def whole_head(student: Head, teacher: Head, labels: Tensor) -> Tensor:
    logits = student.hidden @ student.weight.t()
    with torch.no_grad():
        said = teacher.hidden @ teacher.weight.t()
    return formula("kl", logits, said).sum() + torch.nn.functional.cross_entropy(
        logits, labels, reduction="sum"
    )


class PlainChunks(torch.autograd.Function):
    """Rows by rows under autograd, gradients summed in the forward pass."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        teacher: Head,
        labels: Tensor,
    ) -> Tensor:
        for_hidden, for_weight, total = (
            torch.empty_like(hidden),
            torch.zeros_like(weight),
            hidden.new_zeros(()),
        )
        for start in range(0, len(hidden), LEAST_ROWS):  # as many as ours
            rows = slice(start, start + LEAST_ROWS)
            with torch.enable_grad():
                h, w = hidden[rows].detach().requires_grad_(), weight.detach().requires_grad_()
                loss = whole_head(Head(h, w), Head(teacher.hidden[rows], teacher.weight), labels[rows])
            for_hidden[rows], part = torch.autograd.grad(loss, (h, w))
            for_weight += part
            total += loss.detach()
        ctx.save_for_backward(for_hidden, for_weight)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        for_hidden, for_weight = ctx.saved_tensors
        return for_hidden.mul_(upstream), for_weight.mul_(upstream), None, None


def logits(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul_(3)


def contest(case: str, tokens: int = TOKENS) -> Contest:
    """Make the inputs of a case; `tokens` is less for the first, unmeasured call."""
    what, _, size = case.rpartition(" ")
    v = int(size)
    if what.startswith("head"):
        hidden, weight = logits(tokens, WIDTH, seed=0) / 3, logits(v, WIDTH, seed=1) / WIDTH**0.5
        student = Head(hidden.requires_grad_(), weight.requires_grad_())
        teacher = Head(logits(tokens, WIDTH, seed=2) / 3, logits(v, WIDTH, seed=3) / WIDTH**0.5)
        labels = torch.randint(v, (tokens,), generator=torch.Generator().manual_seed(4))
        settings = {"temperature": 1.0, "divergence_weight": 1.0, "label_weight": 1.0, "reduction": "sum"}

        def fused() -> Tensor:
            return head_loss(student, teacher, divergence=KL(), labels=labels, **settings).total

        if what == "head, whole":
            return Contest([hidden, weight], lambda: whole_head(student, teacher, labels), fused)
        return Contest([hidden, weight], lambda: PlainChunks.apply(hidden, weight, teacher, labels), fused)
    student_logits = logits(tokens, v, seed=0).requires_grad_()
    if what.startswith("transport"):
        other = logits(tokens, v * 4 // 5, seed=1)  # another vocabulary

        def rival() -> Tensor:
            return official_transport(student_logits, other).sum()

        if what == "transport live":
            live = lambda: sorted_transport(student_logits, other, temperature=1.0, **PLAIN).sum()  # noqa: E731
            return Contest([student_logits], rival, live)
        recorded = sorted_probabilities(other, temperature=1.0, axis=-1)
        read = lambda: transport_to_recorded(student_logits, recorded, temperature=1.0, **PLAIN).sum()  # noqa: E731
        return Contest([student_logits], rival, read)
    teacher_logits = logits(tokens, v, seed=1)
    if what == "top-k":
        kept = compress(teacher_logits, KEPT)
        return Contest(
            [student_logits],
            lambda: formula("kl", student_logits, dense(kept, v, "spread")).sum(),
            lambda: top_k_kl(student_logits, kept, policy="spread", temperature=1.0, reduction="sum"),
        )
    return Contest(
        [student_logits],
        lambda: formula(what, student_logits, teacher_logits).sum(),
        lambda: own(what, student_logits, teacher_logits).sum(),
    )


DIVERGENCES = ("kl", "reverse kl", "jsd", "skew kl", "skew reverse kl", "total variation")
KINDS = (*DIVERGENCES, "top-k", "transport live", "transport recorded", "head, whole", "head, chunks")
CASES = [f"{kind} {v}" for v in (50_000, 152_000) for kind in KINDS]


def milliseconds(learns: list[Tensor], loss: Loss) -> float:
    """One forward and backward pass, the gradients' memory included."""
    for tensor in learns:
        tensor.grad = None
    start = time.process_time()
    loss().backward()
    return 1000 * (time.process_time() - start)


def measure_time(case: str, pairs: int) -> dict[str, float]:
    found = contest(case)
    rows = []
    for turn in range(pairs + 1):
        a, b = milliseconds(found.learns, found.rival), milliseconds(found.learns, found.ours)
        if turn:  # the first one loads kernels
            rows.append((a, b, a / b))
    a, b, ratio = (statistics.median(column) for column in zip(*rows, strict=True))
    return {"rival_ms": a, "ours_ms": b, "ratio": ratio}


def measure_peak(case: str, which: str) -> float:
    """In this, fresh, process: the peak as a multiple of the student logits' size."""
    torch.set_num_threads(1)
    small, found = contest(case, 2), contest(case)
    getattr(small, which)().backward()
    del small
    loss: Loss = getattr(found, which)
    return peak_bytes(lambda: loss().backward()) / (4 * TOKENS * int(case.rpartition(" ")[2]))


def missed(case: str, row: dict[str, float | None]) -> list[str]:
    """Which bounds a case does not keep."""
    what, found = case.rpartition(" ")[0], []
    least = {"transport live": 1.0, "transport recorded": 2.5}.get(
        what, 0.0 if what.startswith("head") else 2.0
    )
    ratio, ours, rival = row["ratio"], row["ours_peak"], row["rival_peak"]
    if ratio is not None and ratio < least:
        found.append(f"{case}: ratio {ratio:.2f}, expected at least {least}")
    if ours is not None and rival is not None:
        limit = min(rival, LIGER) if what.startswith("head") else 2.1
        if ours > limit:
            found.append(f"{case}: peak {ours:.2f}, expected at most {limit:.2f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument("--pairs", type=int, default=3, help="interleaved pairs of timings for each case")
    parser.add_argument("--cases", nargs="*", default=CASES, choices=CASES, metavar="CASE")
    parser.add_argument("--no-peak", action="store_true", help="measure time only")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "WHICH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(measure_peak(*args.peak))
        return
    torch.set_num_threads(1)
    rows: dict[str, dict[str, float | None]] = {}
    if not args.json:
        print(f"{'case':28}{'rival ms':>10}{'ours ms':>10}{'ratio':>7}{'rival peak':>12}{'ours peak':>11}")
    for case in args.cases:
        row: dict[str, float | None] = {**measure_time(case, args.pairs)}
        for which in ("rival", "ours"):
            row[f"{which}_peak"] = None
            if not args.no_peak and sys.platform == "linux":
                command = [sys.executable, __file__, "--peak", case, which]
                row[f"{which}_peak"] = float(
                    subprocess.run(command, capture_output=True, text=True, check=True).stdout
                )
        rows[case] = row
        if not args.json:
            peaks = [f"{p:.2f}" if (p := row[f"{w}_peak"]) is not None else "-" for w in ("rival", "ours")]
            times = f"{row['rival_ms']:10.1f}{row['ours_ms']:10.1f}{row['ratio']:7.2f}"
            print(f"{case:28}{times}{peaks[0]:>12}{peaks[1]:>11}", flush=True)
    if args.json:
        environment = {"torch": torch.__version__, "python": platform.python_version(), "threads": 1}
        environment["machine"] = platform.processor() or platform.machine()
        print(json.dumps({"environment": environment, "pairs": args.pairs, "cases": rows}, indent=1))
    failures = [line for case, row in rows.items() for line in missed(case, row)]
    if failures:
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
