"""``kdzoo list``"""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer


def list_methods(
    pattern: Annotated[str, typer.Argument(help="Glob over slugs, for example 'r*'.")] = "*",
    domain: Annotated[str | None, typer.Option(help="Only this plugin's: vision, llm, ...")] = None,
    knowledge: Annotated[str | None, typer.Option(help="response, feature, relation, attention, ...")] = None,
    scheme: Annotated[str | None, typer.Option(help="offline, online, self, study")] = None,
    family: Annotated[str | None, typer.Option(help="Algorithm family, as the cards call it.")] = None,
    teacher: Annotated[str | None, typer.Option(help="What it needs of a teacher: logits, features, ...")] = None,
    fidelity: Annotated[str | None, typer.Option(help="official, paper, reconstructed")] = None,
    task: Annotated[str | None, typer.Option(help="Only methods that run on this task.")] = None,
    tasks: Annotated[bool, typer.Option("--tasks", help="List tasks instead of methods.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """List the methods (or tasks) that are installed."""
    from kdzoo import catalog, plugins

    cards = catalog.load()
    facets = {
        "plugin": domain,
        "knowledge": knowledge,
        "scheme": scheme,
        "family": family,
        "teacher": teacher,
        "fidelity": fidelity,
        "task": task,
    }
    wanted = {name: value for name, value in facets.items() if value is not None}
    if tasks:
        rows = [
            {"slug": c.slug, "plugin": c.plugin, "kind": c.kind, "profile": c.profile, "title": c.title}
            for c in cards.tasks.values()
        ]
    else:
        rows = [
            {
                "slug": c.slug,
                "plugin": c.plugin,
                "year": c.paper.year,
                "knowledge": "+".join(c.knowledge),
                "scheme": c.scheme,
                "fidelity": c.fidelity,
                "title": c.title,
            }
            for c in cards.select(pattern, wanted)
        ]
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        _print_table(rows)
    for plugin in plugins.load().broken:
        print(f"broken: {plugin.error}", file=sys.stderr)
    for problem in cards.broken.values():
        print(f"broken: {problem}", file=sys.stderr)


def _print_table(rows: list[dict]) -> None:
    """Columns as wide as their longest cell; the last one is not padded."""
    if not rows:
        print("nothing found", file=sys.stderr)
        return
    heads = list(rows[0])
    widths = [max(len(head), *(len(str(row[head])) for row in rows)) for head in heads]
    widths[-1] = 0
    for cells in [heads, *([str(row[head]) for head in heads] for row in rows)]:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)))
