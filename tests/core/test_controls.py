"""Controls: what they put in the teacher's place, when a method has none, and numbers that are settled once."""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs

from kdzoo import catalog, controls, permuted, plugins
from kdzoo.arms import Arm, arms_of, roles_of, stages_of
from kdzoo.artefacts import Store
from kdzoo.controls import LONGER, SMOOTHING, controls_of, smoothed_entropy, smoothing_of
from kdzoo.errors import KdzooError
from kdzoo.fit import StepModule
from kdzoo.method import Output
from kdzoo.plan import Plan, Request, make_plan
from kdzoo.records import RunRow
from kdzoo.roles import build
from kdzoo.runs import Run
from kdzoo.testing import toy

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extensions as core's pyproject.toml names them, whatever the installed metadata say."""
    project = tomllib.loads((ROOT / "core/pyproject.toml").read_text())["project"]
    entries = {
        name: metadata.EntryPoint(name, target, plugins.EXTENSION_GROUP)
        for name, target in project["entry-points"][plugins.EXTENSION_GROUP].items()
    }
    monkeypatch.setattr(plugins, "extensions", lambda: entries)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- permuted: who gets whose answer --------------------------------------------------------------------------------


def test_the_extension_is_registered_and_whole(shipped: None) -> None:
    """Would catch a control that --controls names and nobody can load."""
    assert plugins.extension_versions(["permuted"])[0].startswith("permuted==")


@pytest.mark.parametrize("rows", [2, 3, 17, 128])
def test_nobody_keeps_the_own_answer(rows: int) -> None:
    """Would catch a permutation with fixed points: those rows would still be taught."""
    ids = [f"train/{row}" for row in range(rows)]
    for seed in range(20):
        source = permuted.deal(ids, generator(seed))
        assert source.sort().values.tolist() == list(range(rows))
        assert not (source == torch.arange(rows)).any()


def test_a_sample_that_is_there_twice_gets_neither_of_its_answers() -> None:
    """Would catch a row that is taught by another view of the same sample (a pool that holds the labelled images)."""
    ids = ["a", "b", "a", "c", "d", "e", "b", "a", "f", "g", "h"]
    for seed in range(200):
        source = permuted.deal(ids, generator(seed)).tolist()
        assert sorted(source) == list(range(len(ids)))
        assert all(ids[row] != ids[other] for row, other in enumerate(source))


def test_every_other_row_is_as_likely() -> None:
    """Would catch answers that come from a neighbour: rows of a batch are grouped by class on some tasks."""
    counts = torch.zeros(5, 5)
    for seed in range(2000):
        counts[torch.arange(5), permuted.deal(list("abcde"), generator(seed))] += 1
    apart = counts[~torch.eye(5, dtype=torch.bool)] / 2000 - 0.25
    assert apart.abs().max() < 0.045  # 4.6 standard deviations of a share of 1/4 among 2,000


@pytest.mark.parametrize("ids", [[], ["a"], ["a", "a"], ["a", "a", "b"]])
def test_a_batch_without_another_sample_is_refused(ids: list[str]) -> None:
    """Would catch a control that quietly hands out true answers because the micro-batch is too small."""
    with pytest.raises(
        KdzooError, match=r"permuted: a micro-batch of .* larger batch or a smaller accumulate"
    ):
        permuted.deal(ids, generator())


def test_everything_a_sample_has_is_dealt_together() -> None:
    """Would catch logits of one sample beside the features, mask or text of another."""
    column = torch.arange(4.0)
    output = Output(
        logits=column[:, None],
        features={"stage1": column.view(4, 1, 1, 1).expand(4, 2, 3, 3)},
        embedding=column[:, None] * 2,
        tokens=["0", "1", "2", "3"],
        mask=column[:, None] > 1,
        extra={
            "score": column,
            "boxes": (0, 1, 2, 3),
            "temperature": 2.0,
            "table": torch.zeros(7),
            "one": torch.ones(()),
        },
    )
    source = torch.tensor([2, 3, 1, 0])
    got = permuted.dealt(output, source)
    assert got.logits is not None
    assert got.embedding is not None
    assert got.mask is not None
    assert got.logits[:, 0].tolist() == source.tolist()
    assert torch.equal(got.features["stage1"], output.features["stage1"][source])
    assert got.embedding[:, 0].tolist() == [2.0 * row for row in source.tolist()]
    assert got.tokens == ["2", "3", "1", "0"]
    assert got.mask[:, 0].tolist() == [True, True, False, False]
    assert got.extra["score"].tolist() == source.tolist()
    assert got.extra["boxes"] == (2, 3, 1, 0)
    assert got.extra["temperature"] == 2.0
    assert got.extra["table"] is output.extra["table"]


