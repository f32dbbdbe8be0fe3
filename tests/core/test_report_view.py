"""What a report says of a record: order, numbers, notes, and records with nearly nothing in them."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kdzoo import records
from kdzoo.records import Record, RunRow
from kdzoo.report import details, figures, html, quality
from kdzoo.report.arms_view import arms_view, shown_at_first
from kdzoo.report.table import arm_names, cells, table
from kdzoo.report.verdicts import claims_view
from kdzoo.report.view import BenchView, bench_view

HOSTILE = "<script>alert(1)</script>"
SHIP = {"params": 1000, "flops": 2_000_000, "sha256": "ab" * 32, "latency_ms": 0.5}
VALUES = {
    "teacher": [0.9],
    "student": [0.5, 0.6],
    "base": [0.6, 0.7],
    "toy-kd": [0.7, 0.8],
    "toy-kd.shuffled": [0.4, 0.5],
}


def run(arm: str, seed: int | None, value: float | None, **changes: Any) -> RunRow:
    fields: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        "status": "done",
        "init_hash": f"init{seed}",
        "order_hash": f"order{seed}",
        "steps": 10,
        "examples": 40,
        "metrics": {"test/accuracy": {"value": value, "n": 4}, "test/agreement": {"value": 0.5, "n": 4}},
        "curves": {"val/accuracy": [(5, 0.3), (10, value)]} if value is not None else {},
        "losses": {"loss/task": [(0, 2.0), (5, 1.0)], "loss/kd": [(0, 0.01), (5, 0.001)], "beta/mean": [(0, 0.1)]},
        "cost": {"seconds": 2.0, "validation_seconds": 0.5, "steps": 10, "examples": 40, "peak_memory_bytes": 2**20,
                 "student_forwards": 40, "teacher_forwards": 0, "spent": {"tokens": 7}},
        "ships": {"student": dict(SHIP)},
    }  # fmt: skip
    return RunRow(**{**fields, **changes})


def compared(
    arm: str, other: str, mean: float, low: float | None, high: float | None, n: int = 2
) -> dict[str, Any]:
    return {"arms": [arm, other], "metric": "test/accuracy", "n": n, "mean": mean, "low": low, "high": high}


def claim(number: int, verdict: str, low: float | None = 0.1, **changes: Any) -> dict[str, Any]:
    numbers = {
        "estimate": None if low is None else 0.2,
        "low": low,
        "high": None if low is None else 0.3,
        "n": 2,
    }
    fields = {"label": "toy-kd > student", "verdict": verdict, **numbers, "why": changes.get("why")}
    whole = {**fields, "claim": number, "kind": "order", "text": "the toy is better", "parts": [dict(fields)]}
    return {**whole, **changes}


def record(**changes: Any) -> Record:
    """Five arms with two seeds; `arms` sorted by name, as a file has them."""
    arms = {
        name: {"method": "toy-kd", "text": f"what {name} is", "set": {}, "stages": ["fit"], "differs": [], "why": "",
               "control": name == "toy-kd.shuffled", "baseline": name == "base"}
        for name in sorted(VALUES)
    }  # fmt: skip
    arms["toy-kd.shuffled"] |= {"differs": ["steps"], "why": "it needs more"}
    rows = [run("teacher", None, 0.9, curves={}, losses={})]
    rows += [
        run(arm, seed, v) for arm, found in VALUES.items() if arm != "teacher" for seed, v in enumerate(found)
    ]
    settings = {
        "student": {"lr": 0.1},
        "toy-kd": {"lr": 0.2, "kd_weight": 1.0},
        "base": {"lr": 0.1, "tau": 4},
    }
    fields: dict[str, Any] = {
        "id": {"method": "toy-kd", "task": "toy-task", "profile": "local", "method_version": 1, "task_version": 1,
               "fidelity": "paper", "extensions": [], "smoke": False},
        "command": "kdzoo bench toy-kd --seeds 2",
        "config": {"request": {"set": [], "arms": "all"}, "settings": settings},
        "config_hash": "c0ffee",
        "env": {"packages": {"torch": "2.14"}, "hardware": {"gpu": None, "processor": "x86"}, "threads": 1},
        "data": {"hashes": ["d" * 64], "sizes": {"train": 4, "test": 4}},
        "arms": arms,
        "stages": {"k": {"name": "fit", "seconds": 90.0, "reused": True, "cost": {"steps": 10}}},
        "runs": rows,
        "comparisons": [
            compared("teacher", "student", 0.35, 0.2, 0.5),
            compared("toy-kd", "student", 0.2, 0.1, 0.3) | {"items_low": 0.05, "items_high": 0.35},
            compared("toy-kd", "base", 0.1, -0.1, 0.3),
        ],
        "claims": [claim(1, "reproduced"), claim(2, "not run", None, why="no finished run of toy-kd.x")],
        "paper": [{"setting": "CIFAR", "metric": "top-1", "value": "75 %", "source": "table 1"}],
        "failures": [],
        "made_at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return Record(**{**fields, **changes})


@pytest.fixture
def installed(plugged: Callable[..., None], write_cards: Callable[..., Path]) -> Path:
    """The toy task and method, so that directions, texts and margins are known."""
    package = write_cards()
    paths = [str(package / kind) for kind in ("methods", "tasks")]
    plugged(toy=f"from pathlib import Path\n@hookimpl\ndef cards(): return [Path(p) for p in {paths}]")
    return package


@pytest.fixture(autouse=True)
def bare(plugged: Callable[..., None]) -> None:
    """Nothing is installed but core, unless a test asks for the cards."""
    plugged()


# --- order and numbers --------------------------------------------------------------------------------------------


def test_arms_keep_their_order(tmp_path: Path) -> None:
    """Would catch a page in alphabetical order: a record's file has its arms sorted."""
    records.write(record(), tmp_path / "record.json")
    read = records.read(tmp_path / "record.json")
    assert arm_names(read) == list(VALUES)
    assert [row[0] for row in table(read)[1:]] == [*list(VALUES)[:-1], "toy-kd.shuffled*†"]
    assert [row.arm.name for row in bench_view(read).table_rows] == list(VALUES)


