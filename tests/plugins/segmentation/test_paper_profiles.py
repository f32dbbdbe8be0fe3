"""The paper profiles of the segmentation plugin, two steps each, on tiny files in the layouts of the real data."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kdzoo import catalog
from kdzoo.artefacts import Store
from kdzoo.bench import make_record
from kdzoo.device import open_device
from kdzoo.errors import KdzooError
from kdzoo.fit import learning_rate
from kdzoo.method import Batch, Output
from kdzoo.plan import Plan, Request, make_plan
from kdzoo.records import Record
from kdzoo.testing.subject import Use, plugin_uses
from kdzoo.workers import Options, run_all
from kdzoo_segmentation import models, multihead, paper_tasks, segmentation
from kdzoo_segmentation.data.photo_sets import PHOTO_SETS
from kdzoo_segmentation.measures import IGNORE

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not
import tiny_photo_sets

TINY: dict[str, Any] = {
    "steps": 2,
    "batch": 2,
    "pool_batch": 2,
    "labelled": 0.5,
    "student": "fcn-r18-xs",
    "teacher": "fcn-r18-xs",
    "scale": "48,40",
    "crop": "32,32",
    "warmup": 0,
    "decoders": 1,
}
"""What makes any paper task small; each task takes the settings that it has."""

PAIRS: dict[str, dict[str, Any]] = {
    "barm": {"student": "deeplabv3-r18-xxs", "class_groups": "1-19", "steps": 1, "increment_steps": 1},
    "mgd-semi": {"wide": "fcn-r18-xs", "deep": "fcn-r18-xxs"},
    "transkd": {"student": "segformer-xs", "teacher": "segformer-s", "scale": "64,32"},
}
"""Methods that need a pair of another kind than two small FCNs, or smaller settings of their own."""


def paper_tasks_of() -> list[str]:
    cards = catalog.load()
    return [
        slug
        for slug, card in cards.tasks.items()
        if card.plugin == "segmentation" and card.profile == "paper"
    ]


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny copy of every data set."""
    root = tmp_path_factory.mktemp("paper-photos")
    for write in tiny_photo_sets.WRITERS.values():
        write(root)
    return root


def plan_of(use: Use, root: Path | None, changes: dict[str, Any] | None = None, **request: Any) -> Plan:
    """A plan with one seed: the tiny settings, changed; a change to None leaves the card's own value."""
    method, task = use
    cards = catalog.load()
    known = cards.task(task).params | cards.method(method).params
    values = {name: value for name, value in TINY.items() if name in known}
    # Trainings of a method's own, such as those of its teachers.
    values |= {name: 2 for name in known if name.endswith("_steps")}
    values |= PAIRS.get(method, {}) | (changes or {})
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


def first_uses() -> list[Use]:
    """Every method on its default task, and the plain baseline on every task: what differs between tasks is data."""
    cards = catalog.load()
    return [
        (method, task)
        for method, task in plugin_uses("segmentation", "paper")
        if method == "pixel-kd" or cards.method(method).tasks[task].default
    ]


@pytest.mark.parametrize("use", first_uses(), ids="-".join)
def test_two_steps_and_a_record(tmp_path: Path, data_root: Path, use: Use) -> None:
    """A paper profile that has never run fails on the user's GPUs, after hours of reading data."""
    plan = plan_of(use, data_root)
    record, _ = run(plan, tmp_path)
    check(record)
    assert {"student", use[0]} <= {row.arm for row in record.runs}
    assert record.id["profile"] == "paper"
    reported = {name.removeprefix("test/") for name in record.runs[-1].metrics if name.startswith("test/")}
    for name, metric in plan.task.metrics.items():
        assert name in reported or {f"{name}[{subset}]" for subset in metric.subsets} <= reported


