"""Several methods at once: ranks, Friedman, Nemenyi, Holm, and what may be compared."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from kdzoo import catalog
from kdzoo.compare import (
    Comparison,
    Row,
    TaskPart,
    assignments_of,
    common_tasks,
    difference,
    metric_of,
    plan_task,
    plot,
    rank,
    task_part,
    to_json,
)
from kdzoo.errors import KdzooError
from kdzoo.plan import Plan, Request, make_plan
from kdzoo.ranks import critical_difference, friedman, groups, holm, paired_p, ranks
from kdzoo.records import RunRow
from kdzoo.report.compare_table import arm_table, matrix, p_value, print_comparison
from kdzoo.report.critical import critical_svg

# Demšar 2006 (JMLR 7), table 5: critical values of the two-tailed Nemenyi test for 2 to 10 classifiers.
NEMENYI = {
    0.95: [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164],
    0.90: [1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920],
}


# --- ranks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "better", "expected"),
    [
        ([0.9, 0.7, 0.8], "higher", [1, 3, 2]),
        ([0.9, 0.7, 0.8], "lower", [3, 1, 2]),
        ([0.5, 0.5, 0.9], "higher", [2.5, 2.5, 1]),
        ([0.5, 0.5, 0.5, 0.1], "higher", [2, 2, 2, 4]),
        ([0.5], "higher", [1]),
    ],
)
def test_ranks_by_hand(values: list[float], better: Any, expected: list[float]) -> None:
    """Would catch ranks from the wrong end, and ties that are broken by the order of the words."""
    assert ranks(values, better) == expected
    assert sum(ranks(values, better)) == len(values) * (len(values) + 1) / 2


def test_nan_has_no_rank() -> None:
    """Would catch a diverged run that ranks as best or worst by accident."""
    with pytest.raises(ValueError, match="finite"):
        ranks([0.1, math.nan], "higher")


def test_friedman_by_hand() -> None:
    """Three methods in four blocks, ranks 1 2 3 three times and 2 1 3: R = 5, 7, 12; chi^2 = 26/4 = 6.5."""
    table = [[1, 2, 3], [1, 2, 3], [1, 2, 3], [2, 1, 3]]
    got = friedman(table)
    assert got.statistic == pytest.approx(6.5)
    assert (got.df, got.p) == (
        2,
        pytest.approx(math.exp(-6.5 / 2)),
    )  # with 2 degrees of freedom p = exp(-x/2)


def test_friedman_is_scipys_with_ties() -> None:
    """Would catch a wrong correction for ties; scipy's own function starts from the values, not from ranks."""
    from scipy.stats import friedmanchisquare

    values = [
        [0.1, 0.2, 0.2, 0.4],
        [0.3, 0.3, 0.3, 0.1],
        [0.5, 0.6, 0.7, 0.7],
        [0.2, 0.9, 0.4, 0.4],
        [1, 2, 3, 3],
    ]
    expected = friedmanchisquare(*zip(*values, strict=True))
    got = friedman([ranks(row, "higher") for row in values])
    assert got.statistic == pytest.approx(expected.statistic)
    assert got.p == pytest.approx(expected.pvalue)


def test_friedman_of_equals() -> None:
    """Would catch 0/0 where all methods are tied everywhere."""
    assert friedman([[2, 2, 2]] * 3)[::2] == (0.0, 1.0)
    for table in ([], [[1.0, 2.0]], [[1.0], [1.0]], [[1.0, 2.0], [1.0]]):
        with pytest.raises(ValueError, match="at least 2"):
            friedman(table)


@pytest.mark.parametrize("level", NEMENYI)
def test_critical_difference_is_the_published_one(level: float) -> None:
    """Would catch the studentised range without its square root of 2, and a wrong number of blocks."""
    for k, q in enumerate(NEMENYI[level], 2):
        assert critical_difference(k, 30, level) == pytest.approx(q * math.sqrt(k * (k + 1) / 180), abs=6e-4)


