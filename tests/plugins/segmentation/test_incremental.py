"""Classes that come step by step: which images, which labels, which stages; the net that grows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.errors import KdzooError
from kdzoo.method import Batch
from kdzoo.parameter_groups import parameter_groups
from kdzoo.plan import Plan, Request, make_plan
from kdzoo.settings import Settings
from kdzoo.task import Data
from kdzoo_segmentation import incremental, multihead

IGNORE = 255


def maps() -> Data:
    """Four images of 1 x 3 pixels, classes 0 to 3."""
    labels = torch.tensor([[[0, 1, 2]], [[3, 3, 255]], [[0, 0, 255]], [[2, 3, 0]]])

    def collate(items: Any, rows: Tensor, seeds: Tensor | None) -> Batch:
        return Batch([f"train/{row}" for row in rows.tolist()], {"image": items[rows]}, labels[rows])

    return Data(torch.arange(4.0), [f"train/{row}" for row in range(4)], collate, "abc")


def test_a_step_trains_on_images_that_hold_its_classes_and_knows_no_others() -> None:
    """The overlapped setting: an old or future class that kept its label would not be hidden in the background."""
    whole = maps()
    held = incremental.classes_held(whole, 4)
    assert held.int().tolist() == [[1, 1, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [1, 0, 1, 1]]
    second = incremental.restrict(whole, "train", (1, 1), held)
    assert list(second.ids) == ["train/0", "train/3"]
    batch = second.collate(second.items, torch.tensor([1, 0]), None)
    assert batch.ids == ["train/3", "train/0"]
    assert batch.views["image"].tolist() == [3.0, 0.0]
    assert batch.labels.tolist() == [[[2, 0, 0]], [[0, 0, 2]]]


def test_validation_knows_all_classes_so_far_and_every_image_counts() -> None:
    """A future class on val would be a label that the net cannot say; an image left out would flatter."""
    data = incremental.restrict(maps(), "val", (1, 1))
    labels = data.collate(data.items, torch.arange(4), None).labels
    assert labels.flatten(1).tolist() == [[0, 1, 2], [0, 0, 255], [0, 0, 255], [2, 0, 0]]


def test_steps_are_known_by_other_hashes() -> None:
    """Two steps with one data hash would share an artefact."""
    held = incremental.classes_held(maps(), 4)
    steps: list[tuple[int, ...]] = [(1,), (1, 1), (2,), (1, 1, 1)]
    assert len({incremental.restrict(maps(), "train", step, held).hash for step in steps}) == 4


def test_a_step_without_images_is_refused() -> None:
    """An empty stream would fail later, without a word on the classes."""
    held = incremental.classes_held(maps(), 5)
    with pytest.raises(KdzooError, match="no training image holds one of the classes 4 to 4"):
        incremental.restrict(maps(), "train", (3, 1), held)


@pytest.mark.parametrize("steps", ["", "3-0-1", "3,1", "3--1", "-3", "a"])
def test_steps_that_are_none_are_refused(steps: str) -> None:
    """A typing error would become other classes."""
    with pytest.raises(KdzooError, match="whole numbers above 0"):
        incremental.groups_of(steps, 7)


def test_more_classes_than_there_are_are_refused() -> None:
    """A head would be trained for a class that nobody has."""
    assert incremental.groups_of("3-1-1-1", 7) == (3, 1, 1, 1)
    with pytest.raises(KdzooError, match="brings 7 classes"):
        incremental.groups_of("3-4", 7)


def planned(arm: str, *settings: str) -> Plan:
    return make_plan(Request("barm", task="scenes-incremental", arms=arm, seeds=1, set=settings))


@pytest.fixture(scope="module")
def all_arms() -> Plan:
    return planned("all")


def test_every_arm_takes_as_many_steps_and_starts_alike(all_arms: Plan) -> None:
    """An arm with a larger budget, or one that does not start from the step before, is no fair rival."""
    plan = all_arms
    total = int(plan.settings["student"]["steps"]) + int(plan.settings["student"]["increment_steps"])
    for (arm, _), specs in plan.runs.items():
        trained = [spec for spec in specs if spec.stage.name != "evaluate"]
        assert sum(spec.settings["steps"] for spec in trained) == total, arm
        assert [spec.stage.name for spec in trained] == [f"step-{k}" for k in range(len(trained))], arm
        for number, spec in enumerate(trained[1:]):
            assert spec.roles[0].source == f"stage:step-{number}/student", arm


def test_arms_of_the_method_share_the_first_step(all_arms: Plan) -> None:
    """A loss of the increments in the first step's key would train it again for each arm."""
    plan = all_arms
    own = {arm: specs[0].key for (arm, _), specs in plan.runs.items() if arm not in ("student", "barm.joint")}
    assert len(set(own.values())) == 1
    assert plan.runs[("barm", 0)][1].key != plan.runs[("barm.mib", 0)][1].key


