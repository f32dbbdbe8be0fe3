"""The text of a method's page and of the catalogue, from cards and records: a library of `make_docs.py`.

What a person wrote by hand stands between ``<!-- by hand: NAME -->`` and ``<!-- end by hand -->`` and is carried over;
everything else is made anew each time.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from doc_records import (
    Records,
    bench_command,
    bullets,
    cost,
    markdown,
    own_rows,
    results,
    tasks_of,
    verdicts,
)

from kdzoo.arms import arms_of
from kdzoo.cards import DataSource, MethodCard
from kdzoo.catalog import Catalog

HEADINGS = (
    "What it is",
    "When to use",
    "Run it",
    "Logged metrics",
    "Differences from the paper",
    "Results",
    "Cost",
    "Pitfalls",
    "Cite",
)
PICTURES = Path(__file__).parents[1] / "docs/methods/pictures"
_KEPT = re.compile(r"<!-- by hand: ([\w-]+) -->\n(.*?)<!-- end by hand -->", re.DOTALL)

CORE_METRICS = {  # what core adds to a task's own metrics: which way is better, meaning
    "test/agreement": ("higher", "share of test samples on which student and teacher choose the same class"),
    "test/teacher_kl": (
        "lower",
        "mean KL divergence from the teacher's to the student's probabilities, nats",
    ),
    "test/ece": ("lower", "expected calibration error, 15 bins"),
    "cost/seconds": ("lower", "training seconds of the arm's own stages, validation left out"),
    "cost/steps": ("lower", "optimiser steps, summed over the arm's own stages"),
}


def method_page(card: MethodCard, cards: Catalog, found: Records, old: str) -> str:
    """One page; `old` is the page as it stands, for what was written by hand."""
    kept = dict(_KEPT.findall(old))
    makers = (what_it_is, when_to_use, run_it, logged_metrics, differences, results, cost, pitfalls, cite)
    parts = [
        f"# {card.slug}: {card.title}",
        "Made by `tools/make_docs.py` from the method's card and its committed records; only the parts between\n"
        "`by hand` marks are edited here.",
    ]
    for heading, maker in zip(HEADINGS, makers, strict=True):
        parts.append(f"## {heading}")
        parts += maker(card, cards, found)
        if heading == "Results":
            parts += pictures(card)
        if heading in ("What it is", "When to use", "Results", "Pitfalls"):
            name = heading.lower().replace(" ", "-")
            parts.append(f"<!-- by hand: {name} -->\n{kept.get(name, '')}<!-- end by hand -->")
    return "\n\n".join(parts) + "\n"


def pictures(card: MethodCard) -> list[str]:
    """What the nets of a recorded bench see, where a picture was drawn (`kdzoo pictures`)."""
    found = []
    for task in card.tasks:
        path = PICTURES / f"{card.slug}.{task}.png"
        if path.exists():
            command = f"kdzoo pictures {card.slug} --task {task} --out docs/methods/pictures/{path.name}"
            found.append(
                f"Validation images of {task}, seed 0 of the record's bench: the classes that each arm says, and below "
                f"them its errors in red (`{command}`).\n\n"
                f"![Images, truth, and what each arm of {card.slug} says](pictures/{path.name})"
            )
    return found


def what_it_is(card: MethodCard, cards: Catalog, found: Records) -> list[str]:
    link = f", [arXiv:{card.paper.arxiv}]({arxiv(card)})" if card.paper.arxiv else ""
    facts = {
        "Paper": f"{card.paper.title}, {venue(card)}{link}",
        "Official code": card.paper.code or "none known",
        "Fidelity": f"**{card.fidelity}**: {card.fidelity_text}",
        "Knowledge": ", ".join(card.knowledge),
        "Scheme": card.scheme,
        "Family": card.family,
        "Plugin": f"`kdzoo-{card.plugin}`",
    }
    components = [["", "component", "known from"]]
    components += [[name, part.text, part.source] for name, part in card.components.items()]
    return [card.summary, markdown([["", ""], *facts.items()]), markdown(components)]


def arxiv(card: MethodCard) -> str:
    return f"https://arxiv.org/abs/{card.paper.arxiv}"


def venue(card: MethodCard) -> str:
    """With the year, once."""
    year = str(card.paper.year)
    return card.paper.venue if year in card.paper.venue else f"{card.paper.venue}, {year}"


def when_to_use(card: MethodCard, cards: Catalog, found: Records) -> list[str]:
    needs = "no teacher" if card.teacher == ["none"] else f"of the teacher: {', '.join(card.teacher)}"
    said = [f"It needs {needs}."]
    if card.couples_batch:
        said.append("Its loss couples the samples of a batch, so gradient accumulation is refused.")
    return [*([card.when] if card.when else []), " ".join(said)]


def run_it(card: MethodCard, cards: Catalog, found: Records) -> list[str]:
    parts = []
    for task, use in tasks_of(card, cards):
        root = " --data-root DIR" if use.profile == "paper" else ""
        default = ", the default" if use.default else ""
        parts.append(f"On `{task.slug}` ({use.profile} profile{default}): {task.summary}")
        parts.append(f"```sh\n{bench_command(card.slug, task.slug)}{root}\n```")
        if use.profile == "paper":
            parts += [text for source in task.data.values() for text in data_source(source)]
        if use.text:
            parts.append(use.text)
        changed = {**use.bench, **use.set}
        if changed:
            values = ", ".join(f"`{name} = {value}`" for name, value in changed.items())
            parts.append(f"Settings changed for this task: {values}.")
        if use.profile == "local":
            arms = [["arm", "what it is", "plain bench"]]
            for arm in arms_of(cards, card, task).values():
                arms.append([f"`{arm.name}`", arm.text, "yes" if arm.default else "`--arms all`"])
            parts.append(markdown(arms))
    if card.params:
        rows: list[list[Any]] = [["setting", "default", "paper", "unit", "meaning"]]
        for name, param in card.params.items():
            paper = "" if param.paper is None else param.paper
            rows.append([f"`{name}`", param.default, paper, param.unit, param.text])
        parts += [
            "Settings of the method (`--set NAME=VALUE`); the task's own come on top, see `kdzoo show TASK`:",
            markdown(rows),
        ]
    return parts


def data_source(source: DataSource) -> list[str]:
    """Where the data is had, and how it must lie under ``--data-root``."""
    return [
        f"Data: {source.source}. Licence: {source.licence}.",
        *([f"```text\n{source.text}\n```"] if source.text else []),
    ]


def logged_metrics(card: MethodCard, cards: Catalog, found: Records) -> list[str]:
    where: dict[tuple[str, str, str], list[str]] = {}  # tasks of a kind share their metrics
    for task, _ in tasks_of(card, cards):
        for name, metric in task.metrics.items():
            label = ", ".join(f"`{split}/{name}`" for split in metric.splits) + (
                " (primary)" if metric.primary else ""
            )
            where.setdefault((label, metric.better, metric.text), []).append(f"`{task.slug}`")
    rows = [["metric", "better", "meaning", "tasks"]]
    rows += [[*key, ", ".join(tasks)] for key, tasks in where.items()]
    rows += [[f"`{name}`", better, text, "any"] for name, (better, text) in CORE_METRICS.items()]
    terms = sorted(
        {name for task in card.tasks for row in own_rows(found, card, task) for name in row.losses}
    )
    parts = [
        markdown(rows),
        "Values are fractions, never percent. Agreement, KL and calibration need logits.",
    ]
    if terms:
        parts.append(
            f"Curves of the loss terms, weighted as they enter the sum: {', '.join(f'`{name}`' for name in terms)}."
        )
    return parts


def differences(card: MethodCard, cards: Catalog, found: Records) -> list[str]:
    parts = []
    if card.differences:
        rows: list[list[Any]] = [["", "what", "paper", "official code", "ours"]]
        rows += [[n, d.what, d.paper, d.official, d.ours] for n, d in enumerate(card.differences, 1)]
        parts.append(markdown(rows))
    else:
        parts.append("In the method itself: none is listed in the card.")
    if card.unknown:
        parts += ["Not known from paper or code:", bullets(card.unknown)]
    local = [f"`{task.slug}`" for task, use in tasks_of(card, cards) if use.profile == "local"]
    if local:
        parts.append(
            f"The local tasks ({', '.join(local)}) are other data, models and schedules than the paper's."
        )
    return parts


def pitfalls(card: MethodCard, cards: Catalog, found: Records) -> list[str]:
    return (
        [bullets(card.pitfalls)]
        if card.pitfalls
        else ["None is listed in the card. General ones: [footguns](../footguns.md)."]
    )


def cite(card: MethodCard, cards: Catalog, found: Records) -> list[str]:
    link = f" {arxiv(card)}" if card.paper.arxiv else ""
    return [f"> {card.paper.title}. {venue(card)}.{link}"]


def catalogue(cards: Catalog, found: Records) -> str:
    """All methods and all tasks in two tables."""
    methods = [
        ["method", "title", "year", "plugin", "knowledge", "scheme", "fidelity", "tasks", "claims here"]
    ]
    for card in cards.methods.values():
        said = [
            verdicts(record) for (slug, _), record in found.items() if slug == card.slug and record.claims
        ]
        recorded = any(slug == card.slug for slug, _ in found)
        methods.append(
            [
                f"[{card.slug}](methods/{card.slug}.md)",
                card.title,
                str(card.paper.year),
                card.plugin,
                ", ".join(card.knowledge),
                card.scheme,
                card.fidelity,
                ", ".join(task.slug for task, _ in tasks_of(card, cards)),
                "; ".join(said) or ("no claim in the card" if recorded else "no record yet"),
            ]
        )
    tasks = [["task", "title", "plugin", "kind", "profile", "data", "licence"]]
    for task in cards.tasks.values():
        names, licences = ", ".join(task.data), "; ".join(source.licence for source in task.data.values())
        tasks.append([f"`{task.slug}`", task.title, task.plugin, task.kind, task.profile, names, licences])
    return (
        "\n\n".join(
            [
                "# Catalogue",
                "Made by `tools/make_docs.py` from the cards and the committed records.",
                f"## Methods ({len(cards.methods)})",
                markdown(methods),
                f"## Tasks ({len(cards.tasks)})",
                markdown(tasks),
            ]
        )
        + "\n"
    )
