"""The paper profiles of the vision plugin, two steps each, on tiny files in the layouts of the real data."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdzoo import catalog
from kdzoo.artefacts import Store
from kdzoo.bench import make_record
from kdzoo.errors import KdzooError
from kdzoo.execute import execute
from kdzoo.fit import learning_rate
from kdzoo.plan import Plan, Request, make_plan
from kdzoo.records import Record
from kdzoo.testing.subject import Use, plugin_uses
from kdzoo.workers import Options, run_all
from kdzoo_vision import models, retrieval
from kdzoo_vision.data.datasets import DATASETS
from kdzoo_vision.paper_tasks import decoders

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not
import tiny_layouts

TINY: dict[str, Any] = {
    "steps": 2,
    "teacher_steps": 2,
    "component_steps": 2,
    "component_batch": 6,
    "batch": 6,
    "per_class": 2,
    "student": "cnn-xs",
    "teacher": "cnn-xs",
    "embedding_dim": 4,
    "teacher_dim": 8,
    "image_size": 32,
    "pretrained": "false",
    "teacher_pretrained": "false",
    "decoders": 1,
    "label_dim": 16,
    "label_hidden": 16,
    "teacher_label_dim": 16,
    "teacher_label_hidden": 16,
    "cnn": "cnn-xs",
    "vit": "vit-xs",
    "patch": 8,
    "small_size": 16,
    "small_crops": 2,
    "outputs": 24,
    "head_hidden": 12,
    "head_bottleneck": 8,
    "thead_heads": 2,
    "warmup": 0,
}
"""What makes any paper task small; each task takes the settings that it has."""

STUDENTS = {"cskd": "deit-xxs"}
"""Methods that need a student of another kind than a small convolution net."""


def paper_tasks() -> list[str]:
    cards = catalog.load()
    return [slug for slug, card in cards.tasks.items() if card.plugin == "vision" and card.profile == "paper"]


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny copy of every data set; Recall@8 needs nine test images."""
    root = tmp_path_factory.mktemp("paper-data")
    tiny_layouts.write_cub(root)
    tiny_layouts.write_cars(root, test=(99, 100, 101))
    tiny_layouts.write_sop(root, test=(11_319, 11_320, 11_321))
    tiny_layouts.write_cifar100(root)
    tiny_layouts.write_imagenet(root)
    tiny_layouts.write_tiny_imagenet(root)
    tiny_layouts.write_coco(root)
    tiny_layouts.write_voc(root)
    return root


def plan_of(use: Use, root: Path | None, changes: dict[str, Any] | None = None, **request: Any) -> Plan:
    """A plan with one seed: the tiny settings, changed; a change to None leaves the card's own value."""
    method, task = use
    cards = catalog.load()
    known = cards.task(task).params | cards.method(method).params
    values = {name: value for name, value in TINY.items() if name in known}
    values |= ({"student": STUDENTS[method]} if method in STUDENTS else {}) | (changes or {})
    settings = tuple(f"{name}={value}" for name, value in values.items() if value is not None)
    where = None if root is None else str(root)
    asked = {"arms": method, "seeds": 1, **request}
    return make_plan(
        Request(method=method, task=task, profile="paper", set=settings, data_root=where, **asked)
    )


def run(plan: Plan, folder: Path) -> tuple[Record, dict[str, dict[str, Any]]]:
    made = run_all(plan.specs, Options(folder, jobs=0), lambda *_: None)
    return make_record(plan, made, Store(folder), "kdzoo bench", {}), made


def check(record: Record, steps: int = 2) -> None:
    """Every arm is done, fair and finite."""
    assert not record.failures, [failure["error"] for failure in record.failures]
    for row in record.runs:
        assert row.status == "done", row.warnings
        assert row.metrics
        assert all(
            metric["value"] is None or math.isfinite(metric["value"]) for metric in row.metrics.values()
        )
        assert all(math.isfinite(value) for points in row.losses.values() for _, value in points)
        assert row.steps == (0 if row.arm == "teacher" else steps)


@pytest.mark.parametrize("use", plugin_uses("vision", "paper"), ids="-".join)
def test_two_steps_and_a_record(tmp_path: Path, data_root: Path, use: Use) -> None:
    """A paper profile that has never run fails on the user's GPUs, after hours of reading data."""
    plan = plan_of(use, data_root)
    record, _ = run(plan, tmp_path)
    check(record)
    assert {row.arm for row in record.runs} == {"student", use[0]} | (
        {"teacher"} if plan.task.teacher else set()
    )
    assert record.id["profile"] == "paper"
    primary = next(name for name, metric in plan.task.metrics.items() if metric.primary)
    reported = {name.removeprefix("test/") for name in record.runs[-1].metrics if name.startswith("test/")}
    assert primary in reported
    assert set(plan.task.metrics) <= reported
    assert len(next(row for row in record.runs if row.arm == use[0]).losses) >= 1


