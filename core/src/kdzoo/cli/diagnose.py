"""``kdzoo diagnose``"""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from kdzoo.cli import complete


def diagnose(
    result: Annotated[
        str,
        typer.Argument(
            help="A record (JSON), a bench folder, a method (its newest bench), or the folder or key of one stage.",
            autocompletion=complete.methods,
            show_default=False,
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as JSON and nothing else on stdout.")
    ] = False,
) -> None:
    """Say why distillation did not help.

    Looks at the teacher, the student's closeness to it, controls, variants, loss terms, curves and temperature.
    Each finding names its numbers and is a lead, not a proof.
    """
    from kdzoo import records
    from kdzoo.report import diagnosis, targets

    target = targets.find(result)
    if target.kind == "stage":
        found = diagnosis.diagnose_stage(targets.read_stage(target.path))
    else:
        record = records.read(target.path)
        found = diagnosis.diagnose(record, targets.stored_bins(target.path, record))
    if as_json:
        import json
        from dataclasses import asdict

        print(json.dumps(asdict(found), indent=1, ensure_ascii=False))
        return
    print(textwrap.fill(found.summary, 100))
    if not found.findings:
        print("\nNo cause was found in what the results hold.")
    for one in found.findings:
        print(f"\n{one.sign} {one.level}: {one.title}")
        for text in filter(None, (one.text, one.remedy)):
            print(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  "))
    if found.unchecked:
        print("\nNot looked at:")
        for text in found.unchecked:
            print(textwrap.fill(text, 100, initial_indent="  - ", subsequent_indent="    "))
