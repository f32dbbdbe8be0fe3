"""Why distillation did not help: every rule by hand numbers, once where it must speak and once where it must not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kdzoo import records
from kdzoo.records import Record, RunRow
from kdzoo.report.diagnosis import Diagnosis, curve, diagnose, diagnose_stage, loss_terms

GOOD = {"teacher": [0.9], "student": [0.50, 0.51, 0.52], "toy-kd": [0.60, 0.61, 0.63]}
NEAR = {"teacher": [1.0], "student": [0.50, 0.51, 0.50], "toy-kd": [0.80, 0.81, 0.82]}


@pytest.fixture(autouse=True)
def installed(plugged: Callable[..., None], write_cards: Callable[..., Path]) -> None:
    """The toy task says that a higher accuracy is better."""
    package = write_cards()
    paths = [str(package / kind) for kind in ("methods", "tasks")]
    plugged(toy=f"from pathlib import Path\n@hookimpl\ndef cards(): return [Path(p) for p in {paths}]")


def record(
    accuracy: Mapping[str, Sequence[float]] = GOOD,
    agreement: Mapping[str, Sequence[float]] = NEAR,
    settings: Mapping[str, Any] | None = None,
    sure: float | None = None,
    **arms: dict[str, Any],
) -> Record:
    rows = []
    for arm, values in accuracy.items():
        for seed, value in enumerate(values):
            metrics = {"test/accuracy": {"value": value, "n": 4}}
            if arm in agreement:
                metrics["test/agreement"] = {"value": agreement[arm][seed], "n": 4}
            bins = (
                {"count": [4], "accuracy": [0.9], "confidence": [sure]} if sure and arm == "teacher" else None
            )
            rows.append(
                RunRow(
                    arm=arm,
                    seed=None if arm == "teacher" else seed,
                    status="done",
                    metrics=metrics,
                    reliability={"teacher": bins} if bins else {},
                )
            )
    plain = {"text": "", "set": {}, "differs": [], "control": False, "baseline": False}
    return Record(
        id={"method": "toy-kd", "task": "toy-task"},
        command="",
        config={"settings": {"toy-kd": dict(settings or {})}},
        config_hash="",
        env={},
        data={},
        arms={
            name: {
                **plain,
                "method": "toy-kd" if "toy-kd" in name else None,
                **arms.get(name.replace("toy-kd.", ""), {}),
            }
            for name in accuracy
        },
        stages={},
        runs=rows,
        comparisons=[],
        claims=[],
        paper=[],
        failures=[],
        made_at="",
    )


def titles(found: Diagnosis) -> list[str]:
    return [f"{one.level}: {one.title}" for one in found.findings]


def test_a_bench_that_worked_is_left_in_peace() -> None:
    """Would catch rules that always find something."""
    found = diagnose(record())
    assert "Distillation helped" in found.summary
    assert titles(found) == []
    assert any("none of the method's size has finished" in text for text in found.unchecked)
    assert any("gradients" in text for text in found.unchecked)


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        ([0.4], "likely: The teacher is no better than the student"),
        ([0.52], "possible: The teacher is hardly better than the student"),
    ],
)
def test_a_teacher_that_knows_nothing(teacher: list[float], expected: str) -> None:
    """Would catch the commonest reason of all going unsaid."""
    assert expected in titles(diagnose(record(GOOD | {"teacher": teacher})))


def test_knowledge_that_does_not_arrive() -> None:
    """Would catch a loss that moves the student nowhere near the teacher."""
    far = NEAR | {"toy-kd": [0.49, 0.52, 0.50]}
    found = diagnose(record(agreement=far))
    assert titles(found) == ["likely: The method did not bring the student closer to the teacher"]
    assert "student alone 0.503, toy-kd 0.503" in found.findings[0].text
    little = NEAR | {"toy-kd": [0.55, 0.56, 0.55]}
    assert titles(diagnose(record(agreement=little))) == ["possible: The student stays far from the teacher"]


def test_closeness_that_does_not_help() -> None:
    """Would catch a student that imitates well and gains nothing."""
    found = diagnose(record(GOOD | {"toy-kd": [0.51, 0.50, 0.53]}))
    assert "possible: Closer to the teacher, yet not better" in titles(found)
    assert "No difference is shown" in found.summary
    worse = diagnose(record(GOOD | {"toy-kd": [0.40, 0.41, 0.42]}))
    assert "Distillation did harm" in worse.summary


def test_without_agreement_nothing_is_said_of_it() -> None:
    """Would catch silence that passes for a clean bill."""
    assert any("no agreement was measured" in text for text in diagnose(record(agreement={})).unchecked)
    alone = {name: values for name, values in GOOD.items() if name != "teacher"}
    assert any("there is no teacher arm" in text for text in diagnose(record(alone)).unchecked)


@pytest.mark.parametrize(
    ("name", "level"), [("permuted", "likely"), ("random-teacher", "likely"), ("longer", "possible")]
)
def test_a_control_that_does_as_well(name: str, level: str) -> None:
    """Would catch a regulariser that is sold as distillation."""
    control = {name: {"control": True, "text": "a control"}}
    same = GOOD | {f"toy-kd.{name}": [0.61, 0.60, 0.63]}
    assert titles(diagnose(record(same, **control))) == [
        f"{level}: The control toy-kd.{name} is as good as the method"
    ]
    worse = GOOD | {f"toy-kd.{name}": [0.50, 0.51, 0.52]}
    assert titles(diagnose(record(worse, **control))) == []
    larger = {name: {"control": True, "text": "a control", "differs": ["size"]}}
    assert titles(diagnose(record(same, **larger))) == []


def test_a_variant_that_does_better() -> None:
    """Would catch a part of the method that is in the way on this task."""
    better = GOOD | {"toy-kd.without-x": [0.70, 0.71, 0.73]}
    found = diagnose(record(better, **{"without-x": {"set": {"x": 0.0}}}))
    assert titles(found) == ["possible: toy-kd.without-x does better than the method itself"]
    assert "x = 0.0" in found.findings[0].text
    assert titles(diagnose(record(better, **{"without-x": {"differs": ["steps"]}}))) == []


def test_too_few_seeds() -> None:
    """Would catch noise that is taken for an answer; the number of seeds is checked against the t interval."""
    found = diagnose(record({"teacher": [0.9], "student": [0.50, 0.50, 0.50], "toy-kd": [0.52, 0.50, 0.54]}))
    (few,) = [one for one in found.findings if one.title == "Too few seeds to tell"]
    # sd 0.02, mean 0.02: t(n - 1) / sqrt(n) < 1 first at n = 7 (2.447 / 2.646)
    assert "vary by 0.020" in few.text
    assert "about 7 seeds" in few.text
    one = diagnose(record({"teacher": [0.9], "student": [0.5], "toy-kd": [0.6]}))
    assert "likely: One seed" in titles(one)


def test_lower_may_be_better(write_cards: Any, plugged: Any) -> None:
    """Would catch a rule that reads every metric as accuracy."""
    package = write_cards(task=('better = "higher"', 'better = "lower"'))
    paths = [str(package / kind) for kind in ("methods", "tasks")]
    plugged(toy=f"from pathlib import Path\n@hookimpl\ndef cards(): return [Path(p) for p in {paths}]")
    found = diagnose(record())
    assert "Distillation did harm" in found.summary
    assert "likely: The teacher is no better than the student" in titles(found)


def test_what_cannot_be_judged(plugged: Any) -> None:
    """Would catch a direction that is guessed, and a crash where nothing has finished."""
    plugged()
    assert "it is unknown which way accuracy is better" in diagnose(record()).summary
    empty = record({"student": [0.5]})
    assert "no finished run" in diagnose(empty).summary


# --- terms, curves, temperature -----------------------------------------------------------------------------------


def row(**losses: Sequence[float]) -> RunRow:
    logged = {
        f"loss/{name}": [(step, value) for step, value in enumerate(values)]
        for name, values in losses.items()
    }
    return RunRow(arm="toy-kd", seed=0, status="done", losses=logged)


def said(rows: list[RunRow]) -> list[str]:
    return [f"{one.level}: {one.title}" for one in loss_terms("toy-kd", rows)]


def test_loss_terms() -> None:
    """Would catch a term that trains nothing; and one that is called small at the start only."""
    falling = [2.0 - 0.1 * step for step in range(15)]
    assert said([row(task=falling, kd=falling)]) == []
    assert said([row(task=falling, kd=[0.0] * 15)]) == ["likely: The loss term kd of toy-kd is 0 throughout"]
    small = [value * 1e-3 for value in falling]
    assert said([row(task=falling, kd=small)]) == ["possible: The loss term kd of toy-kd is out of scale"]
    assert said([row(task=falling, kd=[1.0] * 15)]) == ["possible: The loss term kd of toy-kd did not move"]
    late = [1e-4] * 7 + [1.0 - 0.05 * step for step in range(8)]
    assert said([row(task=falling, kd=late)]) == []
    assert said([row()]) == []


def curves(values: Sequence[float], sign: float = 1.0) -> list[str]:
    points = {"val/accuracy": [((step + 1) * 100, value) for step, value in enumerate(values)]}
    rows = [RunRow(arm="toy-kd", seed=0, status="done", curves=points)]
    return [one.title for one in curve("toy-kd", rows, "val/accuracy", sign)]


def test_curves() -> None:
    """Would catch training that was stopped too early or too late."""
    assert curves([0.1, 0.5, 0.6, 0.61, 0.615, 0.62, 0.62, 0.62]) == []
    assert curves([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9]) == [
        "toy-kd was still getting better when training ended"
    ]
    assert curves([0.1, 0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]) == ["toy-kd was better before training ended"]
    assert curves([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.1], -1.0) == [
        "toy-kd was still getting better when training ended"
    ]
    assert curves([0.5, 0.5, 0.5, 0.5]) == []
    assert curves([0.1, 0.9]) == []


def test_temperatures() -> None:
    """Would catch soft labels that are hard ones, or nothing."""
    hot = diagnose(record(settings={"temperature": 40.0}, sure=0.9))
    assert titles(hot) == ["possible: The temperature is so high that all classes look alike"]
    cold = diagnose(record(settings={"temperature": 1.0}, sure=0.99))
    assert titles(cold) == ["possible: The teacher is too sure for this temperature"]
    assert titles(diagnose(record(settings={"temperature": 1.0}, sure=0.9))) == []
    assert titles(diagnose(record(settings={"temperature": 4.0}, sure=0.99))) == []
    unknown = diagnose(record(settings={"temperature": 1.0}))
    assert any("confidences are not stored" in text for text in unknown.unchecked)


# --- the command --------------------------------------------------------------------------------------------------


def test_a_stage_alone() -> None:
    """Would catch a comparison that one run cannot make."""
    manifest = {"name": "fit", "seed": 0, "logs": {"loss/kd": [[0, 0.0], [1, 0.0]]}}
    found = diagnose_stage(manifest)
    assert titles(found) == ["likely: The loss term kd of fit is 0 throughout"]
    assert "trained nothing" in diagnose_stage({"name": "evaluate", "seed": 0, "logs": {}}).summary


def test_the_command(home: Path, kdzoo: Callable[..., Any]) -> None:
    """Would catch findings that are lost between the rules and the terminal."""
    path = home / "benches" / "toy-kd-toy-task-1" / "record.json"
    made = record(GOOD | {"teacher": [0.4]})
    made.id |= {"smoke": False}
    records.write(made, path)
    done = kdzoo("diagnose", "toy-kd")
    assert done.code == 0
    assert "✗ likely: The teacher is no better than the student" in done.out
    assert "Not looked at:" in done.out
    found = json.loads(kdzoo("diagnose", str(path), "--json").out)
    assert found["findings"][0]["level"] == "likely"