@pytest.mark.parametrize("task", paper_tasks())
def test_a_wrong_folder_is_one_clear_message(tmp_path: Path, task: str) -> None:
    """An empty folder fails while planning, before any model is built, with what was found and expected."""
    method = next(method for method, name in plugin_uses("vision", "paper") if name == task)
    with pytest.raises(KdzooError) as caught:
        plan_of((method, task), tmp_path)
    info = DATASETS[next(iter(catalog.load().task(task).data))]
    for part in (str(tmp_path), "it is empty", info.layout.splitlines()[0], info.home, info.terms):
        assert part in str(caught.value)


@pytest.mark.parametrize("task", paper_tasks())
def test_the_card_tells_the_readers_layout(task: str) -> None:
    """`kdzoo show` must print the layout that the reader reads, not an older one."""
    card = catalog.load().task(task)
    for name, source in card.data.items():
        assert source.text == DATASETS[name].layout
        assert source.licence == DATASETS[name].terms
        assert DATASETS[name].home in source.source


@pytest.mark.parametrize(
    ("task", "epochs", "rates"),
    [
        ("cifar100", 240, {0: 0.05, 149.9: 0.05, 150.1: 0.005, 180.1: 5e-4, 210.1: 5e-5}),
        ("tiny-imagenet", 300, {59.9: 0.1, 60.1: 0.02, 159.9: 0.004, 160.1: 8e-4, 250.1: 3.2e-5}),
        ("imagenet", 100, {29.9: 0.1, 30.1: 0.01, 60.1: 1e-3, 90.1: 1e-4}),
    ],
)
def test_schedules_are_the_papers(task: str, epochs: int, rates: dict[float, float]) -> None:
    """A milestone at the wrong epoch, or a budget of another length, is another recipe."""
    card = catalog.load().task(task)
    values = {name: param.default for name, param in card.params.items()}
    assert values["steps"] == round(epochs * card.sizes["train"] / values["batch"])
    for epoch, rate in rates.items():
        step = int(epoch / epochs * values["steps"])
        assert learning_rate(values, step, values["steps"]) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("task", "steps", "iterations", "drops"),
    [("cub200-retrieval", 8_000, 100, (40, 60)), ("sop-retrieval", 60_000, 500, (40, 80))],
)
def test_retrieval_schedules_are_the_papers(
    task: str, steps: int, iterations: int, drops: tuple[int, int]
) -> None:
    """The rate drops at these epochs of so many iterations, and not one step earlier."""
    card = catalog.load().task(task)
    values = {name: param.default for name, param in card.params.items()}
    assert values["steps"] == steps
    rates = [
        learning_rate(values, step, steps) for e in drops for step in (e * iterations - 1, e * iterations)
    ]
    assert rates == pytest.approx([1e-4, 1e-5, 1e-5, 1e-6])


def test_the_teacher_trains_with_its_own_schedule_and_the_users_steps(data_root: Path) -> None:
    """The teacher's stage must not take the student's rate, and --set teacher_steps must reach it."""
    plan = plan_of(("rkd", "cub200-retrieval"), data_root, {"steps": 5, "teacher_steps": 3})
    teacher = next(spec for spec in plan.specs.values() if spec.stage.name == "teacher")
    student = next(spec for spec in plan.specs.values() if spec.arm == "student" and spec.stage.name == "fit")
    assert (teacher.settings["steps"], student.settings["steps"]) == (3, 5)
    assert (teacher.settings["lr"], student.settings["lr"]) == (1e-5, 1e-4)
    assert (teacher.settings["milestones"], teacher.settings["decay"]) == ([0.625, 0.75, 0.875], 0.5)