@pytest.mark.parametrize(
    "output",
    [
        Output(logits=torch.zeros(6, 3)),
        Output(logits=torch.zeros(3, 3), features={"tokens": torch.zeros(12, 5)}),
        Output(embedding=torch.zeros(())),
        Output(tokens=5),
    ],
)
def test_parts_that_belong_to_no_row_are_refused(output: Output) -> None:
    """Would catch a packed layout (several rows a sample) that is shuffled as if it were one row a sample."""
    with pytest.raises(KdzooError, match=r"expected one for each of the 3 samples .*control of its own"):
        permuted.dealt(output, torch.tensor([1, 2, 0]))


def opened(tmp_path: Path, **changes: Any) -> Run:
    """A toy run with labelled and unlabelled rows and the extension."""
    run = toy.run(tmp_path, add=[permuted], streams=("train", "pool"), **changes)
    build(run)
    return run


def test_unlabelled_augmented_rows_are_permuted_too(tmp_path: Path) -> None:
    """Would catch a control that leaves the pool alone, or asks the teacher about views that nobody trains on."""
    run = opened(tmp_path)
    batch = next(iter(run.loader()))
    run.enter(batch)
    got, again = run.signal("teacher", "noisy").logits, run.signal("teacher", "image").logits
    with torch.no_grad():
        live = {view: run.models["teacher"](batch.views[view]).logits for view in ("noisy", "image")}
    source = permuted.deal(batch.ids, run.rng("permuted"))
    assert got is not None
    assert again is not None
    assert torch.equal(got, live["noisy"][source])
    assert torch.equal(again, live["image"][source])  # all views of a micro-batch alike
    pool = torch.tensor([name.startswith("pool") for name in batch.ids])
    assert int(pool.sum()) == 8
    assert not torch.isclose(got, live["noisy"]).all(dim=1).any()


def test_each_step_deals_anew_and_each_seed_otherwise(tmp_path: Path) -> None:
    """Would catch one permutation for ever, and one for all seeds."""
    dealt = []
    for seed in (0, 0, 1):
        run = opened(tmp_path / str(len(dealt)), seed=seed)
        steps = []
        for step, batch in zip(range(2), run.loader(), strict=False):
            run.step = step
            run.enter(batch)
            steps.append(permuted.deal([str(row) for row in range(16)], run.rng("permuted")).tolist())
        dealt.append(steps)
    assert dealt[0] == dealt[1]
    assert dealt[0][0] != dealt[0][1]
    assert dealt[0] != dealt[2]


def test_measuring_is_left_alone(tmp_path: Path) -> None:
    """Would catch a control that permutes validation or test answers."""
    run = opened(tmp_path)
    batch = next(iter(run.loader()))
    with run.validating():
        run.enter(batch)
        got = run.signal("teacher", "noisy").logits
        assert torch.equal(got, run.models["teacher"](batch.views["noisy"]).logits)
    assert not run.evaluating


def test_an_arm_that_permutes_draws_nothing_else(tmp_path: Path) -> None:
    """Would catch a control with another start or other dropout than the method's."""
    runs = [opened(tmp_path / "a"), toy.run(tmp_path / "b", streams=("train", "pool"))]
    build(runs[1])
    outputs = []
    for run in runs:
        batch = next(iter(run.loader()))
        StepModule(run)(batch)
        outputs.append((batch.ids, run.out("student").logits))
    assert outputs[0][0] == outputs[1][0]
    assert torch.equal(outputs[0][1], outputs[1][1])  # type: ignore[arg-type]


