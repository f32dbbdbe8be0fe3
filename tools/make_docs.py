"""Make the generated documentation from cards and committed records.

    python tools/make_docs.py            write what has changed
    python tools/make_docs.py --check    write nothing; exit code 1 and a list if something is stale

Writes docs/methods/<slug>.md (keeping what stands between ``by hand`` marks), docs/catalogue.md, and the generated
blocks of README.md. Only what lies in this repository is documented: plugins installed from elsewhere are left out.
Records are benchmarks/results/<slug>.<task>.json; `--records` lists the commands that make those still missing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from pathlib import Path

import doc_pages
from doc_records import Records, bench_command, markdown, read_records, tasks_of

from kdzoo import catalog
from kdzoo.catalog import Catalog
from kdzoo.errors import KdzooError
from kdzoo.report import table

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"

README_BENCH = "rkd"  # the one command that README.md shows with its output


def own_cards() -> Catalog:
    """The cards of this repository's plugins; a broken one is an error."""
    found = catalog.collect(
        sorted(ROOT.glob("plugins/*/src/*/tasks")) + sorted(ROOT.glob("plugins/*/src/*/methods"))
    )
    if found.broken:
        raise KdzooError("; ".join(found.broken.values()))
    return found


def outputs() -> dict[Path, str]:
    """Every generated file with the text it should have."""
    cards = own_cards()
    found = read_records(RESULTS, cards)
    files = {DOCS / "catalogue.md": doc_pages.catalogue(cards, found)}
    for card in cards.methods.values():
        path = DOCS / "methods" / f"{card.slug}.md"
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        files[path] = doc_pages.method_page(card, cards, found, old)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = fill(readme, "plugins", plugin_table(cards))
    files[ROOT / "README.md"] = fill(readme, "output", bench_output(cards, found))
    return files


def fill(text: str, name: str, content: str) -> str:
    """Put `content` between the marks of a generated block; the block must be there."""
    pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end generated -->)", re.DOTALL)
    filled, count = pattern.subn(lambda match: f"{match[1]}{content}\n{match[2]}", text)
    if count != 1:
        raise KdzooError(
            f"expected one block '<!-- generated: {name} --> ... <!-- end generated -->', found {count}"
        )
    return filled


def plugin_table(cards: Catalog) -> str:
    rows = [["plugin", "distribution", "methods", "tasks"]]
    for folder in sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml")):
        domain = folder.name
        methods = [
            f"[{m.slug}](docs/methods/{m.slug}.md)" for m in cards.methods.values() if m.plugin == domain
        ]
        tasks = [f"`{task.slug}`" for task in cards.tasks.values() if task.plugin == domain]
        rows.append([domain, f"`kdzoo-{domain}`", ", ".join(methods), ", ".join(tasks)])
    return markdown(rows)


def bench_output(cards: Catalog, found: Records) -> str:
    """The output of the record's command as a terminal shows it."""
    task, _ = tasks_of(cards.method(README_BENCH), cards)[0]
    record = found.get((README_BENCH, task.slug))
    if record is None:
        return f"```text\nno record yet: {bench_command(README_BENCH, task.slug, record=True)}\n```"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        table.print_record(record, None)
    return f"```text\n$ {record.command}\n{printed.getvalue().rstrip()}\n```"


def stale(files: dict[Path, str]) -> list[str]:
    """What would change: files that differ, and pages of methods that are gone."""
    found = [p for p, text in files.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    found += [path for path in sorted((DOCS / "methods").glob("*.md")) if path not in files]
    return [path.relative_to(ROOT).as_posix() for path in found]


def missing_records() -> list[str]:
    """Commands that make the records not there yet, local tasks only."""
    cards = own_cards()
    found = read_records(RESULTS, cards)
    return [
        bench_command(card.slug, task.slug, record=True)
        for card in cards.methods.values()
        for task, use in tasks_of(card, cards)
        if use.profile == "local" and (card.slug, task.slug) not in found
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something is stale")
    parser.add_argument(
        "--records", action="store_true", help="list the commands of the records that are missing"
    )
    arguments = parser.parse_args()
    if arguments.records:
        print("\n".join(missing_records()))
        return 0
    files = outputs()
    changed = stale(files)
    if arguments.check:
        for name in changed:
            print(
                f"stale: {name}; run 'python tools/make_docs.py' and commit what it writes", file=sys.stderr
            )
        return 1 if changed else 0
    for name in changed:
        path = ROOT / name
        if path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[path], encoding="utf-8")
        else:
            path.unlink()
        print(f"wrote {name}" if path in files else f"removed {name}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KdzooError as error:
        print(f"make_docs: {error}", file=sys.stderr)
        sys.exit(2)