def test_a_bench_with_its_papers_pair_gives_it_to_all_arms(data_root: Path) -> None:
    """rkd's VGG-11 against a student of another size would be no comparison; --set still wins."""
    own = dict.fromkeys(("student", "teacher", "steps", "teacher_steps", "batch"))
    plan = plan_of(("rkd", "cifar100"), data_root, own, arms="default")
    assert {"student", "hinton-kd", "rkd"} <= plan.settings.keys()
    for values in plan.settings.values():
        assert (values["student"], values["teacher"]) == ("vgg-11", "resnet-50")
        assert (values["steps"], values["batch"], values["lr"]) == (78_125, 128, 0.1)
    assert (plan.settings["hinton-kd"]["kd_weight"], plan.settings["hinton-kd"]["task_weight"]) == (1.0, 1.0)
    plan = plan_of(("rkd", "cifar100"), data_root, {"student": "cnn-s"}, arms="default")
    assert {values["student"] for values in plan.settings.values()} == {"cnn-s"}
    assert plan_of(("dkd", "cifar100"), data_root, own).settings["student"]["student"] == "resnet-20"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("use", "size"),
    [
        (("rkd", "cub200-retrieval"), 64),
        (("rkd", "cifar100"), 32),
        (("dist", "imagenet"), 64),
        (("dkd", "cifar100"), 32),
    ],
)
def test_the_papers_own_models_train(tmp_path: Path, data_root: Path, use: Use, size: int) -> None:
    """ResNet-50 to ResNet-18, ResNet-50 to VGG-11, ResNet-34 to ResNet-18, ResNet-56 to ResNet-20, one step each."""
    own = dict.fromkeys(("student", "teacher", "embedding_dim", "teacher_dim"))
    small = {"image_size": size, "steps": 1, "teacher_steps": 1, "batch": 4}
    known = catalog.load().task(use[1]).params
    changes = {name: value for name, value in (own | small).items() if name in known}
    record, _ = run(plan_of(use, data_root, changes), tmp_path)
    check(record, steps=1)
    ships = {row.arm: next(iter(row.ships.values()))["params"] for row in record.runs}
    millions = {"cub200-retrieval": (24.6, 11.2), "imagenet": (21.8, 11.7), "cifar100": (23.7, 9.3)}
    expected = (0.86, 0.28) if use[0] == "dkd" else millions[use[1]]
    assert (ships["teacher"] / 1e6, ships["student"] / 1e6) == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
def test_the_whole_default_bench_of_a_retrieval_task(tmp_path: Path, data_root: Path) -> None:
    """Baseline and ablations too; the baseline's hint layer is the fourth stage, which tiny nets do not have."""
    net = "timm:resnet10t"
    plan = plan_of(("rkd", "cub200-retrieval"), data_root, {"student": net, "teacher": net}, arms="default")
    record, _ = run(plan, tmp_path)
    check(record)
    assert {row.arm for row in record.runs} == {
        "teacher", "student", "fitnets", "rkd", "rkd.without-distance", "rkd.without-angle"
    }  # fmt: skip


@pytest.mark.parametrize(
    "use", [("rkd", "cub200-retrieval"), ("dist", "cifar100"), ("fitnets", "imagenet")], ids="-".join
)
def test_bfloat16(tmp_path: Path, data_root: Path, use: Use) -> None:
    """Autocast's half-width activations must go through losses and metrics."""
    plan = plan_of(use, data_root, dtype="bfloat16")
    record, _ = run(plan, tmp_path)
    check(record)
    assert record.env["dtype"] == "bfloat16"


def test_accumulated_micro_batches_are_one_batch(tmp_path: Path, data_root: Path) -> None:
    """Losses normalised per micro-batch would depend on how much memory a GPU has. No batch norm in this net."""
    use = ("hinton-kd", "cifar100")
    weights, steps = [], []
    for accumulate in (1, 2):
        plan = plan_of(
            use, data_root, {"accumulate": accumulate, "student": "vit-xs", "teacher": "vit-xs", "lr": 0.5}
        )
        record, made = run(plan, tmp_path)
        check(record)
        spec = next(s for s in plan.specs.values() if s.arm == "hinton-kd" and s.stage.name == "fit")
        weights.append(load_file(Store(tmp_path).folder(spec.key) / "student.safetensors"))
        steps.append(made[spec.key]["cost"]["steps"])
    assert steps == [2, 2]
    moved = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
    assert moved < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hinton-kd", "fitnets"])
