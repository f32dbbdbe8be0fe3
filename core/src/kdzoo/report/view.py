"""All that the page of a bench shows, gathered from its record; no HTML here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from kdzoo.records import Record
from kdzoo.report import details, figures, quality
from kdzoo.report.arms_view import ArmView, arms_view, better, done_rows, method_card, task_card
from kdzoo.report.details import ArmSettings, Grid, Trouble
from kdzoo.report.diagnosis import Diagnosis, diagnose
from kdzoo.report.figures import Gallery
from kdzoo.report.table import (
    Cell,
    baseline_of,
    cells,
    difference,
    heads,
    metric_columns,
    number,
    signed,
    summary,
)
from kdzoo.report.verdicts import SIGNS, ClaimView, claims_view

CORE_HINTS = {
    "agreement": "share of test samples on which student and teacher choose the same class",
    "teacher_kl": "distance of the student's probabilities from the teacher's (KL divergence, nats); 0 is equal",
    "ece": "expected calibration error: how far confidence is from accuracy, on average; 0 is perfect",
}
COST_HINTS = {
    "n": "seeds that finished",
    "params": "parameters of what is shipped after training",
    "Mflop": "millions of floating-point operations for one sample; a multiplication and an addition count as two",
    "ms": "milliseconds for one sample, the median, measured alone on the machine",
    "train s": "seconds of training of one run, validation left out",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the result table."""

    arm: ArmView
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class Head:
    """A column of the result table."""

    text: str
    hint: str
    numeric: bool


@dataclass(frozen=True, slots=True)
class BenchView:
    """See the template ``bench.html``, which shows these in their order."""

    title: str
    headline: list[str]
    smoke: bool
    about: list[tuple[str, str, str]]
    paper_link: tuple[str, str] | None
    command: str
    verdicts: list[ClaimView]
    counts: list[tuple[str, str, int]]
    table_heads: list[Head]
    table_rows: list[Row]
    notes: list[tuple[list[str], str]]
    arms: list[ArmView]
    forests: Gallery
    curves: Gallery
    terms: Gallery
    logged: Gallery
    fidelity: Gallery
    calibration: Gallery
    uncalibrated: list[str]
    errors: Grid | None
    fronts: Gallery
    diagnosis: Diagnosis
    troubles: list[Trouble]
    runs_done: str
    environment: list[tuple[str, str]]
    data: list[tuple[str, str]]
    fairness: str
    runs: Grid
    settings: list[ArmSettings]
    method_settings: Grid | None
    paper: list[dict[str, Any]]
    costs: Grid
    made_at: str
    config_hash: str


def bench_view(record: Record, stored: Mapping[str, Any] | None = None) -> BenchView:
    """Gather what the page shows.

    Args:
        stored: calibration bins by key of artefact, for runs whose record does not hold them.
    """
    record = msgspec.convert(details.scrub(msgspec.to_builtins(record)), Record)
    arms, metrics = arms_view(record), metric_columns(record)
    primary = metrics[0] if metrics else ""
    compared = list(dict.fromkeys(c["metric"] for c in record.comparisons))
    against = list(dict.fromkeys(["student", *filter(None, [baseline_of(record)])]))
    card = method_card(record)
    verdicts = claims_view(record)
    calibrated, absent = quality.calibration(record, arms, dict(stored or {}))
    done = sum(run.status == "done" for run in record.runs)
    return BenchView(
        title=f"{record.id['method']} on {record.id['task']}",
        headline=_headline(record, primary, against),
        smoke=bool(record.id["smoke"]),
        about=_about(record),
        paper_link=_paper_link(card),
        command=record.command,
        verdicts=verdicts,
        counts=[
            (word, SIGNS[word], number)
            for word in SIGNS
            if (number := sum(claim.verdict == word for claim in verdicts))
        ],
        table_heads=_heads(record),
        table_rows=[Row(arm, row) for arm, row in zip(arms, cells(record), strict=True)],
        notes=_notes(record, arms),
        arms=arms,
        forests=figures.forests(record, arms, compared, against),
        curves=figures.curves(record, arms),
        terms=figures.terms(record, arms),
        logged=_logged(record, arms),
        fidelity=quality.fidelity(record, arms, primary),
        calibration=calibrated,
        uncalibrated=absent,
        errors=_errors(record, arms) if not calibrated.first else None,
        fronts=quality.fronts(record, arms, primary),
        diagnosis=diagnose(record, stored),
        troubles=details.troubles(record),
        runs_done=f"{done} of {len(record.runs)} runs finished",
        environment=details.environment(record),
        data=details.data_rows(record),
        fairness=details.fairness(record),
        runs=details.run_rows(record),
        settings=details.arm_settings(record, arms),
        method_settings=details.method_settings(record, _params(record)),
        paper=record.paper,
        costs=details.costs(record, arms),
        made_at=record.made_at,
        config_hash=record.config_hash,
    )