def test_the_table_of_the_page_is_the_table_of_the_bench() -> None:
    """Would catch numbers that are rounded otherwise on the page than on the terminal."""
    made = record()
    view = bench_view(made)
    heads, *rows = table(made)
    assert [head.text for head in view.table_heads] == heads
    assert [[cell.text for cell in row.cells] for row in view.table_rows] == rows
    by_name = {row.arm.name: dict(zip(heads, row.cells, strict=True)) for row in view.table_rows}
    assert by_name["student"]["accuracy"] == ("0.550 ± 0.071", pytest.approx(0.55))
    assert by_name["toy-kd"]["- student [95 %]"] == ("+0.200 [+0.100, +0.300]", 0.2)
    assert by_name["student"]["- student [95 %]"] == ("", None)
    assert by_name["teacher"]["n"] == ("1", 1)
    assert by_name["toy-kd"]["params"] == ("1,000", 1000)
    assert by_name["toy-kd"]["Mflop"].text == "2.00"


def test_missing_and_broken_metrics_are_no_numbers() -> None:
    """Would catch a NaN in a mean, and a crash at a metric that is null."""
    made = record()
    for row in made.runs:
        if row.arm == "base":
            row.metrics["test/accuracy"] = {"value": None if row.seed else math.nan, "n": 4}
        if row.arm == "toy-kd" and row.seed:
            row.metrics["test/accuracy"] = {"value": math.inf, "n": 4}
    found = {row[0].value: row for row in cells(made)}
    assert found["base"][2] == ("-", None)
    assert found["toy-kd"][2] == ("0.700", 0.7)
    page = html.bench_page(made)
    assert "nan" not in page.replace("finance", "").lower().split()


def test_no_two_arms_look_alike() -> None:
    """Would catch two lines of one chart that nobody can tell apart."""
    made = record()
    names = [f"toy-kd.{i}" for i in range(24)]
    extra = dict.fromkeys(names, made.arms["toy-kd"])
    many = msgspec.structs.replace(
        made, arms=made.arms | extra, runs=[*made.runs, *(run(n, 0, 0.5) for n in names)]
    )
    arms = arms_view(many)
    assert len({arm.style for arm in arms}) == len(arms) == 29
    shown = shown_at_first(many, arms)
    assert shown == {"teacher", "student", "base", "toy-kd", "toy-kd.shuffled"}
    assert shown_at_first(made, arms_view(made)) == set(VALUES)


