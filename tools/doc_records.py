"""What the documents say of committed records: results, verdicts, costs. A library of `doc_pages.py`."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdzoo import records
from kdzoo.arms import arms_of
from kdzoo.cards import MethodCard, TaskCard, TaskUse
from kdzoo.catalog import Catalog
from kdzoo.claims import MIN_SEEDS_COMMITTED, MIN_SEEDS_TESTABLE, combined
from kdzoo.controls import controls_of
from kdzoo.errors import KdzooError
from kdzoo.records import Record, RunRow
from kdzoo.report import table as tables

LONG = 8 * 60.0
"""Core-seconds of all stages, four minutes on two cores: a bench that takes longer may be kept with three seeds."""

Records = Mapping[tuple[str, str], Record]
"""(slug, task) -> record."""


def read_records(folder: Path, cards: Catalog) -> Records:
    """All committed records; one that does not fit the cards, or is no record to commit, is an error."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        record = records.read(path)
        slug, task = record.id["method"], record.id["task"]
        if path.name != f"{slug}.{task}.json":
            raise KdzooError(
                f"{path.name}: the record is of {slug} on {task}; expected the name {slug}.{task}.json"
            )
        if problems := [*unfinished(record), *outdated(record, cards)]:
            remedy = f"Make it again: {bench_command(slug, task, record=True)}"
            raise KdzooError(f"{path.name} {'; '.join(problems)}. {remedy}")
        # JSON sorts keys by name; people read teacher, student, baseline, method.
        order = [*arms_of(cards, cards.method(slug), cards.task(task))]
        order += [arm for arm in controls_of(cards.method(slug), cards.task(task))[0] if arm in record.arms]
        record.arms = {arm: record.arms[arm] for arm in order}
        found[(slug, task)] = record
    return found


def unfinished(record: Record) -> list[str]:
    """Why a record may not be committed, whatever the cards say."""
    problems = []
    if record.id["smoke"]:
        problems.append("is of a smoke run, whose numbers mean nothing")
    if changed := record.config.get("request", {}).get("set"):
        problems.append(f"was made with other settings than the cards': {', '.join(changed)}")
    if record.failures or any(row.status != "done" for row in record.runs):
        problems.append("has runs that failed or were refused")
    seeds = {row.seed for row in record.runs if row.arm == record.id["method"]}
    long = sum(stage["seconds"] for stage in record.stages.values()) > LONG
    if len(seeds) < (least := MIN_SEEDS_TESTABLE if long else MIN_SEEDS_COMMITTED):
        problems.append(f"has {len(seeds)} seeds, expected {least}")
    return problems


def outdated(record: Record, cards: Catalog) -> list[str]:
    """Where a record and the cards as they are now part."""
    card, task, problems = cards.method(record.id["method"]), cards.task(record.id["task"]), []
    if (record.id["method_version"], record.id["task_version"]) != (card.version, task.version):
        problems.append("was made with another version of the method's or the task's card")
    arms = arms_of(cards, card, task).keys()
    if missing := arms - record.arms.keys():
        problems.append(f"lacks arms of the card: {', '.join(sorted(missing))}")
    controls, _ = controls_of(card, task)
    if unknown := record.arms.keys() - arms - controls.keys():
        problems.append(f"has arms that the card no longer has: {', '.join(sorted(unknown))}")
    if unknown := {str(claim["claim"]) for claim in record.claims} - {
        str(claim.claim) for claim in card.claims
    }:
        problems.append(f"answers claims that the card no longer has: {', '.join(sorted(unknown))}")
    return problems


def bench_command(slug: str, task: str, *, record: bool = False) -> str:
    """The command of a bench; with `record`, the one that makes the committed record."""
    command = f"kdzoo bench {shlex.quote(slug)} --task {shlex.quote(task)}"
    return (
        f"{command} --arms all --seeds 5 --out benchmarks/results/{slug}.{task}.json" if record else command
    )


def own_rows(found: Records, card: MethodCard, task: str) -> list[RunRow]:
    record = found.get((card.slug, task))
    return [] if record is None else [row for row in record.runs if row.arm.split(".")[0] == card.slug]


def results(card: MethodCard, cards: Catalog, found: Records) -> list[str]:
    parts = []
    for task, use in tasks_of(card, cards):
        record = found.get((card.slug, task.slug))
        if record is not None:
            parts += result(record, task)
        elif use.profile == "local":
            parts += [
                f"### {task.slug}",
                f"No record yet. `{bench_command(card.slug, task.slug, record=True)}` makes it.",
            ]
    if card.results:
        rows = [["setting", "metric", "value", "source"]]
        rows += [[r.setting, r.metric, r.value, r.source] for r in card.results]
        parts += [
            "### The paper's numbers",
            "Another setting than ours: not to be compared digit by digit.",
            markdown(rows),
        ]
    return parts