def test_two_ranks_are_one_batch(tmp_path: Path, data_root: Path, method: str) -> None:
    """Under torchrun all ranks make one artefact: that of a single process, in a net without batch norm (a ViT).

    fitnets: a stage that leaves the student's later layers without gradients must not stop the ranks.
    """
    known = catalog.load().task("cifar100").params
    net = "vit-xs" if method == "hinton-kd" else "cnn-xs"
    changes = {name: value for name, value in TINY.items() if name in known} | {
        "student": net,
        "teacher": net,
    }
    bench = [
        "bench",
        method,
        "--profile",
        "paper",
        "--data-root",
        str(data_root),
        "--arms",
        method,
        "--seeds",
        "1",
    ]
    bench += [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = ["--no-python", sys.executable, "-c", "from kdzoo.cli import main; main()"]
    home = tmp_path / "two"
    done = subprocess.run(
        [*launch, *program, *bench, "--device", "cpu"],
        env=os.environ | {"KDZOO_HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not [*home.rglob("*.part"), *home.rglob("*.lock")]
    assert len(list(home.rglob("record.json"))) == 1
    fit = {m["method"]: m for m in _manifests(home) if m["name"] == "fit"}[method]
    assert fit["cost"]["examples"] == 12
    shared = load_file(home / "artefacts" / fit["key"] / "student.safetensors")
    assert all(torch.isfinite(weights).all() for weights in shared.values())
    if method == "hinton-kd":
        run(plan_of((method, "cifar100"), data_root, {"student": net, "teacher": net}), tmp_path / "one")
        fit = {m["method"]: m for m in _manifests(tmp_path / "one") if m["name"] == "fit"}[method]
        alone = load_file(tmp_path / "one" / "artefacts" / fit["key"] / "student.safetensors")
        assert max(float((shared[name] - alone[name]).abs().max()) for name in alone) < 2e-6


def _manifests(home: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in home.rglob("artefact.json")]


@pytest.mark.parametrize("method", ["rkd", "dist"])
def test_ranks_are_refused_where_they_change_the_loss(
    data_root: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relations within a rank's share of the batch are another loss."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(KdzooError, match="each process would see only its share"):
        plan_of((method, "cifar100"), data_root)


@pytest.mark.parametrize("method", ["rkd", "dist"])
def test_accumulation_is_refused_where_it_changes_the_loss(data_root: Path, method: str) -> None:
    """A mean of relations over micro-batches is another loss, in silence."""
    with pytest.raises(KdzooError, match="couples the samples of a batch"):
        plan_of((method, "cifar100"), data_root, {"accumulate": 2})


def test_validation_images_are_kept_only_on_request(tmp_path: Path, data_root: Path) -> None:
    """The papers train on all images; choices need images that are neither trained on nor tested."""
    use = ("hinton-kd", "cifar100")
    whole, _ = run(plan_of(use, data_root), tmp_path / "whole")
    assert all("val/accuracy" not in row.curves for row in whole.runs)
    kept, _ = run(plan_of(use, data_root, {"val_share": 0.25, "eval_every": 1}), tmp_path / "kept")
    curve = next(row for row in kept.runs if row.arm == "hinton-kd").curves["val/accuracy"]
    assert [step for step, _ in curve] == [1, 2]
    assert whole.data["hashes"] != kept.data["hashes"]


def test_pretrained_weights_are_asked_for_only_where_they_stay(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose trained weights are loaded next needs no download; one that starts training does."""
    asked: list[tuple[str, bool]] = []

    def spy(name: str, *, pretrained: bool, **rest: Any) -> Any:
        asked.append((name, pretrained))
        return models.build(name, pretrained=False, **rest)

    monkeypatch.setattr(retrieval, "build", spy)
    plan = plan_of(("rkd", "cub200-retrieval"), data_root, {"pretrained": "true", "teacher": "cnn-s"})
    store = Store(tmp_path)
    for stage, arm, expected in [
        ("teacher", "teacher", {("cnn-s", True)}),
        ("fit", "rkd", {("cnn-xs", True), ("cnn-s", False)}),
        ("evaluate", "rkd", {("cnn-xs", False), ("cnn-s", False)}),
    ]:
        spec = next(s for s in plan.specs.values() if s.stage.name == stage and s.arm == arm)
        asked.clear()
        execute(spec, store)
        assert set(asked) == expected, stage


def test_a_random_teacher_is_refused(tmp_path: Path, data_root: Path) -> None:
    """ImageNet's teacher takes no step: without pretrained weights it would teach noise."""
    plan = plan_of(("hinton-kd", "imagenet"), data_root, {"teacher_steps": 0})
    record, _ = run(plan, tmp_path)
    assert any("teach random numbers" in failure["error"] for failure in record.failures)


def test_nearest_in_chunks_is_nearest() -> None:
    """The chunked search must give the neighbours of the plain one, in every chunk."""
    points = torch.randn(23, 5, generator=torch.Generator().manual_seed(3)) + 100
    expected = []
    for i, one in enumerate(points.double()):
        distances = [
            math.inf if k == i else float((one - other).norm()) for k, other in enumerate(points.double())
        ]
        expected.append(distances.index(min(distances)))
    for chunk in (1, 7, 64):
        assert retrieval.nearest(points, chunk=chunk).tolist() == expected


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight ranks with all cores each would fight for them."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert decoders(0) == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert decoders(0) == 2
    assert decoders(5) == 5