# --- the answer ---------------------------------------------------------------------------------------------------


def headline(made: Record) -> str:
    return " ".join(bench_view(made).headline)


def test_the_headline_by_hand(installed: Path) -> None:
    """Would catch an answer that says better where the interval holds zero, or worse where lower is better."""
    said = headline(record())
    assert "toy-kd reaches accuracy 0.750 ± 0.071 over 2 seeds (higher is better)." in said
    assert "Against the student alone that is +0.200 [+0.100, +0.300]: better" in said
    assert "Against the baseline base that is +0.100 [-0.100, +0.300]: the interval holds 0" in said
    worse = record(comparisons=[compared("toy-kd", "student", -0.2, -0.3, -0.1)])
    assert "worse" in headline(worse)
    one = record(comparisons=[compared("toy-kd", "student", 0.2, None, None, 1)])
    assert "one seed gives no interval" in headline(one)


def test_without_the_cards_no_direction_is_guessed() -> None:
    """Would catch a report from another machine that calls the lower of two losses worse."""
    view = bench_view(record())
    said = " ".join(view.headline)
    assert "better" not in said
    assert "worse" not in said
    assert all("No front is drawn" in figure.caption for figure in view.fronts.first)
    assert "better" not in str(view.forests.first[0].picture)


def test_claims_carry_sign_numbers_and_words(installed: Path) -> None:
    """Would catch a verdict that only a colour tells, or the numbers of another row."""
    first, second = claims_view(record())
    assert (first.number, first.verdict, first.sign, first.text) == (
        1,
        "reproduced",
        "✓",
        "the toy is better",
    )
    assert first.rows[0].estimate == "+0.200 [+0.100, +0.300]"
    assert first.rows[0].strip is not None
    assert (second.verdict, second.rows[0].estimate, second.rows[0].strip) == ("not run", "", None)
    assert second.rows[0].why == "no finished run of toy-kd.x"
    page = html.bench_page(record())
    assert "✓</span> reproduced" in page


def test_all_rows_of_a_claim_must_hold() -> None:
    """Would catch a claim that passes by its first row."""
    other = claim(1, "not reproduced", text="and on the other metric")
    (both,) = claims_view(record(claims=[claim(1, "reproduced"), other]))
    assert both.verdict == "not reproduced"
    assert [row.verdict for row in both.rows] == ["reproduced", "not reproduced"]
    assert [row.text for row in both.rows] == ["", "and on the other metric"]


def test_a_record_without_claims_says_so() -> None:
    """Would catch an empty section."""
    assert "makes no claim" in html.bench_page(record(claims=[]))


# --- figures ------------------------------------------------------------------------------------------------------


def test_curves_are_means_with_bands() -> None:
    """Would catch a band of one seed, and steps that only one seed has averaged with nothing."""
    points, band = figures.averaged([[(1, 1.0), (2, 4.0)], [(1, 3.0), (2, None), (3, 5.0)]])
    assert points == [(1, 2.0), (2, 4.0), (3, 5.0)]
    assert band == [(1, pytest.approx(2 - math.sqrt(2)), pytest.approx(2 + math.sqrt(2)))]
    assert figures.averaged([]) == ([], [])
    assert figures.averaged([[(1, math.nan)]]) == ([], [])


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    """Would catch a page of megabytes, and a curve that ends before the last step."""
    steps = figures.thinned([float(step) for step in range(10_000)])
    assert len(steps) <= 161
    assert (steps[0], steps[-1]) == (0.0, 9999.0)
    assert figures.thinned([1.0, 2.0]) == [1.0, 2.0]


def test_every_section_has_its_marks() -> None:
    """Would catch a chart that lost an arm."""
    view = bench_view(record())
    assert [figure.marks for figure in view.forests.first] == [2, 1]
    assert [figure.marks for figure in view.curves.first] == [8]
    assert len(view.terms.first) == 4
    assert "logarithmic" in view.terms.note
    assert [entry.name for entry in view.terms.legend] == ["task", "kd"]
    assert len(view.logged.first) == 4
    assert [figure.marks for figure in view.fidelity.first] == [4], (
        "the teacher itself is not compared with itself"
    )
    assert [figure.marks for figure in view.fronts.first] == [5, 5]
    assert view.errors is None