def result(record: Record, task: TaskCard) -> list[str]:
    """Ours, with verdicts."""
    environment, seeds = record.env, {row.seed for row in record.runs if row.seed is not None}
    hardware = environment["hardware"]
    parts = [
        f"### {task.slug}",
        f"{len(seeds)} seeds, mean ± standard deviation; differences are paired by seed, with 95 % intervals. "
        f"{hardware['gpu'] or hardware['processor']}, {environment['threads']} thread a run, torch "
        f"{environment['packages']['torch']}; made {record.made_at[:10]} by `{record.command}`.",
        markdown(tables.table(record)),
    ]
    notes = [
        f"`{name}` differs from the student arm in {', '.join(arm['differs'])}: {arm['why']}"
        for name, arm in record.arms.items()
        if arm["differs"]
    ]
    notes += [
        f"† `{name}` is a control: {arm['text']}" for name, arm in record.arms.items() if arm.get("control")
    ]
    shared = [f"`{row.arm}`" for row in record.runs if row.seed is None]
    if shared:
        notes.append(f"{', '.join(shared)}: one model for all seeds; the intervals are conditional on it.")
    notes += sorted({warning for row in record.runs for warning in row.warnings})
    if notes:
        parts.append(bullets(notes))
    if record.claims:
        parts += [f"Claims of the paper, tested here: {verdicts(record)}.", claim_table(record)]
    return parts


def verdicts(record: Record) -> str:
    """``reproduced 1, 2; NOT reproduced 4``: every claim once, under the verdict that its rows have together."""
    grouped: dict[str, list[str]] = {}
    for number in dict.fromkeys(claim["claim"] for claim in record.claims):
        verdict = combined(claim["verdict"] for claim in record.claims if claim["claim"] == number)
        grouped.setdefault(verdict, []).append(str(number))
    return "; ".join(f"{loud(verdict)} {', '.join(numbers)}" for verdict, numbers in grouped.items())


def loud(verdict: str) -> str:
    return verdict.replace("not reproduced", "NOT reproduced")


def claim_table(record: Record) -> str:
    rows: list[list[Any]] = [["claim", "text", "verdict", "estimate [95 %]", "seeds"]]
    for claim in record.claims:
        value = claim["why"] or ""
        if claim["estimate"] is not None and claim["low"] is not None:
            value = f"{claim['estimate']:+.3f} [{claim['low']:+.3f}, {claim['high']:+.3f}]"
        rows.append(
            [claim["claim"], claim["text"] or claim["label"], loud(claim["verdict"]), value, claim["n"]]
        )
    return markdown(rows)


def cost(card: MethodCard, cards: Catalog, found: Records) -> list[str]:
    rows = [["task", "profile", "expected", "measured", "training s a run", "peak memory"]]
    for task, use in tasks_of(card, cards):
        expected = f"{use.hours:g} h" if use.hours else f"{use.minutes:g} min"
        if use.gpus:
            expected += f" on {use.gpus} GPU" + (f" with {use.memory_gb:g} GB" if use.memory_gb else "")
        measured, seconds, memory = "no record yet", "", ""
        record = found.get((card.slug, task.slug))
        if record is not None:
            total = sum(stage["seconds"] for stage in record.stages.values()) / 60
            measured = f"{total:.1f} core-minutes for {len(record.arms)} arms and all seeds"
            # An arm whose stages are all shared between seeds is charged nothing of its own.
            own = [row for row in own_rows(found, card, task.slug) if row.cost]
            seconds = f"{statistics.fmean(row.cost['seconds'] for row in own):.1f}"
            memory = f"{max(row.cost['peak_memory_bytes'] for row in own) / 2**20:.0f} MiB"
        rows.append([f"`{task.slug}`", use.profile, expected, measured, seconds, memory])
    return [
        markdown(rows),
        "Expected: the plain bench (default arms, three seeds) on two cores; for a paper profile, one run.",
    ]


def tasks_of(card: MethodCard, cards: Catalog) -> list[tuple[TaskCard, TaskUse]]:
    """The tasks of a method that are installed, the local default first."""
    pairs = [(cards.tasks[name], use) for name, use in card.tasks.items() if name in cards.tasks]
    return sorted(pairs, key=lambda pair: (pair[1].profile != "local", not pair[1].default))


def markdown(rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; the first row is the head."""
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)