def _headline(record: Record, metric: str, against: list[str]) -> list[str]:
    """The answer in two or three sentences."""
    method = record.id["method"]
    found = summary(record, method, metric) if metric else None
    if found is None:
        return [f"{method} has no finished run with a test metric, so there is nothing to compare."]
    name = figures.short(metric)
    way = better(record, metric)
    spread = "" if found[1] is None else f" ± {number(found[1])}"
    seeds = f"{found[2]} seed{'s' if found[2] != 1 else ''}"
    aim = f" ({way} is better)" if way else ""
    said = [f"{method} reaches {name} {number(found[0])}{spread} over {seeds}{aim}."]
    for other in against:
        row = difference(record, method, other, metric)
        if other == method or row is None or row["mean"] is None:
            continue
        whom = "the student alone" if other == "student" else f"the baseline {other}"
        text = f"Against {whom} that is {signed(row['mean'], row['low'], row['high'])}"
        if row["low"] is None or row["high"] is None:
            said.append(f"{text}; one seed gives no interval, so nothing is shown.")
        elif row["low"] <= 0 <= row["high"]:
            said.append(f"{text}: the interval holds 0, no difference is shown.")
        elif way is None:
            said.append(f"{text}.")
        else:
            good = (row["low"] > 0) == (way == "higher")
            said.append(f"{text}: {'better' if good else 'worse'}, the whole interval lies on that side.")
    return said


def _about(record: Record) -> list[tuple[str, str, str]]:
    """(name, value, hint) of what was asked."""
    which, request = record.id, record.config.get("request", {})
    task, card = task_card(record), method_card(record)
    seeds = sorted({run.seed for run in record.runs if run.seed is not None})
    names = list(dict.fromkeys(run.arm for run in record.runs))
    method = which["method"] + (f": {card.title}" if card else "")
    fidelity = which["fidelity"] + (f": {card.fidelity_text}" if card else "")
    profile = {
        "local": "trains in minutes on data that ships with the plugin",
        "paper": "follows the paper's data, models and schedule",
    }
    rows = [
        ("Method", method, "the way to distil that is tested"),
        ("Faithfulness", fidelity, "how closely our code is known to follow the paper"),
        ("Task", which["task"] + (f": {task.summary}" if task else ""), "data, models and metrics"),
        ("Profile", which["profile"], profile.get(which["profile"], "")),
        ("Arms", f"{len(names)}: {', '.join(names)}", "training configurations that are compared"),
        ("Seeds", ", ".join(map(str, seeds)) or "none", "every arm was trained once with each of them"),
    ]
    if task and task.simulated:
        rows.append(("Simulated", task.simulated, "what is not real data"))
    if request.get("set"):
        rows.append(("Changed settings", ", ".join(request["set"]), "given on the command line"))
    if which["extensions"]:
        rows.append(("Extensions", ", ".join(which["extensions"]), "further plugins that were active"))
    return rows