def test_calibration_is_pooled_over_seeds() -> None:
    """Would catch bins that are averaged without regard to how many items they hold."""
    bins = [{"count": [1, 0], "accuracy": [1.0, None], "confidence": [0.4, None]},
            {"count": [3, 2], "accuracy": [0.0, 0.5], "confidence": [0.2, 0.9]}]  # fmt: skip
    assert quality.pooled(bins) == [(4, 0.25, pytest.approx(0.25)), (2, 0.5, 0.9)]
    made = record()
    for row in made.runs:
        row.reliability = {"student": bins[1]} if row.arm == "student" else {}
        row.items = "key" if row.arm == "base" else None
    view = bench_view(made, {"key": {"student": bins[0]}})
    assert [figure.title for figure in view.calibration.first] == ["student", "base"]
    assert view.uncalibrated == ["teacher", "toy-kd", "toy-kd.shuffled"]


def test_calibration_that_is_not_stored() -> None:
    """Would catch an empty section where the record has no bins."""
    assert "Not stored" in html.bench_page(record())
    made = record()
    for row in made.runs:
        row.metrics["test/ece"] = {"value": 0.125, "n": 4}
    view = bench_view(made)
    assert view.errors is not None
    assert view.errors.rows[0][1].text == "0.125"


# --- notes, settings, costs, troubles -----------------------------------------------------------------------------


def test_what_differs_is_said_with_its_reason() -> None:
    """Would catch an unequal arm that looks like an equal one."""
    made = record(config={"request": {}, "settings": {}, "left_out": {"longer": "nothing to convert"}})
    notes = {note: names for names, note in bench_view(made).notes}
    assert notes["* not equal to the student in steps: it needs more."] == ["toy-kd.shuffled"]
    assert notes["control that was left out: nothing to convert."] == ["longer"]
    (tags,) = [arm.tags for arm in arms_view(made) if arm.name == "toy-kd.shuffled"]
    assert tags == ("control", "differs: steps")
    assert "Not so, by design" not in details.fairness(made)
    made.runs[-1].steps = 20
    assert "Not so, by design: toy-kd.shuffled." in details.fairness(made)


def test_settings_against_method_and_student() -> None:
    """Would catch a difference shown the wrong way round."""
    student, base, method = details.arm_settings(
        record(), [a for a in arms_view(record()) if a.name != "teacher"]
    )[:3]
    assert student.to_student is None
    assert student.to_method == details.Changes([("lr", "0.1", "0.2")], [], ["kd_weight"])
    assert base.to_student == details.Changes([], [("tau", "4")], [])
    assert method.to_method is None
    assert method.to_student == details.Changes([("lr", "0.2", "0.1")], [("kd_weight", "1.0")], [])


def test_costs_add_up() -> None:
    """Would catch a total that forgets what was reused."""
    grid = details.costs(record(), arms_view(record()))
    row = next(row for row in grid.rows if row[0].text == "toy-kd")
    assert [cell.text for cell in row] == ["toy-kd", "2", "2.0", "0.5", "10", "40", "40", "0", "1", "7"]
    assert "90 s of computing; 1 of them" in grid.foot[0]
    assert [details.duration(s) for s in (5.0, 600.0, 9000.0)] == ["5 s", "10.0 minutes", "2.5 hours"]


def test_troubles_are_said_once() -> None:
    """Would catch twelve copies of one error, and a refusal that passes as a warning."""
    failures = [
        {"stage": "fit", "arm": "base", "seed": s, "error": "out of memory", "traceback": "line 1"}
        for s in (0, 1)
    ]
    made = record(
        failures=[*failures, {"stage": "evaluate", "arm": "base", "seed": 0, "error": "fit", "skipped": True}]
    )
    made.runs[-1] = run("toy-kd.shuffled", 1, 0.5, status="refused", warnings=["differs"])
    made.runs[1].warnings.append("other source")
    found = details.troubles(made)
    assert [one.kind for one in found] == ["failed", "refused", "skipped", "warning"]
    assert found[0].where == ["base seed 0, stage fit", "base seed 1, stage fit"]
    view = bench_view(made)
    assert view.runs_done == "8 of 9 runs finished"
    assert "out of memory" in html.bench_page(made)


