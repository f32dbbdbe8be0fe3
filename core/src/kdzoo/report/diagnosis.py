"""Why distillation did not help, as far as a record can tell: rules on its numbers, each with the numbers it used.

A finding is a lead, not a proof: what a record holds (metrics, curves, logged loss terms, settings) can show that a
teacher is no better than its student, but not, say, that two gradients pull apart. What could not be looked at is
named, so that silence is no acquittal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kdzoo.intervals import Comparison, paired
from kdzoo.records import Record, RunRow
from kdzoo.report.arms_view import better, done_rows, mean
from kdzoo.report.figures import averaged, short
from kdzoo.report.quality import pooled
from kdzoo.report.scale import finite
from kdzoo.report.table import arm_names, metric_columns, number, signed, summary

Level = Literal["likely", "possible"]

SIGNS: dict[str, str] = {"likely": "✗", "possible": "?"}
SMALL_SHARE = 0.01  # of the sum of all terms: below, a term moves the sum less than the noise between batches
FLAT = 0.05  # a term that falls by less than this share was not minimised
CLOSED = 0.25  # share of the student's distance to the teacher that a method should close
SURE = 0.98  # mean confidence from which soft labels say little more than hard ones
HOT = 20.0  # a temperature from which all classes look alike
STILL_RISING = 0.25  # share of all progress that falls into the last quarter of the steps


@dataclass(frozen=True, slots=True)
class Finding:
    """One lead: what was seen (with numbers), and what to try."""

    level: Level
    title: str
    text: str
    remedy: str = ""

    @property
    def sign(self) -> str:
        return SIGNS[self.level]


@dataclass(slots=True)
class Diagnosis:
    """Findings, the likely ones first; `unchecked` says what the record could not answer."""

    summary: str
    findings: list[Finding] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


def diagnose(record: Record, stored: Mapping[str, Any] | None = None) -> Diagnosis:
    """Look at a bench's method arm against the student, the teacher, the controls and its own variants.

    Args:
        stored: calibration bins by key of artefact, where the record does not hold them.
    """
    method, metrics = record.id["method"], metric_columns(record)
    metric = metrics[0] if metrics else ""
    way = better(record, metric) if metric else None
    if not metric or summary(record, method, metric) is None:
        return Diagnosis(f"{method} has no finished run with a test metric: see the failures first.")
    if way is None:
        return Diagnosis(
            f"it is unknown which way {short(metric)} is better: the task {record.id['task']} is not installed here.",
            unchecked=["everything that asks what is better"],
        )
    view = _View(record, method, metric, 1.0 if way == "higher" else -1.0)
    found = Diagnosis(_outcome(view))
    for rule in (_teacher, _transfer, _controls, _variants, _seeds):
        found.findings += rule(view, found.unchecked)
    found.findings += list(loss_terms(method, done_rows(record, method)))
    found.findings += list(curve(method, done_rows(record, method), f"val/{short(metric)}", view.sign))
    found.findings += list(_temperature(view, stored or {}, found.unchecked))
    found.unchecked.append(
        "whether gradients pull apart, or teacher and student see different input: no record holds that"
    )
    found.findings.sort(key=lambda one: list(SIGNS).index(one.level))
    return found


def diagnose_stage(manifest: Mapping[str, Any]) -> Diagnosis:
    """What one stage alone can tell: its loss terms and its curves."""
    name = str(manifest["name"])
    row = RunRow(arm=name, seed=manifest["seed"], status="done", losses=manifest.get("logs") or {})
    found = Diagnosis(
        f"{name} is one stage of one run: only its loss terms can be looked at.",
        list(loss_terms(name, [row])),
        ["everything that compares with another arm: name the bench for that"],
    )
    if not any(key.startswith("loss/") for key in row.losses):
        found.summary = f"{name} trained nothing: there is nothing to look at."
    return found


@dataclass(frozen=True, slots=True)
class _View:
    """The record, and how to compare on its first metric; a gain is positive where the first arm is better."""

    record: Record
    method: str
    metric: str
    sign: float

    def gain(self, one: str, other: str, metric: str = "", sign: float | None = None) -> Comparison | None:
        metric, sign = metric or self.metric, self.sign if sign is None else sign

        def by_seed(arm: str) -> dict[int | None, float]:
            rows = done_rows(self.record, arm)
            read = {row.seed: row.metrics.get(metric, {}).get("value") for row in rows}
            return {
                seed: sign * value
                for seed, value in read.items()
                if value is not None and math.isfinite(value)
            }

        mine, theirs = by_seed(one), by_seed(other)
        found = paired(mine, theirs) if mine and theirs else None
        return found if found is not None and found.mean is not None else None

    def value(self, arm: str, metric: str = "") -> float | None:
        found = summary(self.record, arm, metric or self.metric)
        return found[0] if found else None


def _said(gain: Comparison) -> str:
    assert gain.mean is not None
    return signed(gain.mean, gain.low, gain.high)


def _outcome(view: _View) -> str:
    gain = view.gain(view.method, "student")
    if gain is None:
        return f"{view.method} has no seed in common with the student alone."
    said = f"{view.method} against the student alone on {short(view.metric)}: {_said(gain)}, positive is better. "
    if gain.low is None or gain.high is None:
        return said + "One seed gives no interval."
    if gain.low > 0:
        return said + "Distillation helped; what follows may still show where more is to be had."
    return said + ("Distillation did harm." if gain.high < 0 else "No difference is shown.")


def _teacher(view: _View, unchecked: list[str]) -> Iterator[Finding]:
    """A teacher that knows no more than the student has nothing to teach."""
    gap = view.gain("teacher", "student")
    if gap is None or gap.mean is None:
        unchecked.append("whether the teacher is better than the student: there is no teacher arm")
        return
    reached = f"teacher {number(view.value('teacher'))}, student alone {number(view.value('student'))}"
    if gap.mean <= 0:
        yield Finding(
            "likely",
            "The teacher is no better than the student",
            f"On {short(view.metric)}: {reached}.",
            "Train or choose a better teacher before tuning anything else.",
        )
    elif gap.low is not None and gap.low <= 0:
        yield Finding(
            "possible",
            "The teacher is hardly better than the student",
            f"On {short(view.metric)}: {reached}; the difference {_said(gap)} holds 0.",
            "There is little to be gained from this teacher; try a better one.",
        )


def _transfer(view: _View, unchecked: list[str]) -> Iterator[Finding]:
    """Whether the method brought the student nearer to the teacher at all."""
    names = sorted({n for row in view.record.runs for n in row.metrics if short(n).endswith("agreement")})
    if not names:
        unchecked.append("whether the student came closer to the teacher: no agreement was measured")
        return
    name = names[0]
    nearer = view.gain(view.method, "student", name, 1.0)
    alone, now = view.value("student", name), view.value(view.method, name)
    if nearer is None or nearer.mean is None or alone is None or now is None or alone >= 1:
        return
    closed = (now - alone) / (1 - alone)
    text = f"{short(name)} with the teacher: student alone {number(alone)}, "
    text += f"{view.method} {number(now)} ({_said(nearer)})."
    if nearer.mean <= 0 or (nearer.low is not None and nearer.low <= 0):
        yield Finding(
            "likely",
            "The method did not bring the student closer to the teacher",
            text,
            "Raise the weight of the method's loss, train longer, or look at its terms: the teacher's knowledge does "
            "not arrive.",
        )
        return
    if closed < CLOSED:
        yield Finding(
            "possible",
            "The student stays far from the teacher",
            f"{text} That is {closed:.0%} of the way.",
            "The student may be too small for this teacher, or the method's weight too low.",
        )
    gain = view.gain(view.method, "student")
    if gain is not None and gain.low is not None and gain.low <= 0:
        yield Finding(
            "possible",
            "Closer to the teacher, yet not better",
            text,
            f"What the student takes over does not carry {short(view.metric)}; another kind of knowledge might.",
        )


def _controls(view: _View, unchecked: list[str]) -> Iterator[Finding]:
    """A control that is as good as the method shows that the method's idea is not what helps."""
    seen = False
    for name in arm_names(view.record):
        arm = view.record.arms[name]
        lead = view.gain(view.method, name) if arm.get("control") and "size" not in arm["differs"] else None
        if lead is None or lead.mean is None:
            continue
        seen = True
        if lead.low is None or lead.low > 0:
            continue
        no_teacher = any(word in name for word in ("permut", "shuffl", "random"))
        yield Finding(
            "likely" if no_teacher else "possible",
            f"The control {name} is as good as the method",
            f"{name}: {arm['text']}. {view.method} against it: {_said(lead)}, which does not lie above 0.",
            "What the teacher says about a sample plays no part: the gain, if any, is that of a regulariser."
            if no_teacher
            else "The control explains the result as well as the method does.",
        )
    if not seen:
        unchecked.append("whether a control does as well: none of the method's size has finished")