def test_the_example_of_the_paper() -> None:
    """Demšar's section 3.2.2: four classifiers on 14 data sets, CD = 2.569 sqrt(4 * 5 / (6 * 14)) = 1.25."""
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    with pytest.raises(ValueError, match=r"1 methods"):
        critical_difference(1, 5)


def test_groups_by_hand() -> None:
    """Would catch groups inside groups, groups of one, and a difference at the border that counts as one."""
    mean = {"a": 1.0, "b": 1.5, "c": 2.5, "d": 4.0}
    assert groups(mean, 1.0) == [["a", "b"], ["b", "c"]]
    assert groups(mean, 1.5) == [["a", "b", "c"], ["c", "d"]]
    assert groups(mean, 3.0) == [["a", "b", "c", "d"]]
    assert groups(mean, 0.1) == []
    assert groups({"x": 0.3, "y": 0.1 + 0.2}, 0.0) == [["x", "y"]]  # rounding is no difference


def test_holm_by_hand() -> None:
    """0.01 x 3, then 0.03 x 2, then max(0.04 x 1, 0.06): in the order given."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_paired_p_by_hand() -> None:
    """Differences 1, 2, 3: t = 2 sqrt(3), df 2; there p = 1 - t / sqrt(t^2 + 2)."""
    t = 2 * math.sqrt(3)
    assert paired_p([1.0, 2.0, 3.0]) == pytest.approx(1 - t / math.sqrt(t * t + 2))
    assert paired_p([-1.0, -2.0, -3.0]) == paired_p([1.0, 2.0, 3.0])
    assert paired_p([0.0, 0.0, 0.0]) == 1.0
    assert paired_p([0.1, 0.1, 0.1]) == 0.0
    assert paired_p([0.1]) is None


# --- the answer -----------------------------------------------------------------------------------------------------


def part(values: dict[str, list[float]], better: Any = "higher") -> TaskPart:
    """A task's part made of values by seed."""
    by_seed = {arm: {str(seed): v for seed, v in enumerate(row)} for arm, row in values.items()}
    rows = [
        Row(arm=arm, values=v, mean=sum(v.values()) / len(v), sd=None, n=len(v)) for arm, v in by_seed.items()
    ]
    pairs = itertools.combinations(values, 2)
    numbers = {arm: dict(enumerate(row)) for arm, row in values.items()}
    return TaskPart(
        metric="test/accuracy",
        better=better,
        baseline=None,
        rows=rows,
        differences=[difference(numbers, pair) for pair in pairs],
        settings={},
    )


def whole(parts: dict[str, TaskPart], methods: list[str], seeds: int) -> Comparison:
    notes: list[str] = []
    answer = rank(parts, methods, range(seeds), notes)
    return Comparison(
        methods=methods, seeds=list(range(seeds)), smoke=False, tasks=parts, notes=notes, failures=[],
        command="kdzoo compare", env={}, made_at="now", **answer,
    )  # fmt: skip


def test_mean_ranks_over_seeds_and_tasks() -> None:
    """Would catch a task whose metric is better when lower and is ranked upside down."""
    one = part({"a": [0.9, 0.8, 0.7], "b": [0.5, 0.8, 0.9], "c": [0.1, 0.1, 0.1]})
    two = part({"a": [1.0, 1.0, 1.0], "b": [2.0, 2.0, 2.0], "c": [3.0, 3.0, 3.0]}, "lower")
    got = whole({"x": one}, ["a", "b", "c"], 3)
    assert got.ranks == {"a": pytest.approx(4.5 / 3), "b": pytest.approx(4.5 / 3), "c": 3.0}
    assert got.friedman is not None
    assert got.critical_difference == pytest.approx(2.3437 * math.sqrt(12 / 18), abs=1e-3)
    both = whole({"x": one, "y": two}, ["a", "b", "c"], 3)
    assert len(both.blocks) == 6
    assert both.ranks == {"a": 7.5 / 6, "b": 10.5 / 6, "c": 3.0}
    assert any("nothing of other tasks" in note for note in both.notes)


