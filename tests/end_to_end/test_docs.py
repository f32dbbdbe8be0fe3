"""The documents: fresh, whole, and true: what they show is run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdzoo import catalog
from kdzoo.arms import arms_of, select
from kdzoo.errors import KdzooError
from kdzoo.records import Record, RunRow, to_json
from kdzoo.settings import defined, parse_assignments

ROOT = Path(__file__).resolve().parents[2]
KDZOO = str(Path(sys.executable).with_name("kdzoo"))
PAGES = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("*/*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("plugins/*/*.md"),
    ]
)
SHOWN = [
    "README.md",
    "core/README.md",
    "docs/tutorials/shrink-a-model.md",
    "docs/testing.md",
]  # pages whose code blocks are run as they are
WALK = "docs/tutorials/add-a-method.md"


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: str, language: str) -> list[str]:
    """The fenced code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[list[str]]:
    """The `kdzoo` commands that a page shows, as argument lists."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("kdzoo ")]


@pytest.fixture(scope="module")
def tool() -> Iterator[Any]:
    """tools/doc_pages.py as a module; its neighbours can be imported too."""
    sys.path.insert(0, str(ROOT / "tools"))
    import doc_pages

    yield doc_pages
    sys.path.remove(str(ROOT / "tools"))


# --- the pages as they are ------------------------------------------------------------------------------------------


def test_generated_documents_are_fresh():
    """Would catch a card or record that was changed without `make docs`."""
    command = [sys.executable, str(ROOT / "tools/make_docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page: Path):
    """Would catch a link to a page or a heading that was renamed."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{name(page)} links to {target}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", head).lower().replace(" ", "-") for head in heads], (
                target
            )


def test_readme_is_short_and_sets_up_in_two_commands():
    """Would catch a front page that has grown, or a third thing to do before anything runs."""
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) < 150
    setup = [line.split("#")[0].strip() for line in blocks("README.md", "sh")[0].splitlines()]
    assert setup == ["make bench", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE) for command in setup)


def test_no_path_of_one_machine():
    """Would catch a folder of the machine where a page or a record was made."""
    files = [
        *PAGES,
        *ROOT.glob("benchmarks/results/*.json"),
        ROOT / "Makefile",
        ROOT / "plugins/vision/NOTICE",
    ]
    for path in files:
        found = re.findall(r"(?<![\w.~-])/(?:work|root|home|tmp|mnt|Users)/[\w./-]*", path.read_text())
        assert not found, f"{name(path)}: {found}"


