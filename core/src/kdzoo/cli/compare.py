"""``kdzoo compare``"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from kdzoo.cli import complete
from kdzoo.cli.bench import check_words, usable_device
from kdzoo.cli.options import DataRoot, DeviceName, Dtype, Jobs, Smoke, Threads
from kdzoo.errors import KdzooError


def compare(
    methods: Annotated[
        list[str],
        typer.Argument(
            help="The slugs of two or more methods; 'kdzoo list' shows all.", autocompletion=complete.methods
        ),
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="Train on this task; may be repeated, and ranks are then averaged over the tasks. Without it, on the "
            "first method's own.",
            autocompletion=complete.all_tasks,
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=1, max=1000, help="Train every arm with seeds 0 to N-1; with fewer than 3 nothing is tested."
        ),
    ] = 3,
    metric: Annotated[
        str | None,
        typer.Option(help="Rank by this metric, such as test/nll, instead of the task's primary one."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting in every arm that has it; may be repeated. 'kdzoo show' lists the settings.",
        ),
    ] = None,
    jobs: Jobs = None,
    device: DeviceName = "auto",
    dtype: Dtype = "float32",
    threads: Threads = 1,
    data_root: DataRoot = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the data to this file too, and the plot beside it with the suffix .svg."),
    ] = None,
    smoke: Smoke = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the data on stdout as JSON and nothing else there.")
    ] = False,
) -> None:
    """Rank methods on a task: differences, ranks, tests, plot.

    Every method is trained as 'kdzoo bench' would train it, and what a bench has made is used again. Ctrl-C stops at a
    whole step, and the same command goes on.
    """
    for slug in methods:
        check_words(slug, "local", None, device, dtype, data_root, out)  # before torch is imported
    if out is not None and out.suffix == ".svg":
        raise KdzooError(
            f"--out {out}: this file is for the data; the plot would overwrite it. Name {out.with_suffix('.json')}."
        )

    from kdzoo import compare as work
    from kdzoo.bench import default_options
    from kdzoo.plan import Request
    from kdzoo.report.compare_table import print_comparison
    from kdzoo.report.progress import Progress
    from kdzoo.workers import Interrupted

    tasks = work.common_tasks(methods, task or [])
    device = usable_device(device)
    request = Request(
        method=methods[0],
        seeds=1 if smoke else seeds,
        set=tuple(set_ or ()),
        device=device,
        dtype=dtype,
        threads=threads,
        data_root=None if data_root is None else str(data_root.resolve()),
        smoke=smoke,
    )
    command = " ".join(["kdzoo", *map(shlex.quote, sys.argv[1:])])
    options = default_options(jobs, True, False, device)
    with Progress() as progress:
        try:
            whole, folder = work.run_compare(
                methods, tasks, request, options, progress.event, command, metric, progress.planned
            )
            if out is not None:
                work.write(whole, out)
        except Interrupted:
            progress.close()
            print(
                f"stopped; finished runs and checkpoints are kept. Go on with the same command:\n  {command}",
                file=sys.stderr,
            )
            raise typer.Exit(130) from None
    if as_json:
        sys.stdout.buffer.write(work.to_json(whole))
        sys.stdout.flush()
    elif whole.blocks:
        print_comparison(whole, folder / "compare.json")
    for failure in whole.failures:
        if not failure.get("skipped") and failure["error"] not in progress.said:
            print(
                f"kdzoo: failed: {failure['arm']} on {failure['task']}: {failure['error']}", file=sys.stderr
            )
    if whole.failures:
        raise typer.Exit(1)