def test_two_seeds_are_not_tested() -> None:
    """Would catch p values and bars that two seeds cannot carry."""
    got = whole({"x": part({"a": [0.9, 0.8], "b": [0.5, 0.6]})}, ["a", "b"], 2)
    assert (got.friedman, got.critical_difference) == (None, None)
    assert got.tasks["x"].differences[0].p is None
    assert got.notes == ["ranks are not testable: 2 seeds that all methods finished, needed: 3"]
    drawing = plot(got)
    assert drawing is not None
    assert "not testable" in drawing
    assert 'class="bar"' not in drawing


def test_a_seed_that_one_method_lacks_is_no_block() -> None:
    """Would catch ranks among fewer methods in some blocks than in others."""
    one = part({"a": [0.9, 0.8, 0.7, 0.6], "b": [0.5, 0.8, 0.9]})
    got = whole({"x": one}, ["a", "b"], 4)
    assert len(got.blocks) == 3
    assert got.notes[0] == "x: 1 of 4 seeds left out, not finished by all"
    assert whole({"x": part({"a": [0.1]})}, ["a", "nobody"], 1).ranks == {}


def test_p_values_are_corrected_over_all_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch ten uncorrected tests among five methods."""
    card = catalog.load().method("hinton-kd")
    plan = make_plan(Request("hinton-kd", seeds=3))
    values = {
        "student": [0.5, 0.5, 0.5],
        "hinton-kd": [0.6, 0.65, 0.7],
        "dkd": [0.7, 0.72, 0.77],
        "rkd": [0.5, 0.6, 0.4],
    }
    rows = [
        RunRow(arm=arm, seed=seed, status="done", metrics={"test/accuracy": {"value": v, "n": 10}})
        for arm, row in values.items()
        for seed, v in enumerate(row)
    ]
    rows.append(
        RunRow(arm="teacher", seed=None, status="done", metrics={"test/accuracy": {"value": 0.9, "n": 10}})
    )
    plan.arms |= dict.fromkeys(("dkd", "rkd"), plan.arms["hinton-kd"])
    methods = ["hinton-kd", "dkd", "rkd"]
    got = task_part(plan, rows, methods, "test/accuracy", "higher")
    plain = [one.p for one in got.differences if one.p is not None]
    assert [one.arms for one in got.differences] == [
        ("hinton-kd", "dkd"),
        ("hinton-kd", "rkd"),
        ("dkd", "rkd"),
    ]
    assert [one.p_holm for one in got.differences] == holm(plain)
    assert got.differences[0].mean == pytest.approx(-0.08)
    teacher, student, own, *_ = got.rows
    assert teacher.values == {"all": 0.9}
    assert teacher.to_student is not None
    assert teacher.to_student["mean"] == pytest.approx(0.4)
    assert student.to_student is None
    assert own.to_baseline is None
    assert own.to_student is not None
    assert own.to_student["mean"] == pytest.approx(0.15)
    answer = whole({"fashion-few-labels": got}, methods, 3)
    table = matrix(answer, got)
    assert table[1][2].startswith("-0.080 (")
    assert table[2][1].startswith("+0.080 (")
    assert [row[-1] for row in arm_table(answer, "fashion-few-labels", got)][1:3] == ["", ""]
    print_comparison(answer, None)
    said = capsys.readouterr().out
    assert "Holm-corrected over 3 pairs" in said
    assert "Friedman: chi2(2)" in said
    assert card.slug in said
    assert to_json(answer).startswith(b"{")
    with pytest.raises(KdzooError, match=r"--metric test/nope was not measured.*test/accuracy"):
        task_part(plan, rows, methods, "test/nope", "higher")


def test_small_p_values_are_not_zero() -> None:
    """Would catch p = 0.000 in a table."""
    assert (p_value(0.0004), p_value(0.0123), p_value(1.0)) == ("< 0.001", "0.012", "1.000")


# --- what may be compared -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("methods", "tasks", "message"),
    [
        (["rkd"], [], r"got 1 method, expected at least 2"),
        (["rkd", "dkd", "rkd"], [], r"got rkd twice"),
        (["rkd", "dkd"], ["fashion-few-labels"] * 2, r"--task fashion-few-labels is given twice"),
        (
            ["rkd", "hinton-kd"],
            ["emoji-retrieval"],
            r"hinton-kd runs on fashion-few-labels, .*, not on emoji-retrieval.*All of them run on fashion-few-labels",
        ),
        (["rkd", "hintn-kd"], [], r"unknown method 'hintn-kd'. Did you mean hinton-kd"),
        (["rkd", "dkd"], ["fashion-few"], r"unknown task 'fashion-few'"),
    ],
)
def test_refused_comparisons(methods: list[str], tasks: list[str], message: str) -> None:
    """Would catch a comparison that trains for an hour and then has nothing to rank."""
    with pytest.raises(KdzooError, match=message):
        common_tasks(methods, tasks)


def test_the_default_task() -> None:
    """Would catch a default that is the paper's profile, or no task of the others."""
    assert [task.slug for task in common_tasks(["hinton-kd", "rkd"], [])] == ["fashion-few-labels"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (None, "test/accuracy"),
        ("nll", "test/nll"),
        ("test/agreement", "test/agreement"),
        ("cost/seconds", "cost/seconds"),
    ],
)
def test_the_metric_and_its_direction(wanted: str | None, expected: str) -> None:
    """Would catch a loss or a time that ranks the largest first."""
    name, better = metric_of(catalog.load().task("fashion-few-labels"), wanted)
    assert str(name) == expected
    assert better == ("lower" if expected in ("test/nll", "cost/seconds") else "higher")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("acuracy", "unknown metric 'test/acuracy'. Did you mean test/accuracy"),
        ("val/accuracy", "methods are ranked by what is measured at the end"),
        ("val/accuracy:steps_to(0.5)", "methods are ranked by what is measured at the end"),
    ],
)
def test_metrics_that_rank_nothing(wanted: str, message: str) -> None:
    """Would catch a typing error that is found after the training."""
    with pytest.raises(KdzooError, match=re.escape(message)):
        metric_of(catalog.load().task("fashion-few-labels"), wanted)