# --- smoothing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_the_smoothing_has_the_entropy(classes: int) -> None:
    """Would catch a smoothing that is only near: the control would be another regulariser than the teacher's."""
    for share in (0.0, 1e-4, 0.1, 0.37, 0.9, 0.999, 1.0):
        entropy = share * math.log(classes)
        smoothing = smoothing_of(entropy, classes)
        assert 0 <= smoothing <= 1
        label = torch.full((classes,), smoothing / classes, dtype=torch.float64)
        label[0] += 1 - smoothing
        assert -torch.special.xlogy(label, label).sum().item() == pytest.approx(entropy, abs=1e-6)


def test_smoothing_by_hand() -> None:
    """Two classes at e = 0.5: 3/4 and 1/4, H = 2 ln 2 - 3/4 ln 3."""
    by_hand = 2 * math.log(2) - 0.75 * math.log(3)
    assert smoothed_entropy(0.5, 2) == pytest.approx(by_hand, abs=1e-12)
    assert smoothing_of(by_hand, 2) == pytest.approx(0.5, abs=1e-9)
    assert smoothed_entropy(0.0, 7) == 0
    assert smoothed_entropy(1.0, 7) == pytest.approx(math.log(7))


@pytest.mark.parametrize(("entropy", "classes"), [(-0.1, 10), (2.4, 10), (math.nan, 10), (0.0, 1)])
def test_an_entropy_that_cannot_be_is_refused(entropy: float, classes: int) -> None:
    """Would catch a teacher of NaN logits that ends as a quiet smoothing of 0 or 1."""
    with pytest.raises(KdzooError, match=r"expected 0 to .* at least 2 classes"):
        smoothing_of(entropy, classes)


# --- which controls there are ---------------------------------------------------------------------------------------


def pair(method: str = "hinton-kd", task: str = "fashion-few-labels") -> tuple[Any, Any]:
    cards = catalog.load()
    return cards.method(method), cards.task(task)


def test_the_four_controls() -> None:
    """Would catch one that is missing, not marked, or part of the plain bench."""
    card, task = pair()
    found, left_out = controls_of(card, task)
    assert list(found) == ["hinton-kd.permuted", "hinton-kd.random-teacher", LONGER, SMOOTHING]
    assert not left_out
    assert all(arm.control and not arm.default for arm in found.values())
    assert found[LONGER].differs == ("steps", "order")
    assert not set(found) & set(arms_of(catalog.load(), card, task))


def test_what_cannot_be_controlled_is_said() -> None:
    """Would catch a control that is silently absent, or one that controls nothing."""
    card, task = pair()
    found, left_out = controls_of(structs.replace(card, teacher=["none"], roles={}), task)
    assert list(found) == [LONGER, SMOOTHING]
    assert left_out["hinton-kd.permuted"] == (
        "hinton-kd pulls no teacher signal, and its card names no control of its own"
    )
    assert left_out["hinton-kd.random-teacher"].startswith("hinton-kd has no role that is the task's teacher")
    _, left_out = controls_of(*pair("rkd", "emoji-retrieval"))
    assert list(left_out) == [SMOOTHING]
    assert "emoji-retrieval has no class labels to smooth" in left_out[SMOOTHING]