def test_increments_of_unequal_length_are_refused() -> None:
    """100 steps in three parts would be 99."""
    with pytest.raises(KdzooError, match="Set a multiple of 3"):
        planned("barm", "increment_steps=100")


def bce_reference(logits: Tensor, labels: Tensor) -> list[float]:
    """Equation by hand: one-hot labels, one binary cross-entropy a class."""
    found = []
    for scores, label in zip(
        logits.movedim(1, -1).reshape(-1, logits.shape[1]), labels.flatten(), strict=True
    ):
        if label == IGNORE:
            found.append(0.0)
            continue
        p = [1 / (1 + float(torch.exp(-z))) for z in scores.double()]
        found.append(-sum(float(torch.tensor(q if c == label else 1 - q).log()) for c, q in enumerate(p)))
    return found


def test_label_bce_is_its_definition() -> None:
    """Without one-hot maps a class is easily off by one."""
    torch.manual_seed(0)
    logits, labels = (
        torch.randn(2, 4, 2, 3),
        torch.tensor([[[0, 1, 255], [3, 2, 0]], [[1, 1, 1], [255, 0, 3]]]),
    )
    values = incremental.label_bce(logits, labels, reduction="none")
    assert values.flatten().tolist() == pytest.approx(bce_reference(logits, labels), abs=1e-5)
    mean = incremental.label_bce(logits, labels, reduction="mean")
    assert float(mean) == pytest.approx(float(values.sum()) / 10, abs=1e-6)


def test_label_bce_of_nothing_is_nothing() -> None:
    """A batch that is ignored throughout must leave weights alone, not make them NaN."""
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    incremental.label_bce(logits, torch.full((1, 2, 2), IGNORE), reduction="sum").backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_label_bce_is_taken_in_float32() -> None:
    """In bfloat16 a sum over classes loses the small ones."""
    logits, labels = torch.randn(1, 30, 4, 4).bfloat16(), torch.randint(0, 30, (1, 4, 4))
    exact = incremental.label_bce(logits.double(), labels, reduction="sum")
    assert float(incremental.label_bce(logits, labels, reduction="sum")) == pytest.approx(
        float(exact), rel=1e-5
    )


# --- the net ------------------------------------------------------------------------------------------------------


def heads() -> list[Tensor]:
    """One position; background's channels 2, -1, 3, the classes' 5, 6 and 7, 8."""
    return [
        torch.tensor(values, dtype=torch.float).view(1, -1, 1, 1) for values in ([2, 5, 6], [-1, 7], [3, 8])
    ]


@pytest.mark.parametrize(
    ("rule", "training", "clamp", "expected"),
    [
        ("residual", True, True, 2 - 1 + 3),  # the newest is not clamped
        ("residual", False, True, 2 - 1 + 0),
        ("residual", False, False, 2 - 1 + 3),
        ("shared", True, True, 2),
        ("shared", False, True, 2),
    ],
)
def test_background_sums_by_the_rule_of_its_mode(
    rule: str, training: bool, clamp: bool, expected: float
) -> None:
    """Training and inference have different rules; one in place of the other passes unseen."""
    assert float(multihead.summed_background(heads(), rule=rule, training=training, clamp=clamp)) == expected


def test_an_older_positive_residual_is_clamped_in_training_too() -> None:
    """Only the newest one may raise the background."""
    older = [*heads(), torch.tensor([0.5, 1.0]).view(1, 2, 1, 1)]
    assert float(multihead.summed_background(older, rule="residual", training=True)) == 2 - 1 + 0 + 0.5


def test_only_the_newest_residual_has_gradient_in_training() -> None:
    """The detach is the method: without it old heads drift."""
    parts = [part.requires_grad_() for part in heads()]
    multihead.summed_background(parts, rule="residual", training=True).sum().backward()
    assert parts[0].grad is None
    assert parts[1].grad is None
    assert parts[2].grad is not None
    assert parts[2].grad.flatten().tolist() == [1.0, 0.0]


def test_an_unknown_rule_is_refused() -> None:
    """A typing error would become one of the two."""
    with pytest.raises(ValueError, match="residual, shared"):
        multihead.summed_background(heads(), rule="Residual", training=True)


@pytest.fixture(scope="module")
def nets() -> tuple[multihead.MultiHead, multihead.MultiHead]:
    torch.manual_seed(0)
    return tuple(multihead.build("deeplabv3-r18-xxs", groups, channels=1) for groups in ((2,), (2, 1)))  # type: ignore[return-value]