def keys(plan: Plan, arm: str) -> list[str]:
    return [spec.key for spec in plan.runs[(arm, 0)]]


def test_the_runs_are_those_of_the_benches() -> None:
    """Would catch a comparison that trains again what a bench has made, or ranks something else."""
    task = catalog.load().task("fashion-few-labels")
    plan = plan_task(["dkd", "rkd"], task, Request("", seeds=2), {})
    assert list(plan.arms) == ["teacher", "student", "hinton-kd", "dkd", "rkd"]
    for slug in ("dkd", "rkd"):
        bench = make_plan(Request(slug, task=task.slug, seeds=2))
        for arm in ("student", "hinton-kd", slug):
            assert keys(plan, arm) == keys(bench, arm)


def test_settings_reach_those_who_have_them() -> None:
    """Would catch --set of one method's setting that is refused by the others, or reaches nobody."""
    task = catalog.load().task("fashion-few-labels")
    methods = ["dkd", "rkd"]
    given = assignments_of(["steps=50", "angle_weight=1.5"], methods, [task])
    plan = plan_task(methods, task, Request("", seeds=1), given)
    assert {values["steps"] for arm, values in plan.settings.items()} == {50}
    assert plan.settings["rkd"]["angle_weight"] == 1.5
    assert "angle_weight" not in plan.settings["dkd"]
    with pytest.raises(KdzooError, match=r"unknown setting 'angle_wight'\. Did you mean angle_weight"):
        assignments_of(["angle_wight=1"], methods, [task])
    with pytest.raises(KdzooError, match="expected a number"):
        assignments_of(["angle_weight=x"], methods, [task])


