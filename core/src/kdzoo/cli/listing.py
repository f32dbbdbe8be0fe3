"""``kdzoo list``"""

from __future__ import annotations

import fnmatch
import sys
from typing import Annotated, Any

import typer

from kdzoo.cli import complete
from kdzoo.cli.complete import facet
from kdzoo.errors import KdzooError, unknown


def list_methods(
    pattern: Annotated[
        str,
        typer.Argument(
            help="List slugs that fit this glob, for example 'r*'.", autocompletion=complete.methods
        ),
    ] = "*",
    domain: Annotated[
        str | None,
        typer.Option(
            help="List what this plugin brings, for example 'vision'.", autocompletion=facet("plugin")
        ),
    ] = None,
    knowledge: Annotated[
        str | None,
        typer.Option(
            help="List methods that distil this kind of knowledge, for example 'relation'.",
            autocompletion=facet("knowledge"),
        ),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            help="List 'offline', 'online' or 'self' distillation, or a 'study'.",
            autocompletion=facet("scheme"),
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            help="List one family of algorithms, as the cards call it.", autocompletion=facet("family")
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="List methods that need this of a teacher, for example 'logits'.",
            autocompletion=facet("teacher"),
        ),
    ] = None,
    fidelity: Annotated[
        str | None,
        typer.Option(
            help="List methods of this grade: 'official', 'paper' or 'reconstructed'.",
            autocompletion=facet("fidelity"),
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="List methods that run on this task.", autocompletion=facet("task"))
    ] = None,
    year: Annotated[
        str | None, typer.Option(help="List methods published in this year.", autocompletion=facet("year"))
    ] = None,
    tasks: Annotated[bool, typer.Option("--tasks", help="List tasks instead of methods.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")
    ] = False,
) -> None:
    """List the methods (or tasks) that are installed.

    Several filters must all hold. Broken cards and plugins are named on stderr.
    """
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
        "year": year,
    }
    wanted = {name: value for name, value in facets.items() if value is not None}
    rows: list[dict[str, Any]]
    if tasks:
        rows = _tasks(cards, pattern, domain, sorted(wanted.keys() - {"plugin"}))
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
        import json

        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        _print_table(rows)
    for plugin in plugins.load().broken:
        print(f"broken: {plugin.error}", file=sys.stderr)
    for problem in cards.broken.values():
        print(f"broken: {problem}", file=sys.stderr)


def _tasks(cards: Any, pattern: str, domain: str | None, others: list[str]) -> list[dict[str, Any]]:
    """Rows of tasks; a filter that only methods have is refused rather than ignored."""
    if others:
        raise KdzooError(
            f"--tasks with --{others[0]}: only methods have it, so the filter would be ignored. Filter tasks by a "
            "glob or by --domain."
        )
    domains = {card.plugin for card in cards.tasks.values()}
    if domain is not None and domain not in domains:
        raise unknown("plugin", domain, domains, f"Known: {', '.join(sorted(domains)) or 'none'}.")
    return [
        {"slug": c.slug, "plugin": c.plugin, "kind": c.kind, "profile": c.profile, "title": c.title}
        for slug, c in sorted(cards.tasks.items())
        if fnmatch.fnmatchcase(slug, pattern) and domain in (None, c.plugin)
    ]


def _print_table(rows: list[dict[str, Any]]) -> None:
    """Columns as wide as their longest cell; the last one is not padded."""
    if not rows:
        print("nothing found; 'kdzoo list' without a pattern and filters shows all", file=sys.stderr)
        return
    heads = list(rows[0])
    widths = [max(len(head), *(len(str(row[head])) for row in rows)) for head in heads]
    widths[-1] = 0
    for cells in [heads, *([str(row[head]) for head in heads] for row in rows)]:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)))