def _variants(view: _View, unchecked: list[str]) -> Iterator[Finding]:
    """A variant of the same size and budget that beats the method says which part is in the way here."""
    for name in arm_names(view.record):
        arm = view.record.arms[name]
        if name == view.method or arm["method"] != view.method or arm.get("control") or arm["differs"]:
            continue
        lead = view.gain(name, view.method)
        if lead is not None and lead.low is not None and lead.low > 0:
            changed = ", ".join(f"{key} = {value}" for key, value in sorted(arm["set"].items()))
            yield Finding(
                "possible",
                f"{name} does better than the method itself",
                f"{arm['text']}: {_said(lead)} against {view.method}"
                + (f", with {changed}." if changed else "."),
                "On this task the changed part is in the way. Choose it on validation data, then test anew.",
            )


def _seeds(view: _View, unchecked: list[str]) -> Iterator[Finding]:
    """An interval that holds 0 may say too few seeds rather than no effect."""
    gain = view.gain(view.method, "student")
    if gain is None or gain.mean is None:
        return
    if gain.low is None or gain.high is None:
        yield Finding("likely", "One seed", "A single seed gives no interval.", "Use --seeds 5.")
    elif gain.low <= 0 < gain.mean:
        from scipy.special import stdtrit

        sd = (gain.high - gain.mean) / float(stdtrit(gain.n - 1, 0.975)) * math.sqrt(gain.n)
        needed = next(
            (
                n
                for n in range(gain.n + 1, 1001)
                if float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n) < gain.mean
            ),
            None,
        )
        much = "more than 1,000" if needed is None else f"about {needed}"
        yield Finding(
            "possible",
            "Too few seeds to tell",
            f"The mean is {gain.mean:+.3f} over {gain.n} seeds, which vary by {sd:.3f}. If that mean is true, it takes "
            f"{much} seeds to show it.",
            "Use more seeds, or accept that the effect is too small to matter here.",
        )


