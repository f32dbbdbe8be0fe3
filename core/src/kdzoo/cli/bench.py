"""``kdzoo bench``"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdzoo import signal_choice
from kdzoo.cli import complete
from kdzoo.cli.options import DTYPES, DataRoot, DeviceName, Dtype, Jobs, Smoke, Threads
from kdzoo.errors import KdzooError, unknown

if TYPE_CHECKING:
    from kdzoo.records import Record
    from kdzoo.report.progress import Progress

PROFILES = ("local", "paper")


def bench(
    method: Annotated[
        str,
        typer.Argument(help="The slug of a method; 'kdzoo list' shows all.", autocompletion=complete.methods),
    ],
    profile: Annotated[
        str,
        typer.Option(
            help="'local' trains in minutes on data that ships with the plugin; 'paper' follows the paper's data, "
            "models and schedule.",
            autocompletion=complete.words(*PROFILES),
        ),
    ] = "local",
    task: Annotated[
        str | None,
        typer.Option(help="Train on this task instead of the profile's own.", autocompletion=complete.tasks),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=1,
            max=1000,
            help="Train every arm with seeds 0 to N-1; a claim needs 3, a committed record 5.",
        ),
    ] = 3,
    arms: Annotated[
        str,
        typer.Option(
            help="Train 'default', 'all', or these arms: names and globs separated by commas. The teacher and the "
            "student alone always come along.",
            autocompletion=complete.arms,
        ),
    ] = "default",
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="Add arms that say what a gain is worth: the teacher's answers permuted, a random teacher, the "
            "student alone trained longer or with smoothed labels.",
        ),
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting in every arm that has it; may be repeated. 'kdzoo show' lists the settings.",
            autocompletion=complete.settings,
        ),
    ] = None,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="NAME",
            help="Activate an installed extension; may be repeated.",
            autocompletion=complete.extensions,
        ),
    ] = None,
    signals: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="Ask the teacher 'live', or read its answers from disk: 'recorded' in full, or 'top-k=K[:POLICY]' the "
            "K largest logits, with the tail by 'spread', 'drop' or 'tail-bucket'.",
            autocompletion=complete.words("live", "recorded", "top-k=8"),
        ),
    ] = "live",
    resume: Annotated[
        bool,
        typer.Option(help="Go on from the checkpoints of runs that were stopped, or begin those runs anew."),
    ] = True,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Make everything anew, finished results too.")
    ] = False,
    jobs: Jobs = None,
    device: DeviceName = "auto",
    dtype: Dtype = "float32",
    threads: Threads = 1,
    data_root: DataRoot = None,
    out: Annotated[Path | None, typer.Option(help="Write the record to this file too.")] = None,
    smoke: Smoke = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record on stdout as JSON and nothing else there.")
    ] = False,
) -> None:
    """Train the arms of a method, compare them, test its claims.

    Every arm is trained with every seed, on equal data, steps and initialisation; the differences are paired by seed.
    What is finished is kept and not made again; Ctrl-C stops at a whole step, and the same command goes on.
    """
    check_words(method, profile, task, device, dtype, data_root, out)  # before torch is imported
    signals = str(signal_choice.parse(signals))

    from kdzoo import records
    from kdzoo.bench import default_options, run_bench
    from kdzoo.plan import Request
    from kdzoo.report.progress import Progress
    from kdzoo.report.table import print_record
    from kdzoo.workers import Interrupted

    device = usable_device(device)
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
        controls=controls,
        signals=signals,
    )
    command = " ".join(["kdzoo", *map(shlex.quote, sys.argv[1:])])
    options = default_options(jobs, resume, fresh, device)
    with Progress() as progress:
        try:
            record, folder = run_bench(
                request, options, progress.event, command, measure_latency=not smoke, planned=progress.planned
            )
            if out is not None:
                records.write(record, out)
        except Interrupted:
            progress.close()
            print(
                f"stopped; finished runs and checkpoints are kept. Go on with the same command:\n  {command}",
                file=sys.stderr,
            )
            raise typer.Exit(130) from None
        except OSError as error:
            raise KdzooError(
                f"{error.filename or options.root}: {error.strerror or error}. Results could not be kept. Set "
                "KDZOO_HOME to a folder you may write to, and run the same command again: what is finished is kept."
            ) from error
    if os.environ.get("RANK", "0") != "0":  # under torchrun one process speaks for all
        return
    if as_json:
        sys.stdout.buffer.write(records.to_json(record))
        sys.stdout.flush()
    elif any(row.status == "done" for row in record.runs):
        print_record(record, folder / "record.json")
    if code := say_failures(record, progress):
        raise typer.Exit(code)


def check_words(
    method: str,
    profile: str,
    task: str | None,
    device: str,
    dtype: str,
    data_root: Path | None,
    out: Path | None,
) -> None:
    """What can be judged from the words alone: a mistake should not cost the seconds that torch takes to import."""
    from kdzoo import catalog

    cards = catalog.load()
    cards.method(method)
    if task is not None:
        cards.task(task)
    if profile not in PROFILES:
        raise unknown(
            "profile", profile, PROFILES, "Expected 'local' or 'paper'; another has no task to train on."
        )
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise unknown(
            "device", device, ("auto", "cpu", "cuda"), "Expected 'auto', 'cpu', 'cuda' or 'cuda:N'."
        )
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES, "Expected 'float32' or 'bfloat16'.")
    if data_root is not None and not data_root.is_dir():
        raise KdzooError(
            f"--data-root {data_root}: no such folder, so there would be nothing to train on. Name the folder that "
            "holds the paper's data sets; 'kdzoo show TASK' tells how it is laid out."
        )
    if out is not None and not out.parent.is_dir():
        raise KdzooError(
            f"--out {out}: the folder {out.parent} does not exist, so the record would be lost after the training. "
            "Make it, or name another file."
        )
    if out is not None and out.is_dir():
        raise KdzooError(
            f"--out {out}: this is a folder, expected a file to write, such as {out / 'record.json'}."
        )


def usable_device(device: str) -> str:
    """The device by name, ``auto`` decided; a GPU that torch cannot see is refused before anything is planned."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(device.partition(":")[2] or 0) >= count:
            said = f"{count} GPU{'s' if count > 1 else ''}" if count else "no GPU"
            raise KdzooError(
                f"--device {device}: torch {torch.__version__} sees {said} here, so every run would fail. Use "
                "--device cpu, or install the driver and a CUDA build of torch ('kdzoo doctor' shows what is seen)."
            )
    return device


def say_failures(record: Record, progress: Progress) -> int:
    """Say once what failed, and where; returns the exit code.

    2 where nothing could be trained for a reason the user can put right, as for any mistake; 1 where a part failed.
    """
    reasons: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for failure in record.failures:
        if not failure.get("skipped"):
            reasons.setdefault((failure["error"], failure.get("traceback", "")), []).append(failure)
    for (error, traceback), failed in reasons.items():
        first = failed[0]
        seed = "" if first["seed"] is None else f" seed {first['seed']}"
        where = f"{first['arm']}{seed}, stage {first['stage']}"
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        said = "see above" if error in progress.said else error
        print(f"kdzoo: failed: {where}{more}: {said}", file=sys.stderr)
        print(traceback, file=sys.stderr, end="")
    refused = [row for row in record.runs if row.status == "refused"]
    for row in refused:
        print(f"kdzoo: refused: {row.arm} seed {row.seed}: {row.warnings[-1]}", file=sys.stderr)
    if not record.failures and not refused:
        return 0
    mistake = not refused and not any(traceback for _, traceback in reasons)
    return 2 if mistake and not any(row.status == "done" for row in record.runs) else 1