def test_a_method_without_signals_names_its_own(shipped: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch --controls that forgets what the card marks, and a name that is given twice."""
    cards = catalog.load()
    card = cards.method("rkd")
    own = {"rkd.permuted": structs.replace(card.arms["rkd.darkrank"], control=True, tasks=[])}
    changed = structs.replace(card, teacher=["none"], arms={**card.arms, **own})
    monkeypatch.setitem(cards.methods, "rkd", changed)
    _, left_out = controls_of(changed, cards.task("emoji-retrieval"))
    assert left_out["rkd.permuted"].endswith("its own control: rkd.triplet-width, rkd.permuted")
    plain, whole = (make_plan(Request("rkd", controls=asked, seeds=1)) for asked in (False, True))
    assert "rkd.permuted" not in plain.arms
    assert whole.arms["rkd.permuted"].set == own["rkd.permuted"].set


def test_a_random_teacher_has_no_weights_of_its_own() -> None:
    """Would catch a random teacher that gets the shipped weights, or waits for a teacher stage."""
    cards = catalog.load()
    for method, task in (("hinton-kd", "fashion-few-labels"), ("rkd", "emoji-retrieval")):
        card, where = pair(method, task)
        arm = controls_of(card, where)[0][f"{method}.random-teacher"]
        assert {role.name: role.source for role in roles_of(arm, cards, where)}["teacher"] == "random"
        values = {"generations": 2}
        for stage in stages_of(arm, cards, where, values)[:-1]:
            assert not any(role.source == "task" for role in stage.roles or ())
    trained = stages_of(
        Arm("x", "hinton-kd", "", random_teacher=True), cards, cards.task("cifar100"), {"teacher_steps": 5}
    )
    assert {stage.name: stage.needs for stage in trained} == {
        "teacher": (),
        "fit": (),
        "evaluate": ("fit", "teacher"),
    }


# --- planning and settling ------------------------------------------------------------------------------------------


def test_controls_come_only_when_asked_for(shipped: None) -> None:
    """Would catch controls in --arms all: every committed record would lack arms."""
    everything = make_plan(Request("hinton-kd", arms="all", seeds=1))
    assert list(everything.arms) == ["teacher", "student", "hinton-kd"]
    named = make_plan(Request("hinton-kd", arms="all,hinton-kd.permuted", seeds=1))
    assert list(named.arms) == ["teacher", "student", "hinton-kd", "hinton-kd.permuted"]
    asked = make_plan(Request("hinton-kd", controls=True, seeds=1))
    assert list(asked.arms) == [*named.arms, "hinton-kd.random-teacher"]
    assert asked.pending == [LONGER, SMOOTHING]
    for arm in everything.runs:
        assert everything.runs[arm][-1].key == asked.runs[arm][-1].key


def test_the_extension_is_in_the_key_of_its_arm_alone(shipped: None) -> None:
    """Would catch a permuted arm that shares the method's artefact, and a teacher that is trained again for it."""
    plan = make_plan(Request("hinton-kd", controls=True, seeds=1))
    extensions = {
        arm: {e for spec in specs for e in spec.extensions} for (arm, _), specs in plan.runs.items()
    }
    assert [arm for arm, found in extensions.items() if found] == ["hinton-kd.permuted"]
    assert plan.runs[("hinton-kd", 0)][0].key != plan.runs[("hinton-kd.permuted", 0)][0].key
    both = make_plan(Request("hinton-kd", controls=True, seeds=1, extensions=("permuted",)))
    assert len(both.runs[("hinton-kd.permuted", 0)][0].extensions) == 1


def pretended(plan: Plan, student: float, method: float) -> dict[str, dict[str, Any]]:
    """Manifests as if every fit had taken so many seconds; the teacher's entropy is 1 nat."""
    made = {}
    for spec in plan.specs.values():
        seconds = student if spec.method is None else method
        made[spec.key] = {
            "cost": {"seconds": seconds, "steps": int(spec.settings["steps"])},
            "facts": {"entropy": 1.0, "classes": 10, "samples": 500},
        }
    return made


def test_steps_are_settled_once(shipped: None, tmp_path: Path) -> None:
    """Would catch a control whose length follows the weather of the machine: a resumed bench would be another."""
    request = Request("hinton-kd", controls=True, seeds=3)
    store, plan = Store(tmp_path), make_plan(request)
    assert controls.known(plan, store) == {}
    settled = controls.measure(plan, pretended(plan, student=10.0, method=25.0), store)
    assert settled[LONGER]["set"] == {"steps": 2500}
    assert "hinton-kd trained for 25 s, a step of the student took 10 ms" in settled[LONGER]["why"]
    whole = make_plan(request, settled)
    assert whole.pending == []
    assert whole.settings[LONGER]["steps"] == 2500
    assert whole.arms[LONGER].why == settled[LONGER]["why"]
    assert whole.settings["student"]["steps"] == 1000

    slower = pretended(plan, student=10.0, method=90.0)
    assert controls.measure(plan, slower, store)[LONGER] == settled[LONGER]
    more = make_plan(replace(request, seeds=5))
    assert controls.known(more, store)[LONGER] == settled[LONGER]
    other = make_plan(replace(request, set=("batch=16",)))
    assert LONGER not in controls.known(other, store)
    (note,) = (tmp_path / "controls").iterdir()
    note.write_text("{")
    with pytest.raises(KdzooError, match="delete it to settle them anew"):
        controls.known(plan, store)


def test_a_method_that_is_no_slower_buys_nothing(shipped: None, tmp_path: Path) -> None:
    """Would catch a control that is shorter than the student, and one that comes and goes with the timings."""
    request = Request("hinton-kd", controls=True, seeds=1)
    store, plan = Store(tmp_path), make_plan(request)
    settled = controls.measure(plan, pretended(plan, student=10.0, method=9.9), store)
    assert "its time buys no more steps" in settled[LONGER]["left_out"]
    whole = make_plan(request, settled)
    assert LONGER not in whole.arms
    assert LONGER in whole.left_out
    assert controls.known(plan, store)[LONGER] == settled[LONGER]


def test_nothing_is_settled_by_runs_that_failed(shipped: None, tmp_path: Path) -> None:
    """Would catch a count of steps made of half of the runs, written down for ever."""
    plan, store = make_plan(Request("hinton-kd", controls=True, seeds=1)), Store(tmp_path)
    settled = controls.measure(plan, {key: {"error": "x"} for key in plan.specs}, store)
    assert "no finished run of student and hinton-kd" in settled[LONGER]["left_out"]
    assert "could not be measured" in settled[SMOOTHING]["left_out"]
    assert not (tmp_path / "controls").exists()


def test_smoothing_is_settled_at_the_methods_temperature(shipped: None, tmp_path: Path) -> None:
    """Would catch an entropy at another temperature than the one at which the method's teacher speaks."""
    request = Request("hinton-kd", controls=True, seeds=1, set=("temperature=2.5",))
    plan = make_plan(request)
    (question,) = plan.questions.values()
    assert question.settings["temperature"] == 2.5
    assert question.seed is None
    settled = controls.measure(plan, pretended(plan, 1.0, 2.0), Store(tmp_path))
    epsilon = settled[SMOOTHING]["set"]["label_smoothing"]
    assert smoothed_entropy(epsilon, 10) == pytest.approx(1.0, abs=1e-6)
    assert make_plan(request, settled).settings[SMOOTHING]["label_smoothing"] == epsilon
    rkd = make_plan(Request("rkd", task="fashion-few-labels", controls=True, seeds=1))
    assert next(iter(rkd.questions.values())).settings["temperature"] == 4.0


def test_idle_controls_are_called_idle() -> None:
    """Would catch a control of a method that never pulls the signal: equal numbers would look like a finding."""

    def row(arm: str, weights: str) -> RunRow:
        return RunRow(arm=arm, seed=0, status="done", ships={"student": {"sha256": weights}})

    rows = [row("m", "a"), row("m.permuted", "a"), row("m.random-teacher", "b"), row("m.other", "a")]
    controls.warn_of_idle(rows, "m")
    assert [len(one.warnings) for one in rows] == [0, 1, 0, 0]
    assert "control says nothing" in rows[1].warnings[0]


def test_the_note_is_json(shipped: None, tmp_path: Path) -> None:
    """Would catch a file that a person cannot read or correct."""
    plan = make_plan(Request("hinton-kd", controls=True, seeds=1))
    controls.measure(plan, pretended(plan, 1.0, 2.0), Store(tmp_path))
    (note,) = (tmp_path / "controls").glob("student.longer-*.json")
    assert json.loads(note.read_text())["set"] == {"steps": 2000}