def test_benches_with_other_students_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a method that wins because its bench trains a larger student."""
    from msgspec import structs

    cards = catalog.load()
    card = cards.method("rkd")
    use = structs.replace(card.tasks["fashion-few-labels"], bench={"student": "cnn-m"})
    changed = structs.replace(card, tasks={**card.tasks, "fashion-few-labels": use})
    monkeypatch.setitem(cards.methods, "rkd", changed)
    task = cards.task("fashion-few-labels")
    with pytest.raises(KdzooError, match=r"student = cnn-s and cnn-m.*--set student=VALUE"):
        plan_task(["dkd", "rkd"], task, Request("", seeds=1), {})
    plan = plan_task(["dkd", "rkd"], task, Request("", seeds=1), {"student": "cnn-s"})
    assert plan.settings["rkd"]["student"] == "cnn-s"


# --- the plot -------------------------------------------------------------------------------------------------------

MANY = {
    "hinton-kd": 1.0, "dkd": 3.3, "rkd": 4.4, "dist": 2.2, "fitnets": 5.2, "attention-transfer": 6.0,
    "a-method-with-a-name-as-long-as-names-get": 7.5, "b": 7.9, "crd": 8.2,
}  # fmt: skip


def boxes(svg: str) -> list[tuple[str, float, float, float, float]]:
    """(words, left, top, right, bottom) of every text, letters taken as wide as common fonts have them."""
    root = ElementTree.fromstring(svg)
    found = []
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        words, small = text.text or "", text.get("class") == "soft"
        width, height = len(words) * (6.8 if small else 8.2), 12 if small else 14
        x, y = float(text.get("x", 0)), float(text.get("y", 0))
        left = x - width * {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor", "start")]
        found.append((words, left, y - height, left + width, y))
    return found


@pytest.mark.parametrize("difference", [None, 0.5, 2.6, 40.0])
def test_nothing_is_cut_off_or_written_over(difference: float | None) -> None:
    """Would catch long names that leave the drawing and labels on top of each other."""
    svg = critical_svg(MANY, difference, ["a caption that says what was ranked " * 3, "and over what"])
    root = ElementTree.fromstring(svg)
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    found = boxes(svg)
    assert {name for name in MANY if any(words.startswith(f"{name} (") for words, *_ in found)} == set(MANY)
    for words, left, top, right, bottom in found:
        assert left >= 0, words
        assert top >= 0, words
        assert right <= width, words
        assert bottom <= height, words
    for (one, l1, t1, r1, b1), (two, l2, t2, r2, b2) in itertools.combinations(found, 2):
        assert not (l1 < r2 and l2 < r1 and t1 < b2 and t2 < b1), f"{one!r} over {two!r}"


def test_the_plot_is_self_contained_and_safe() -> None:
    """Would catch a name that breaks the markup, a script, a font from elsewhere, a drawing for light pages only."""
    svg = critical_svg({'a<b>&"c': 1.0, "d": 2.0}, 0.4, ["x < y"])
    assert "a&lt;b&gt;&amp;&quot;c" in svg
    assert "prefers-color-scheme: dark" in svg
    assert not re.search(r"<script|@import|url\(|href", svg)
    assert "critical difference 0.40" in svg
    ElementTree.fromstring(svg)
    with pytest.raises(ValueError, match="at least 2"):
        critical_svg({"a": 1.0}, None, [])


def test_bars_do_not_touch() -> None:
    """Would catch two groups that read as one because their bars meet in a line."""
    svg = critical_svg(MANY, 2.6, [])
    spans = [
        (float(m[1]), float(m[2]), float(m[3]))
        for m in re.finditer(r'class="bar" d="M([\d.]+) ([\d.]+)H([\d.]+)"', svg)
    ]
    assert len(spans) == len(groups(MANY, 2.6))
    for (l1, y1, r1), (l2, y2, r2) in itertools.combinations(spans, 2):
        assert y1 != y2 or r1 < l2 or r2 < l1
