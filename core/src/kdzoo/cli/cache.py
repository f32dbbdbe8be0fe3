"""``kdzoo cache``"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdzoo.cli import complete
from kdzoo.errors import KdzooError, unknown

if TYPE_CHECKING:
    from kdzoo.recording import Recording
    from kdzoo.recordings import Entry, Recordings

ACTIONS = ("build", "list", "verify", "prune")
DAY = 86_400.0


def cache(
    action: Annotated[
        str,
        typer.Argument(
            help="'build' records, 'list' shows, 'verify' hashes all files again, 'prune' removes.",
            autocompletion=complete.words(*ACTIONS),
        ),
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="For build, methods or tasks (a task stands for its baseline); for verify, keys or their beginnings.",
            autocompletion=complete.cards,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Build for this task instead of the method's own.", autocompletion=complete.tasks),
    ] = None,
    signals: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="Build what 'kdzoo bench --signals' asks for: 'recorded' or 'top-k=K'.",
            autocompletion=complete.words("recorded", "top-k=8"),
        ),
    ] = "recorded",
    part: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART",
            help="Build this part of the teacher's output, such as 'features/stage2'; may be repeated.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Build with this setting, as in 'kdzoo bench --set'."
        ),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Build from the paper's data sets in this folder.")
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="Build on 'cpu', 'cuda' or 'auto'; a recording serves benches on the same kind of device.",
            autocompletion=complete.words("auto", "cpu", "cuda"),
        ),
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help="Build in 'float32' or 'bfloat16'.", autocompletion=complete.words("float32", "bfloat16")
        ),
    ] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="Build with this many threads, as the bench will.")] = 1,
    older_than: Annotated[
        float | None,
        typer.Option(min=0, metavar="DAYS", help="Prune what was made more than so many days ago."),
    ] = None,
    unused: Annotated[
        float | None,
        typer.Option(min=0, metavar="DAYS", help="Prune what nobody has opened for so many days."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Prune all recordings.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be pruned, and remove nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Prune without asking.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on stdout and nothing else there; for 'list'.")
    ] = False,
) -> None:
    """Record what teachers say, and look after the recordings.

    They lie under signals/ in the home folder and serve 'kdzoo bench --signals recorded'. A bench records what it
    lacks by itself; 'build' does it beforehand. 'prune' alone removes what is broken or unfinished.
    """
    if action not in ACTIONS:
        raise unknown("action of kdzoo cache", action, ACTIONS, f"Expected one of {', '.join(ACTIONS)}.")
    mine: dict[str, dict[str, Any]] = {
        "build": {"task": task, "signals": signals != "recorded", "part": part, "set": set_, "data-root": data_root,
                  "device": device != "auto", "dtype": dtype != "float32", "threads": threads != 1},
        "prune": {"older-than": older_than is not None, "unused": unused is not None, "all": everything,
                  "dry-run": dry_run, "yes": yes},
        "list": {"json": as_json},
    }  # fmt: skip
    for owner, given in mine.items():
        if owner != action and (used := [name for name, value in given.items() if value]):
            raise KdzooError(
                f"kdzoo cache {action} --{used[0]}: the option belongs to 'kdzoo cache {owner}' and would be "
                "ignored. Leave it out."
            )
    if names and action in ("list", "prune"):
        raise KdzooError(f"kdzoo cache {action} takes no names, got {names[0]!r}. Leave it out.")
    if action == "build":
        _build(names or [], task, signals, part or [], tuple(set_ or ()), data_root, device, dtype, threads)
        return
    from kdzoo.artefacts import home
    from kdzoo.recordings import Recordings

    recordings = Recordings(home())
    if action == "list":
        _list(recordings, as_json)
    elif action == "verify":
        _verify(recordings, names or [])
    else:
        _prune(recordings, older_than, unused, everything, dry_run, yes)


def _build(
    names: list[str],
    task: str | None,
    signals: str,
    parts: list[str],
    settings: tuple[str, ...],
    data_root: Path | None,
    device: str,
    dtype: str,
    threads: int,
) -> None:
    from kdzoo import catalog, signal_choice
    from kdzoo.cards import Baseline
    from kdzoo.cli.bench import usable_device

    if not names:
        raise KdzooError(
            "kdzoo cache build: no method or task is named, so there is nothing to record. Name one, for example "
            "'kdzoo cache build hinton-kd'."
        )
    choice = signal_choice.parse(signals)
    if choice == signal_choice.LIVE:
        raise KdzooError(
            "--signals live asks the teacher each time: there is nothing to record. Use recorded or top-k=K."
        )
    cards = catalog.load()
    uses: list[tuple[str, str | None]] = []
    for name in names:
        if name in cards.tasks:
            baseline = cards.tasks[name].kd
            if not isinstance(baseline, Baseline):
                raise KdzooError(
                    f"task {name!r} has no baseline ({baseline}): name a method and --task {name}."
                )
            uses.append((baseline.method, name))
        else:
            cards.method(name)
            uses.append((name, task))
    from kdzoo.plan import Request
    from kdzoo.record_signals import build

    for method, on in uses:
        request = Request(
            method,
            task=on,
            profile="paper" if data_root is not None and on is None else "local",
            seeds=1,
            arms=method,
            set=settings,
            device=usable_device(device),
            dtype=dtype,
            threads=threads,
            data_root=None if data_root is None else str(data_root.resolve()),
            signals=str(choice),
        )
        if not parts and "features" in cards.method(method).teacher:
            print(
                f"{method} reads inner layers too, and which is known only while it trains: name them with --part "
                "(--part features/stage2), or let the first bench record them.",
                file=sys.stderr,
            )
        for recording, made in build(request, parts):
            verb = f"recorded in {recording.manifest['seconds']:.1f} s" if made else "is there already"
            print(f"{recording.key[:8]}  {described(recording)}: {verb}")


def described(recording: Recording) -> str:
    """What a recording holds, in one line."""
    identity = recording.identity
    kind = f"top {identity.k} {identity.part}" if identity.k else identity.part
    return (
        f"{kind} of {identity.role} {identity.teacher[:8]} on {identity.task}/{identity.split}"
        f"{f' ({identity.view})' if identity.view else ''}, {len(recording):,} samples, {identity.dtype}, "
        f"{size(recording.bytes)}"
    )


def size(count: float) -> str:
    """Bytes for people: 480 kB, 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.3g} TB"


