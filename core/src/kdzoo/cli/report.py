"""``kdzoo report``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdzoo.cli import complete


def report(
    result: Annotated[
        str,
        typer.Argument(
            help="A record (JSON), a bench folder, a method (its newest bench), or the folder or key of one stage.",
            autocompletion=complete.methods,
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write the page to this file instead of beside the record.")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the web browser.")] = False,
) -> None:
    """Write a bench or a run as one HTML page.

    The page holds everything it shows and works without a network: verdicts, results, curves, settings, costs.
    """
    from kdzoo import records
    from kdzoo.errors import KdzooError
    from kdzoo.report import targets

    found = targets.find(result)
    path = found.out if out is None else out
    if path.is_dir():
        raise KdzooError(
            f"--out {path}: this is a folder, expected a file to write, such as {path / 'report.html'}."
        )
    if out is not None and not path.parent.is_dir():
        raise KdzooError(
            f"--out {path}: the folder {path.parent} does not exist. Make it, or name another file."
        )
    if path.resolve() == found.path.resolve():
        raise KdzooError(
            f"--out {path}: this is the record itself, which the page would replace. Name another file."
        )

    from kdzoo.report import html, stage_view

    if found.kind == "stage":
        page = html.stage_page(stage_view.stage_view(targets.read_stage(found.path), found.path))
    else:
        record = records.read(found.path)
        page = html.bench_page(record, targets.stored_bins(found.path, record))
    html.write(page, path)
    print(path)
    if open_:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