def test_the_net_says_classes_in_the_order_of_steps(
    nets: tuple[multihead.MultiHead, multihead.MultiHead],
) -> None:
    """Heads joined in another order would make class 3 class 1."""
    net, image = nets[1].eval(), torch.randn(2, 1, 33, 40)
    with torch.no_grad():
        said = net(image)
    first, second = said.extra["heads"]
    score = said.features["score"]
    assert said.logits is not None
    assert said.logits.shape == (2, 4, 33, 40)
    assert score.shape[2:] == net.grid(image[:, 0]) == (5, 5)
    assert torch.equal(score[:, 1:3], first[:, 1:])
    assert torch.equal(score[:, 3:], second[:, 1:])
    assert torch.equal(score[:, :1], first[:, :1] + second[:, :1].clamp(max=0))


def test_a_grown_net_starts_as_the_one_before(
    nets: tuple[multihead.MultiHead, multihead.MultiHead],
) -> None:
    """A weight left random would forget at once; a new branch starts as the first one, statistics included."""
    before = nets[0].eval()
    grown = multihead.build("deeplabv3-r18-xxs", (2, 1), channels=1).eval()
    nn.init.uniform_(before.decoder.branches[0].bn.running_mean)
    grown.take_over(before, ear_init="head_pre")
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        old, new = before(image), grown(image)
    assert torch.equal(old.extra["heads"][0], new.extra["heads"][0])
    assert torch.equal(new.extra["branches"][0], new.extra["branches"][1])
    fresh = multihead.build("deeplabv3-r18-xxs", (2, 1), channels=1).eval()
    fresh.take_over(before, ear_init="random")
    with torch.no_grad():
        branches = fresh(image).extra["branches"]
    assert not torch.equal(branches[0], branches[1])


def test_a_net_of_other_steps_is_not_taken_over(
    nets: tuple[multihead.MultiHead, multihead.MultiHead],
) -> None:
    """Heads of other classes would be loaded where shapes happen to fit."""
    with pytest.raises(ValueError, match="expected"):
        nets[1].take_over(nets[1], ear_init="head_pre")
    with pytest.raises(ValueError, match="head_pre"):
        nets[1].take_over(nets[0], ear_init="copy")


def test_frozen_norms_stay_through_training() -> None:
    """Validation puts the whole net back in training mode: statistics would move from then on."""
    net = multihead.build("deeplabv3-r18-xxs", (2,), channels=1)
    net.freeze_norms()
    before = {name: value.clone() for name, value in net.named_buffers()}
    net.eval()
    net.train()
    assert net.training
    net(torch.randn(2, 1, 32, 32)).logits.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    norms = [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms
    assert all(part.weight.grad is None for part in norms)


def test_increments_train_old_parts_slowly() -> None:
    """The newest branch and head and ASPP learn at the full rate, all else at a tenth; no parameter twice."""
    net = multihead.build("deeplabv3-r18-xxs", (2, 1, 1), channels=1)
    cfg = Settings({"lr_scale": 0.1, "lr_scale_of": multihead.older_parts(3)})
    groups = {group.get("lr_scale", 1.0): group["params"] for group in parameter_groups(cfg, "student", net)}
    fast = {id(parameter) for parameter in groups[1.0]}
    for name, parameter in net.named_parameters():
        newest = name.startswith(("decoder.aspp.", "decoder.branches.2.", "decoder.heads.2."))
        assert (id(parameter) in fast) == newest, name


def test_the_papers_net_has_an_output_stride_of_16() -> None:
    """C5's masks and the paper's memory follow from it."""
    with torch.device("meta"):
        net = multihead.build("deeplabv3-r101", (15, 1), initialise=False).eval()
        said = net(torch.empty(1, 3, 65, 97))
    assert said.features["score"].shape == (1, 17, 5, 7)
    assert net.grid(torch.empty(1, 65, 97, device="meta")) == (5, 7)
    assert said.features["aspp"].shape[1] == 256


def test_ears_off_puts_all_heads_on_one_branch() -> None:
    """The arm of one growing head would be another copy of the method's net."""
    net = multihead.build("deeplabv3-r18-xxs", (2, 1, 1), channels=1, ears=False).eval()
    with torch.no_grad():
        said = net(torch.randn(1, 1, 32, 32))
    assert len(said.extra["branches"]) == 1
    wanted = F.conv2d(said.extra["branches"][0], net.decoder.heads[2].weight, net.decoder.heads[2].bias)
    assert torch.allclose(said.extra["heads"][2], wanted, atol=1e-5)
