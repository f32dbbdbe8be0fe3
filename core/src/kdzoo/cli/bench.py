"""``kdzoo bench``"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def bench(
    method: Annotated[str, typer.Argument(help="Slug of a method; 'kdzoo list' shows them.")],
    profile: Annotated[str, typer.Option(help="local (data in the package, minutes) or paper (the paper's)")] = "local",
    task: Annotated[str | None, typer.Option(help="Another task than the profile's default.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds 0 .. N-1 for every arm; claims need 3, records 5.")] = 3,
    arms: Annotated[str, typer.Option(help="default, all, or names and globs separated by commas.")] = "default",
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a setting: KEY=VALUE.")] = None,
    with_: Annotated[list[str] | None, typer.Option("--with", help="Activate an extension.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from checkpoints of unfinished runs.")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Make everything again, finished results too.")] = False,
    jobs: Annotated[int | None, typer.Option(help="Worker processes; default: one a core; 0: none.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    threads: Annotated[int, typer.Option(help="Threads a worker; part of what results depend on.", min=1)] = 1,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the paper's data sets.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the record here too.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Three steps, one seed: does it run?")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record on stdout and nothing else.")] = False,
) -> None:
    """Train all arms of a method over seeds, compare them, and answer the method's claims."""
    from kdzoo import catalog
    from kdzoo.errors import KdzooError

    catalog.load().method(method)  # an unknown name fails before torch is imported
    if profile not in ("local", "paper"):
        raise KdzooError(f"--profile got {profile!r}, expected 'local' or 'paper'")
    if out is not None and not out.parent.exists():
        raise KdzooError(f"--out {out}: the folder {out.parent} does not exist. Make it, or name another file.")

    from kdzoo import records
    from kdzoo.bench import default_options, run_bench
    from kdzoo.plan import Request
    from kdzoo.report.progress import Progress
    from kdzoo.report.table import print_record
    from kdzoo.workers import Interrupted

    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    request = Request(
        method=method,
        task=task,
        profile=profile,
        seeds=1 if smoke else seeds,
        arms=arms,
        set=tuple(set_ or ()),
        extensions=tuple(with_ or ()),
        device=device,
        dtype=dtype,
        threads=threads,
        data_root=None if data_root is None else str(data_root.resolve()),
        smoke=smoke,
    )
    command = " ".join(["kdzoo", *map(shlex.quote, sys.argv[1:])])
    options = default_options(jobs, resume, fresh, device)
    with Progress() as progress:
        try:
            record, folder = run_bench(request, options, progress.event, command, measure_latency=not smoke)
        except Interrupted:
            progress.close()
            print(
                f"stopped; finished runs and checkpoints are kept. Go on with the same command:\n  {command}",
                file=sys.stderr,
            )
            raise typer.Exit(130) from None
    if out is not None:
        records.write(record, out)
    if as_json:
        sys.stdout.buffer.write(records.to_json(record))
        sys.stdout.flush()
    else:
        print_record(record, folder / "record.json")
    if record.failures or any(row.status == "refused" for row in record.runs):
        for failure in record.failures:
            if not failure.get("skipped"):
                print(f"failed: {failure['arm']} seed {failure['seed']}: {failure['error']}", file=sys.stderr)
                print(failure.get("traceback", ""), file=sys.stderr, end="")
        for row in record.runs:
            if row.status == "refused":
                print(f"refused: {row.arm} seed {row.seed}: {row.warnings[-1]}", file=sys.stderr)
        raise typer.Exit(1)