@pytest.mark.parametrize("task", paper_tasks_of())
def test_a_wrong_folder_is_one_clear_message(tmp_path: Path, task: str) -> None:
    """An empty folder fails while planning, before any model is built, with what was found and expected."""
    use = next(use for use in plugin_uses("segmentation", "paper") if use[1] == task)
    with pytest.raises(KdzooError) as caught:
        plan_of(use, tmp_path)
    info = PHOTO_SETS[next(iter(catalog.load().task(task).data))]
    for part in (str(tmp_path), "it is empty", info.layout.splitlines()[0], info.home, info.terms):
        assert part in str(caught.value)


@pytest.mark.parametrize("task", paper_tasks_of())
def test_the_card_tells_what_the_reader_reads(task: str) -> None:
    """`kdzoo show` must print the reader's layout, not an older one; and count the classes that are scored."""
    card = catalog.load().task(task)
    for name, source in card.data.items():
        assert source.text == PHOTO_SETS[name].layout
        assert source.licence == PHOTO_SETS[name].terms
        assert PHOTO_SETS[name].home in source.source
    classes = catalog.load().module(task).METAINFO["classes"]
    assert len(classes) == card.sizes["classes"]
    if "iou" in card.metrics:
        assert set(card.metrics["iou"].subsets) == set(classes)