def test_secrets_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a key from the environment, or from a command, that is handed on with the page."""
    monkeypatch.setenv("SOME_API_KEY", "very-secret-value")
    made = record(
        command="kdzoo bench x --set api_key=abc123 --url https://me:pass@host/",
        failures=[
            {"stage": "fit", "arm": "base", "seed": 0, "error": "401 for very-secret-value, hf_" + "a" * 20}
        ],
    )
    page = html.bench_page(made)
    for secret in ("very-secret-value", "abc123", "me:pass", "hf_aaaa"):
        assert secret not in page
    assert details.HIDDEN in page
    assert details.scrub({"max_tokens": 5, "lr": [0.1, "x"]}) == {"max_tokens": 5, "lr": [0.1, "x"]}


# --- nearly nothing -----------------------------------------------------------------------------------------------


def test_hostile_names_are_text() -> None:
    """Would catch a name from somebody's card that runs."""

    def spoiled(value: Any) -> Any:
        if isinstance(value, dict):
            return {spoiled(k) if k in VALUES else k: spoiled(v) for k, v in value.items()}
        if isinstance(value, list):
            return [spoiled(part) for part in value]
        known = isinstance(value, str) and (value in VALUES or value in texts)
        return f"{value}{HOSTILE}" if known else value

    texts = {
        "toy-task",
        "kdzoo bench toy-kd --seeds 2",
        "the toy is better",
        "it needs more",
        "top-1",
        "x86",
        "2.14",
    }
    made = msgspec.convert(spoiled(msgspec.to_builtins(record())), Record)
    page = html.bench_page(made)
    assert HOSTILE not in page
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize("kept", ["one seed", "one arm", "all failed", "no runs", "bare runs"])
def test_records_with_little_in_them(kept: str) -> None:
    """Would catch a page that needs three seeds, a teacher, curves or a store."""
    made = record()
    rows = {
        "one seed": [row for row in made.runs if not row.seed],
        "one arm": [row for row in made.runs if row.arm == "toy-kd"],
        "all failed": [RunRow(arm=row.arm, seed=row.seed, status="failed") for row in made.runs],
        "no runs": [],
        "bare runs": [RunRow(arm=row.arm, seed=row.seed, status="done") for row in made.runs],
    }[kept]
    names = {"toy-kd"} if kept == "one arm" else set(VALUES)
    arms = {name: arm for name, arm in made.arms.items() if name in names}
    alone = [] if kept != "one seed" else [compared("toy-kd", "student", 0.2, None, None, 1)]
    little = msgspec.structs.replace(
        made, runs=rows, arms=arms, comparisons=alone, claims=[], paper=[], config={}, stages={}
    )
    view: BenchView = bench_view(little)
    assert view.headline
    page = html.bench_page(little)
    assert "nothing to compare" in page or kept in ("one seed", "one arm")
    assert "Undefined" not in page


def test_a_smoke_run_is_called_one() -> None:
    """Would catch three steps of training that are shown as a result."""
    assert "the numbers mean nothing" in html.bench_page(record(id={**record().id, "smoke": True}))


def test_reading_does_not_change_the_record() -> None:
    """Would catch a view that hides secrets, or sorts arms, in the record it was given."""
    made = record()
    before = copy.deepcopy(msgspec.to_builtins(made))
    bench_view(made)
    assert msgspec.to_builtins(made) == before


def test_the_policy_allows_the_page_and_nothing_else() -> None:
    """Would catch a style sheet that the page's own policy refuses, or anything from elsewhere."""
    page = html.bench_page(record())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    said = policy[1].replace("&#39;", "'")
    assert said.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in said
    assert not re.search(r'\b(?:src|action|style|on\w+)="', page)
    assert not re.findall(r"url\(|@import|//cdn", page)
    links = set(re.findall(r'href="([^"#][^"]*)"', page))
    assert links <= {"data:,"}