def loss_terms(name: str, rows: Sequence[RunRow]) -> Iterator[Finding]:
    """Terms that are zero, that hardly weigh in the sum, or that training did not move.

    Values, not gradients: a small term can still have a large gradient, hence no finding is more than possible,
    except for a term that is 0 throughout.
    """
    keys = sorted({key for row in rows for key in row.losses if key.startswith("loss/")})
    ends: dict[str, float] = {}
    for key in keys:
        points, _ = averaged([row.losses.get(key, []) for row in rows])
        if not points:
            continue
        term = key.removeprefix("loss/")
        later = [value for _, value in points[len(points) // 2 :]]
        ends[term] = mean(abs(value) for value in later) or 0.0
        if all(value == 0 for _, value in points):
            yield Finding(
                "likely",
                f"The loss term {term} of {name} is 0 throughout",
                f"All {len(points)} logged values are 0.",
                "Its weight is 0, or what it reads is constant.",
            )
            continue
        first, last = points[0][1], mean(later[-max(1, len(later) // 5) :]) or 0.0
        if first > 0 and len(points) >= 10 and abs(last - first) < FLAT * first:
            yield Finding(
                "possible",
                f"The loss term {term} of {name} did not move",
                f"It began at {first:.3g} and ended at {last:.3g}.",
                "Raise its weight or the learning rate, or look for a branch that no gradient reaches.",
            )
    whole = sum(ends.values())
    for term, value in ends.items():
        if 0 < value < SMALL_SHARE * whole:
            largest = max(ends, key=lambda one: ends[one])
            yield Finding(
                "possible",
                f"The loss term {term} of {name} is out of scale",
                f"In the second half of training it is {value:.2g}, {value / whole:.2%} of the sum; {largest} is "
                f"{ends[largest]:.2g}.",
                "Raise its weight, and choose it on validation data.",
            )


def curve(name: str, rows: Sequence[RunRow], metric: str, sign: float) -> Iterator[Finding]:
    """Training that stopped too early, or too late."""
    points, _ = averaged([row.curves.get(metric, []) for row in rows])
    if len(points) < 4:
        return
    first, last = points[0][1] * sign, points[-1][1] * sign
    best_step, best = max(((step, value * sign) for step, value in points), key=lambda point: point[1])
    border = points[-1][0] * 0.75
    before = max((value * sign for step, value in points if step <= border), default=first)
    if last > first and last >= best and last - before > STILL_RISING * (last - first):
        yield Finding(
            "possible",
            f"{name} was still getting better when training ended",
            f"{(last - before) / (last - first):.0%} of its progress on {metric} falls into the last quarter of the "
            "steps.",
            "Train longer; give the student alone as many steps, or the comparison is not fair.",
        )
    elif best - last > STILL_RISING * max(best - first, 1e-12):
        yield Finding(
            "possible",
            f"{name} was better before training ended",
            f"{metric} was {number(best * sign)} at step {best_step:g} and is {number(last * sign)} at the end.",
            "Fewer steps, a lower learning rate, or more regularisation; chosen on validation data.",
        )


def _temperature(view: _View, stored: Mapping[str, Any], unchecked: list[str]) -> Iterator[Finding]:
    """A temperature at which the teacher's probabilities say no more than labels, or nothing at all."""
    settings = view.record.config.get("settings", {}).get(view.method, {})
    known = {
        key: value for key, value in settings.items() if key.rpartition(".")[2] in ("temperature", "tau")
    }
    values = {
        key: float(v) for key, v in known.items() if isinstance(v, int | float) and not isinstance(v, bool)
    }
    if not values:
        return
    for key, value in values.items():
        if value >= HOT:
            yield Finding(
                "possible",
                "The temperature is so high that all classes look alike",
                f"{key} = {value:g}.",
                "Temperatures between 1 and 10 are usual.",
            )
    several = [
        bins
        for row in done_rows(view.record, "teacher")
        for bins in (row.reliability or stored.get(row.items or "", {})).values()
    ]
    bins = pooled(several)
    items = sum(count for count, _, _ in bins)
    if not items:
        unchecked.append(
            "whether the teacher is too sure for the temperature: its confidences are not stored"
        )
        return
    sure = sum(count * confidence for count, _, confidence in bins if confidence is not None) / items
    low = [key for key, value in values.items() if value <= 1]
    if low and finite([sure]) and sure >= SURE:
        yield Finding(
            "possible",
            "The teacher is too sure for this temperature",
            f"Its mean confidence is {sure:.3f} and {low[0]} = {values[low[0]]:g}: its probabilities say little more "
            "than a label.",
            "Raise the temperature, or match logits.",
        )
