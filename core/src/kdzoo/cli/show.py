"""``kdzoo show``"""

from __future__ import annotations

import textwrap
from typing import Annotated, Any

import typer

from kdzoo.cli import complete
from kdzoo.errors import unknown


def show(
    slug: Annotated[
        str,
        typer.Argument(
            help="The slug of a method or a task.", autocompletion=complete.cards, show_default=False
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the card as JSON and nothing else on stdout.")
    ] = False,
) -> None:
    """Show the card of a method or a task.

    A method's card says first how faithful it is, then what it does, where it runs and what it claims.
    """
    from kdzoo import catalog

    cards = catalog.load()
    if slug not in (known := {*cards.methods, *cards.tasks, *cards.broken}):
        raise unknown(
            "method or task", slug, known, "'kdzoo list' and 'kdzoo list --tasks' show all of them."
        )
    card: Any = cards.tasks[slug] if slug in cards.tasks else cards.method(slug)
    if as_json:
        import json

        import msgspec

        print(json.dumps(msgspec.to_builtins(card), indent=1, ensure_ascii=False))
    elif slug in cards.tasks:
        _show_task(card)
    else:
        _show_method(card)


def _title(text: str) -> None:
    print(f"\n{text}")


def _say(text: str, indent: int = 2) -> None:
    print(textwrap.fill(text, 110, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2)))


def _show_method(card: Any) -> None:
    print(f"{card.slug}: {card.title}")
    print(f"fidelity: {card.fidelity} ({card.fidelity_text})")
    where = ", ".join(
        filter(
            None, (card.paper.venue, str(card.paper.year), card.paper.arxiv and f"arXiv:{card.paper.arxiv}")
        )
    )
    print(f"paper: {where}" + (f"; code: {card.paper.code}" if card.paper.code else ""))
    _say(card.summary, 0)
    if card.when:
        _title("When to use it")
        _say(card.when)
    _title("Components")
    for name, part in card.components.items():
        _say(f"{name}  {part.text} [{part.source}]")
    _title("Settings")
    for name, param in card.params.items():
        paper = f"; paper: {param.paper}" if param.paper is not None else ""
        _say(f"{name} = {param.default}{' ' + param.unit if param.unit else ''}  {param.text}{paper}")
    _title("Runs on")
    for name, use in card.tasks.items():
        _say(f"{name}  profile {use.profile}, {_cost(use)}{'; default' if use.default else ''}. {use.text}")
    if card.switches or card.arms:
        _title("Arms (beside teacher, student, baseline and the method itself)")
        for name, switch in card.switches.items():
            _say(f"{card.slug}.without-{name}  without {card.components[switch.component].text}")
        for name, arm in card.arms.items():
            _say(f"{name}  {arm.text}" + (f" over {arm.grid}" if arm.grid else ""))
    if card.claims:
        _title("Claims, decided before the run")
        for claim in card.claims:
            _say(f"{claim.claim}. {claim.text or claim.why or ''} [{claim.kind or 'not testable here'}]")
    if card.differences:
        _title("Differences")
        for difference in card.differences:
            _say(difference.what)
            for side in ("paper", "official", "ours"):
                if text := getattr(difference, side):
                    _say(f"{side}: {text}", 4)
    if card.results:
        _title("The paper's numbers (another setting)")
        for result in card.results:
            _say(f"{result.setting}: {result.metric} {result.value} [{result.source}]")
    if card.pitfalls:
        _title("Pitfalls")
        for text in card.pitfalls:
            _say(f"- {text}")
    if card.unknown:
        _title("Not known")
        for text in card.unknown:
            _say(f"- {text}")
    print(f"\nRun it: kdzoo bench {card.slug}")


def _cost(use: Any) -> str:
    """What a bench costs, as far as the card says."""
    if use.profile == "local":
        return f"about {use.minutes:g} minutes on 2 cores"
    hours = "hours not estimated" if use.hours is None else f"about {use.hours:g} h"
    memory = "" if use.memory_gb is None else f", {use.memory_gb:g} GB each"
    return f"{hours} on {use.gpus} GPU{'s' if use.gpus > 1 else ''}{memory}"


def _show_task(card: Any) -> None:
    print(f"{card.slug}: {card.title} ({card.kind}, profile {card.profile})")
    _say(card.summary, 0)
    _title("Data")
    for name, data in card.data.items():
        shipped = "ships in the package" if data.ships else "to be fetched by you"
        _say(f"{name}: {data.source}; licence: {data.licence}; {shipped}")
        for line in data.text.splitlines():  # a layout of folders has its own line breaks
            print(f"    {line}".rstrip())
    _say("sizes: " + ", ".join(f"{name} {size}" for name, size in card.sizes.items()))
    _say(f"simulated: {card.simulated or 'nothing'}")
    _title("Models")
    for name, text in card.models.items():
        _say(f"{name}: {text}")
    if card.teacher and card.teacher.command:
        _say(f"teacher's weights: {card.teacher.file}, made by '{card.teacher.command}'")
    _title("Metrics")
    for name, metric in card.metrics.items():
        _say(f"{name} ({metric.better} is better{', primary' if metric.primary else ''}): {metric.text}")
    _title("Settings")
    for name, param in card.params.items():
        _say(f"{name} = {param.default}{' ' + param.unit if param.unit else ''}  {param.text}")
    for text in card.facts:
        _say(f"- {text}")