def age(seconds: float) -> str:
    """A span of time for people: 40 s, 3 h, 12 days."""
    for limit, length, unit in ((90, 1, "s"), (5400, 60, "min"), (2 * DAY, 3600, "h")):
        if seconds < limit:
            return f"{max(0, seconds) / length:.0f} {unit}"
    return f"{seconds / DAY:.0f} days"


def _line(entry: Entry, now: float) -> str:
    if entry.recording is None:
        return f"{entry.folder.name}  {entry.state}, {size(entry.bytes)}, {age(now - entry.used)} old"
    made = entry.recording.manifest["made_at"]
    return (
        f"{entry.folder.name[:8]}  {described(entry.recording)}, made {age(now - made)} ago, "
        f"used {age(now - entry.used)} ago"
    )


def _list(recordings: Recordings, as_json: bool) -> None:
    now, entries = time.time(), recordings.entries()
    if as_json:
        import json

        print(json.dumps([_facts(entry) for entry in entries], indent=1))
        return
    for entry in entries:
        print(_line(entry, now))
    if entries:
        print(
            f"{len(entries)} folders, {size(sum(entry.bytes for entry in entries))} in {recordings.store.root}"
        )
    else:
        print(
            f"no recordings in {recordings.store.root}; 'kdzoo cache build METHOD' makes some",
            file=sys.stderr,
        )


def _facts(entry: Entry) -> dict[str, Any]:
    import msgspec

    found = {"folder": str(entry.folder), "state": entry.state, "bytes": entry.bytes, "used_at": entry.used}
    if entry.recording is not None:
        found |= {
            "key": entry.recording.key,
            "samples": len(entry.recording),
            "made_at": entry.recording.manifest["made_at"],
            **msgspec.to_builtins(entry.recording.identity),
        }
    return found


def _verify(recordings: Recordings, names: list[str]) -> None:
    """Hash everything again; exit code 1 where a file is not what was written."""
    entries = recordings.entries()
    if not entries and not names:
        print("nothing is recorded, so there is nothing to verify")
    for name in names:
        if not any(entry.folder.name.startswith(name) for entry in entries):
            known = [entry.folder.name[:8] for entry in entries]
            raise unknown("recording", name, known, "'kdzoo cache list' shows all.")
    wrong = 0
    for entry in entries:
        if names and not any(entry.folder.name.startswith(name) for name in names):
            continue
        if entry.recording is None and "." in entry.folder.name:
            print(
                f"{entry.folder.name}: {entry.state}, not verified; 'kdzoo cache prune' removes what is left over"
            )
            continue
        problems = recordings.verify(entry)
        for problem in problems:
            print(f"WRONG  {entry.folder / problem.file}: {problem.text}")
        if not problems and entry.recording is not None:
            count = len(entry.recording.manifest["files"])
            print(f"ok     {entry.folder.name[:8]}: {count} files, {size(entry.bytes)}")
        wrong += bool(problems)
    if wrong:
        print(
            f"kdzoo: {wrong} damaged recording{'s' if wrong > 1 else ''}: 'kdzoo cache prune' removes what is "
            "damaged, and the next bench records it again.",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def _prune(
    recordings: Recordings,
    older_than: float | None,
    unused: float | None,
    everything: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    now, doomed = time.time(), []
    for entry in recordings.entries():
        if entry.state == "being made":
            continue
        if entry.recording is None:
            doomed.append((entry, "left over" if entry.state == "unfinished" else "damaged"))
            continue
        made = entry.recording.manifest["made_at"]
        if everything:
            doomed.append((entry, "all"))
        elif older_than is not None and now - made > older_than * DAY:
            doomed.append((entry, f"older than {older_than:g} days"))
        elif unused is not None and now - entry.used > unused * DAY:
            doomed.append((entry, f"not used for {unused:g} days"))
        elif problems := recordings.verify(entry):
            doomed.append((entry, f"{problems[0].file} is damaged"))
    if not doomed:
        print("nothing to remove")
        return
    for entry, why in doomed:
        print(f"{_line(entry, now)}  [{why}]")
    total = f"{len(doomed)} folder{'s' if len(doomed) > 1 else ''}, {size(sum(entry.bytes for entry, _ in doomed))}"
    if dry_run:
        print(f"would remove {total}")
        return
    if not yes and not _agreed(f"Remove {total}? [y/N] "):
        print("nothing was removed")
        return
    for entry, _ in doomed:
        recordings.remove(entry)
    print(f"removed {total}")


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        raise KdzooError(
            "kdzoo cache prune asks before it removes, and nobody is there to answer. Nothing was removed; add "
            "--yes, or --dry-run to see what would go."
        ) from None