@pytest.mark.parametrize(
    ("task", "rates"),
    [
        ("cityscapes", {0: 0.01, 40_000: 1e-4 + 0.0099 * 0.5**0.9, 80_000: 1e-4}),
        ("pascal-context", {0: 0.004, 80_000: 1e-4}),
        ("deepglobe-land", {0: 6e-5 / 400, 400: 6e-5, 20_200: 3e-5, 40_000: 0.0}),
        # 1,500 epochs to nought, of which 1,000 are run
        ("acdc", {0: 6e-5, 400_000: 6e-5 * (1 - 500 / 1500), 800_000: 6e-5 * (1 - 1000 / 1500)}),
    ],
)
def test_schedules_are_the_papers(task: str, rates: dict[int, float]) -> None:
    """Another power or floor is another recipe."""
    values = {name: param.default for name, param in catalog.load().task(task).params.items()}
    for step, rate in rates.items():
        assert learning_rate(values, step, values["steps"]) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize(
    ("task", "role", "millions"),
    [
        ("cityscapes", "student", 12.8),
        ("cityscapes", "teacher", 68.0),
        ("acdc", "student", 3.7),
        ("deepglobe-land", "student", 12.5),
    ],
)
def test_the_papers_own_models_are_the_papers(task: str, role: str, millions: float) -> None:
    """A pair of another size than the papers' would be no reproduction."""
    card = catalog.load().task(task)
    name, classes = str(card.params[role].default), card.sizes["classes"]
    with torch.device("cpu" if name.startswith("segformer") else "meta"):
        net = models.build(name, classes=classes, initialise=False)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_the_papers_own_models_can_be_built() -> None:
    """The trainings of these tests take small nets; a name that only a paper's setting has would fail on a GPU."""
    cards, named = catalog.load(), set()
    for method, task in plugin_uses("segmentation", "paper"):
        params = cards.task(task).params | cards.method(method).params
        values = {name: param.default for name, param in params.items()} | cards.method(method).tasks[
            task
        ].set
        named |= {
            values[name] for name in ("student", "teacher", "wide", "deep", "tutor_net") if name in values
        }
    for name in named - {""} - set(multihead.SPECS):
        assert models.side(str(name), 5, 3, 64, 64).classes == 5


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("table", ["none", "enet"])
def test_the_loss_is_torchs(stride: int, table: str) -> None:
    """Labels at a stride are held against the head's scores; the weighted mean is divided by the labels' weights."""
    torch.manual_seed(0)
    score, labels = torch.randn(2, 19, 5, 7), torch.randint(0, 19, (2, 20 // stride, 28 // stride))
    labels[0, 0] = IGNORE
    output = Output(
        logits=F.interpolate(score, (20, 28), mode="bilinear", align_corners=False), features={"score": score}
    )
    run = SimpleNamespace(cfg={"label_stride": stride, "class_weights": table}, out=lambda role: output)
    weight = torch.tensor(paper_tasks.CLASS_WEIGHTS[table]) if table != "none" else None
    counts = {"pixel": int((labels != IGNORE).sum())}
    if weight is not None:
        counts["weight"] = float(weight[labels[labels != IGNORE]].sum())
    batch = Batch(ids=["a", "b"], views={}, labels=labels, counts=counts)
    (term,) = paper_tasks.loss_terms(run, batch).values()
    mine = term.total * term.weight / counts[term.per]
    expected = F.cross_entropy(score if stride == 4 else output.logits, labels, weight, ignore_index=IGNORE)
    assert mine == pytest.approx(float(expected), rel=1e-5)


def test_scores_in_evaluation_are_the_labels_size() -> None:
    """Scores at a quarter of the image against labels of the file's size, by mmseg's two bilinear steps; or by one."""
    torch.manual_seed(0)
    net = models.build("segformer-xs", classes=3).eval()
    image = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        said = net(image)
    cpu = open_device("cpu", "float32")

    def scored(labels: torch.Tensor, **settings: Any) -> torch.Tensor | None:
        batch = Batch(ids=["a"], views={"image": image}, labels=labels, counts={})
        return segmentation.scored(SimpleNamespace(cfg=settings, device_info=cpu), net, batch)

    full = scored(torch.zeros(1, 50, 70), eval_mode="whole")
    expected = F.interpolate(said.logits, (50, 70), mode="bilinear", align_corners=False)
    assert torch.allclose(full, expected, atol=1e-6)
    assert torch.equal(
        scored(torch.zeros(1, 8, 16), eval_mode="whole", label_stride=4), said.features["score"]
    )
    assert torch.equal(scored(torch.zeros(1, 50, 70)), said.logits)  # a task without settings of inference


@pytest.mark.parametrize("mode", ["slide", "own size", "bfloat16"])
def test_ways_to_evaluate(tmp_path: Path, data_root: Path, mode: str) -> None:
    """Windows, images at their own size, and half-width activations must reach the metrics."""
    changes = {"slide": {"eval_mode": "slide"}, "own size": {"eval_resize": "false"}}.get(mode)
    rest = {"dtype": "bfloat16"} if mode == "bfloat16" else {}
    record, _ = run(plan_of(("pixel-kd", "voc-aug"), data_root, changes, **rest), tmp_path)
    check(record)


def test_transkds_protocol_on_cityscapes(tmp_path: Path, data_root: Path) -> None:
    """Whole images, labels at a quarter, weighted classes: the loss is at the scores, per weight of the labels."""
    protocol = {
        "augment": "shift",
        "scale": "64,32",
        "label_stride": 4,
        "pixels": "unit",
        "class_weights": "enet",
        "student": "segformer-xs",
        "teacher": "segformer-xs",
    }
    record, _ = run(plan_of(("pixel-kd", "cityscapes"), data_root, protocol), tmp_path)
    check(record)


def test_validation_images_are_kept_only_on_request(tmp_path: Path, data_root: Path) -> None:
    """The papers train on all images; choices need images that are neither trained on nor tested."""
    use = ("pixel-kd", "ade20k")
    kept, _ = run(plan_of(use, data_root, {"val_share": 0.25, "eval_every": 1}, arms="student"), tmp_path)
    curve = next(row for row in kept.runs if row.arm == "student").curves["val/miou"]
    assert [step for step, _ in curve] == [1, 2]


def test_a_random_teacher_is_refused(tmp_path: Path, data_root: Path) -> None:
    """A teacher that takes no step and has no weights would teach noise."""
    record, _ = run(plan_of(("pixel-kd", "ade20k"), data_root, {"teacher_steps": 0}), tmp_path)
    assert any("teach random numbers" in failure["error"] for failure in record.failures)


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight ranks with all cores each would fight for them."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert paper_tasks.decoders(0) == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert paper_tasks.decoders(0) == 2
    assert paper_tasks.decoders(5) == 5