def test_every_page_can_be_reached():
    """Would catch a page that nobody links to."""
    linked = {ROOT / "README.md"}
    todo = [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        for target in re.findall(r"\]\(([^)#\s]+\.md)", page.read_text()):
            other = (page.parent / target).resolve()
            if not target.startswith("http") and other.exists() and other not in linked:
                linked.add(other)
                todo.append(other)
    assert not [name(page) for page in ROOT.glob("docs/**/*.md") if page not in linked]


# --- what they show -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", SHOWN)
def test_python_blocks_run(page: str):
    """Would catch an example whose import or argument has changed."""
    found = blocks(page, "python")
    assert found
    for block in found:
        exec(compile(block, page, "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", SHOWN)
def test_commands_exist(page: str, tmp_path: Path):
    """Would catch a command, option, method, task, arm or setting that the program does not have."""
    cards = catalog.load()
    for _, verb, *rest in commands(page):
        if verb != "bench":
            environment = {**os.environ, "KDZOO_HOME": str(tmp_path)}
            done = subprocess.run(
                [KDZOO, verb, *rest], capture_output=True, text=True, env=environment, cwd=tmp_path
            )
            assert done.returncode == 0, done.stderr
            continue
        card, options = cards.method(rest[0]), list(zip(rest[1:], [*rest[2:], ""], strict=False))
        asked = dict(options)
        task = cards.task(asked.get("--task") or next(t for t, use in card.tasks.items() if use.default))
        assert task.slug in card.tasks
        select(arms_of(cards, card, task), asked.get("--arms", "default"), task)
        parse_assignments([value for option, value in options if option == "--set"], defined(task, card))
        known = subprocess.run([KDZOO, "bench", "--help"], capture_output=True, text=True).stdout
        assert all(option in known for option, _ in options if option.startswith("--"))


def test_the_walk_to_a_method(tmp_path: Path):
    """Would catch a tutorial that no longer leads to a method that runs: its files are written and benched."""
    package = tmp_path / "kdzoo_example"
    (package / "methods").mkdir(parents=True)
    for folder in (package, package / "methods"):
        (folder / "__init__.py").touch()
    found = [*blocks(WALK, "toml"), *blocks(WALK, "python"), *blocks("docs/plugin-guide.md", "python")]
    written = {}
    for block in found:
        if match := re.match(r"# ([\w./-]+)\n", block):
            written[match[1]] = block
    for path in ("methods/logit-mse.toml", "methods/logit_mse.py"):
        (package / path).write_text(written[path])
    (package / "plugin.py").write_text(written["kdzoo_example/plugin.py"])
    info = tmp_path / "kdzoo_example-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kdzoo-example\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[kdzoo]\nexample = kdzoo_example.plugin\n")

    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "KDZOO_HOME": str(tmp_path / "home")}

    def kdzoo(*arguments: str) -> str:
        done = subprocess.run(
            [KDZOO, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "kdzoo-example 0.1.0" in kdzoo("plugins")
    assert "squared distance of logits is better" in kdzoo("show", "logit-mse")
    smoke = ["bench", "logit-mse", "--smoke", "--arms", "logit-mse", "--jobs", "0", "--json"]
    record = json.loads(kdzoo(*smoke))
    row = next(row for row in record["runs"] if row["arm"] == "logit-mse")
    assert row["status"] == "done"
    assert "loss/logit_mse" in row["losses"]


# --- the tool that makes them ---------------------------------------------------------------------------------------


def record_of(seeds: int = 5, **changes: Any) -> Record:
    """A record of hinton-kd as a bench would write it, with made-up numbers."""
    costs = {"seconds": 2.0, "peak_memory_bytes": 2**20}
    ship = {"student": {"params": 10, "flops": 20, "sha256": "0"}}
    values = {"test/accuracy": {"value": 0.5, "n": 100}}
    rows = [
        RunRow(arm=arm, seed=seed, status="done", metrics=values, cost=costs, ships=ship)
        for arm in ("student", "hinton-kd")
        for seed in range(seeds)
    ]
    rows.append(RunRow(arm="teacher", seed=None, status="done", metrics=values, ships=ship))
    arm = {"differs": [], "baseline": False}
    answer = {
        "kind": "order",
        "estimate": -0.1,
        "low": -0.2,
        "high": -0.05,
        "n": 5,
        "why": None,
        "label": "a - b",
    }
    cards = catalog.load()
    fields: dict[str, Any] = {
        "id": {
            "method": "hinton-kd",
            "task": "fashion-few-labels",
            "profile": "local",
            "method_version": cards.method("hinton-kd").version,
            "task_version": cards.task("fashion-few-labels").version,
            "fidelity": "paper",
            "extensions": [],
            "smoke": False,
        },
        "command": "kdzoo bench hinton-kd",
        "config": {},
        "config_hash": "0",
        "env": {"packages": {"torch": "2"}, "hardware": {"gpu": None, "processor": "x"}, "threads": 1},
        "data": {},
        "arms": dict.fromkeys(("teacher", "student", "hinton-kd"), arm),
        "stages": {"k": {"seconds": 60.0}},
        "runs": rows,
        "comparisons": [],
        "claims": [{**answer, "claim": 1, "text": "it helps", "verdict": "not reproduced"}],
        "paper": [],
        "failures": [],
        "made_at": "2026-01-01T00:00:00+00:00",
    }
    return Record(**{**fields, **changes})


def test_a_page_says_what_did_not_reproduce(tool: Any):
    """Would catch a page that hides a verdict, a missing record, or a heading; and one that drops what was written."""
    cards = catalog.load()
    card = cards.method("hinton-kd")
    plain = tool.method_page(card, cards, {}, "")
    assert "No record yet" in plain
    kept = plain.replace("<!-- by hand: pitfalls -->\n", "<!-- by hand: pitfalls -->\nMind the gap.\n")
    local = [task for task, use in card.tasks.items() if use.profile == "local"]
    records = {("hinton-kd", task): record_of() for task in local}
    page = tool.method_page(card, cards, records, kept)
    assert "NOT reproduced 1" in page
    assert "No record yet" not in page
    assert "Mind the gap." in page
    heads = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert heads == list(tool.HEADINGS)
    assert tool.method_page(card, cards, records, page) == page


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (lambda: record_of(seeds=3), "has 3 seeds, expected 5"),
        (lambda: record_of(id={**record_of().id, "smoke": True}), "smoke run"),
        (lambda: record_of(id={**record_of().id, "method_version": 99}), "another version"),
        (lambda: record_of(arms={"teacher": {}, "student": {}}), "lacks arms of the card: hinton-kd"),
        (lambda: record_of(config={"request": {"set": ["lr=1"]}}), "other settings than the cards': lr=1"),
        (lambda: record_of(failures=[{"arm": "student"}]), "failed"),
        (lambda: record_of(id={**record_of().id, "task": "emoji-retrieval"}), "expected the name"),
    ],
)
def test_records_that_are_none_to_commit(tool: Any, tmp_path: Path, record: Any, said: str):
    """Would catch documents made from a record that fits no card, or has too few seeds."""
    from doc_records import read_records

    (tmp_path / "hinton-kd.fashion-few-labels.json").write_bytes(to_json(record()))
    cards = catalog.load()
    with pytest.raises(KdzooError, match=said):
        read_records(tmp_path, cards)