def _paper_link(card: Any) -> tuple[str, str] | None:
    """(text, address) of the method's paper."""
    if card is None or not card.paper.arxiv:
        return None
    paper = card.paper
    where = paper.venue if str(paper.year) in paper.venue else f"{paper.venue} {paper.year}"
    return f"{paper.title} ({where})", f"https://arxiv.org/abs/{paper.arxiv}"


def _heads(record: Record) -> list[Head]:
    task = task_card(record)
    hints = {
        **CORE_HINTS,
        **COST_HINTS,
        "arm": "training configuration; an asterisk marks one that differs by design",
    }
    if task:
        hints |= {name: metric.text for name, metric in task.metrics.items()}
    found = []
    for text in heads(record):
        way = better(record, f"test/{text}") if text not in ("arm", *COST_HINTS) else None
        hint = hints.get(text, hints.get(text.partition("[")[0], ""))
        if text.startswith("- "):
            other = text.removeprefix("- ").removesuffix(" [95 %]")
            hint = f"mean difference to {other} at equal seed, with its 95 % interval; where that holds 0, "
            hint += "no difference is shown"
        found.append(Head(text, hint + (f"; {way} is better" if way and hint else ""), text != "arm"))
    return found


def _notes(record: Record, arms: list[ArmView]) -> list[tuple[list[str], str]]:
    """What must be read with the table: (arms, what holds for them)."""
    found: dict[str, list[str]] = {}
    for arm in arms:
        facts = record.arms[arm.name]
        if facts["differs"]:
            found.setdefault(
                f"* not equal to the student in {', '.join(facts['differs'])}: {arm.why}", []
            ).append(arm.name)
        if facts.get("control"):
            found.setdefault(f"† control, there to be held against: {arm.text}", []).append(arm.name)
        if any(run.arm == arm.name and run.seed is None for run in record.runs):
            found.setdefault(
                "one model for all seeds: differences to it are conditional on that model", []
            ).append(arm.name)
    for name, why in record.config.get("left_out", {}).items():
        found.setdefault(f"control that was left out: {why}", []).append(name)
    return [(names, said.rstrip(".") + ".") for said, names in found.items()]


def _logged(record: Record, arms: list[ArmView]) -> Gallery:
    """Whatever else methods have logged, by the part of the name before the slash."""
    prefixes = sorted(
        {
            name.rpartition("/")[0]
            for run in record.runs
            for name in run.losses
            if not name.startswith("loss/")
        }
    )
    named = [(arm.name, done_rows(record, arm.name)) for arm in arms]
    found = [figures.term_charts(named, f"{prefix}/" if prefix else "") for prefix in prefixes if prefix]
    return Gallery(
        [figure for gallery in found for figure in gallery.first],
        [],
        [entry for gallery in found for entry in gallery.legend],
    )


def _errors(record: Record, arms: list[ArmView]) -> Grid | None:
    """Calibration errors, where no bins are stored."""
    names = sorted(
        {
            name
            for run in record.runs
            for name in run.metrics
            if name.partition("[")[0] in ("test/ece", "test/nll")
        }
    )
    rows = []
    for arm in arms:
        found = [summary(record, arm.name, name) for name in names]
        if any(found):
            row = [Cell(arm.name, arm.name)]
            for one in found:
                sd = "" if one is None or one[1] is None else f" ± {number(one[1])}"
                row.append(Cell("-", None) if one is None else Cell(number(one[0]) + sd, one[0]))
            rows.append(row)
    heads_ = ["arm", *map(figures.short, names)]
    return Grid("Calibration errors", heads_, rows, CORE_HINTS) if rows else None


def _params(record: Record) -> dict[str, Any]:
    """Settings as the installed cards describe them."""
    task, card = task_card(record), method_card(record)
    return {**(task.params if task else {}), **(card.params if card else {})}
