"""How long the command line takes to start, over Python itself and over a Typer program that does nothing.

Every row is a whole process, from exec to exit, with all installed plugins. The rows take turns, so that a busy
machine slows all of them alike; printed are the medians of CPU seconds (user and system) and of wall-clock seconds,
the median over turns of the CPU time minus the bare Typer program's, and the ratio to ``python -c pass``. On an idle
machine wall-clock time is CPU time. Goal: 0.15 s, at most 0.25 s, for ``kdzoo --help`` and ``kdzoo list``.

The rows with N cards add a plugin that brings N method cards (the installed cards, renamed): once with the cache of
parsed cards and once with a home folder that cannot hold one, where all TOML is parsed.

    python benchmarks/speed/cli_start.py [--turns 15] [--cards 114] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TYPER = """
import typer
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
@app.command()
def nothing(word: str = None) -> None:
    pass
app()
"""
PROGRAM = "import sys; from kdzoo.cli import main; sys.argv = ['kdzoo', *{words!r}]; main()"


def synthetic(folder: Path, number: int) -> None:
    """A distribution in `folder` whose plugin brings `number` method cards."""
    from kdzoo import catalog

    found = catalog.load()
    sources = [(slug, found.paths[slug].read_text(encoding="utf-8")) for slug in found.methods]
    cards = folder / "kdzoo_many" / "methods"
    cards.mkdir(parents=True)
    for i in range(number):
        slug, text = sources[i % len(sources)]
        (cards / f"{slug}-{i}.toml").write_text(renamed(text, slug, f"{slug}-{i}"), encoding="utf-8")
    for package in (cards, cards.parent):
        (package / "__init__.py").write_text("")
    (cards.parent / "plugin.py").write_text(
        "from pathlib import Path\n"
        "from kdzoo.hookspecs import hookimpl\n"
        "@hookimpl\n"
        "def cards():\n"
        "    return [Path(__file__).parent / 'methods']\n"
    )
    info = folder / "kdzoo_many-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kdzoo-many\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kdzoo]\nmany = kdzoo_many.plugin\n")


def renamed(text: str, slug: str, new: str) -> str:
    """The card under another slug: its own name and its arms' names change, other methods' stay."""
    return text.replace(f'slug = "{slug}"', f'slug = "{new}"').replace(f'"{slug}.', f'"{new}.')


def run(command: list[str], environment: dict[str, str]) -> tuple[float, float, str]:
    """CPU seconds, wall-clock seconds and stdout of one process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--cards", type=int, default=114)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["KDZOO_HOME"] = str(folder / "home")
        synthetic(folder / "many", options.cards)
        plain = dict(os.environ)
        many = {**plain, "PYTHONPATH": str(folder / "many"), "KDZOO_HOME": str(folder / "home-many")}
        uncached = {**many, "KDZOO_HOME": os.devnull}

        def kdzoo(*words: str) -> list[str]:
            return [sys.executable, "-c", PROGRAM.format(words=list(words))]

        rows: dict[str, tuple[list[str], dict[str, str]]] = {
            "python -c pass": ([sys.executable, "-c", "pass"], plain),
            "bare typer program": ([sys.executable, "-c", TYPER], plain),
            "bare typer program, one text value": ([sys.executable, "-c", TYPER, "--word", "x"], plain),
            "kdzoo --help": (kdzoo("--help"), plain),
            "kdzoo list": (kdzoo("list"), plain),
            f"kdzoo list, {options.cards} cards more": (kdzoo("list"), many),
            f"kdzoo list, {options.cards} cards more, no cache": (kdzoo("list"), uncached),
        }
        listed = {
            name: len(run(*row)[2].splitlines()) for name, row in rows.items()
        }  # also fills caches, .pyc files
        assert listed[f"kdzoo list, {options.cards} cards more"] == listed["kdzoo list"] + options.cards
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
        for _ in range(options.turns):
            for name, row in rows.items():
                times[name].append(run(*row)[:2])
    python, typer = times["python -c pass"], times["bare typer program"]
    report = {
        name: {
            "cpu_seconds": statistics.median(cpu for cpu, _ in measured),
            "wall_seconds": statistics.median(wall for _, wall in measured),
            "over_typer_seconds": statistics.median(
                a - b for (a, _), (b, _) in zip(measured, typer, strict=True)
            ),
            "times_python": statistics.median(a / b for (a, _), (b, _) in zip(measured, python, strict=True)),
        }
        for name, measured in times.items()
    }
    if options.json:
        print(json.dumps({"turns": options.turns, "cards": options.cards, "rows": report}, indent=1))
        return
    width = max(map(len, report))
    print(f"{'':{width}}  cpu s   wall s  over typer  x python   (medians of {options.turns} turns)")
    for name, said in report.items():
        print(
            f"{name:{width}}  {said['cpu_seconds']:.3f}   {said['wall_seconds']:.3f}"
            f"   {said['over_typer_seconds']:+.3f}"
            f"      {said['times_python']:6.1f}"
        )


if __name__ == "__main__":
    main()
