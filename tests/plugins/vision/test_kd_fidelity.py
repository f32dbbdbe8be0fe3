"""The fidelity study: which images are distilled on, how they are changed, where the student starts, who taught it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdzoo.arms import arms_of, settings_of, stages_of
from kdzoo.artefacts import Store
from kdzoo.catalog import load
from kdzoo.errors import KdzooError
from kdzoo.execute import execute
from kdzoo.plan import Request, make_plan
from kdzoo.runs import Run
from kdzoo_vision import starts
from kdzoo_vision.data import batch_images, fashion
from kdzoo_vision.methods import kd_fidelity
from kdzoo_vision.models import build
from kdzoo_vision.transfer_sets import own_and_fresh

Open = Callable[..., Run]
SLUG, TASK = "kd-fidelity", "fashion-few-labels"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 6, channels: int = 1, side: int = 8) -> Tensor:
    return torch.randn(count, channels, side, side, generator=seeded(5))


def first_batch(run: Run) -> Any:
    return next(iter(run.loader()))


# --- which images ------------------------------------------------------------------------------------------------


def sources(run: Run) -> list[str]:
    return [name.partition("/")[0] for name in first_batch(run).ids]


def test_own_images_only_by_default(open_arm: Open) -> None:
    """A student that sees fresh images is another experiment: the teacher's own ones are the study's starting point."""
    run = open_arm(SLUG)
    batch = first_batch(run)
    assert set(sources(run)) == {"train"}
    assert int(batch.counts["label"]) == len(batch.ids) == len(batch.labels)
    assert (batch.labels >= 0).all()
    rows = [int(name.partition("/")[2]) for name in batch.ids]
    truth = fashion.load("train").groups
    assert truth is not None
    assert torch.equal(batch.labels, truth[rows])


def test_fresh_images_are_the_pools_first_ones(open_arm: Open) -> None:
    """A limit that is not kept makes all points of the grid one."""
    few = open_arm(SLUG, arm=f"{SLUG}.fresh[500]")
    names = [name for name in first_batch(few).ids if name.startswith("pool/")]
    assert names
    assert max(int(name.partition("/")[2]) for name in names) < 500
    assert "train" in sources(few)
    assert set(sources(open_arm(SLUG, arm=f"{SLUG}.fresh-only"))) == {"pool"}


def test_own_and_fresh_share_no_image(open_arm: Open) -> None:
    """A teacher's own image among the fresh ones."""
    run = open_arm(SLUG)
    own, fresh = own_and_fresh(run, 0.3, 0)
    assert [(part.first, part.last) for part in own] == [(0, 150)]
    assert [(part.first, part.last) for part in fresh] == [(150, 500), (0, 12_000)]
    own, fresh = own_and_fresh(run, 0.3, 400)
    assert [(part.first, part.last) for part in fresh] == [(150, 500), (0, 50)]


def test_draws_do_not_depend_on_micro_batches(open_arm: Open) -> None:
    """Gradient accumulation would distil on other images."""
    whole = first_batch(open_arm(SLUG)).ids
    run = open_arm(SLUG, set=("accumulate=2",))
    loader = iter(run.loader())
    halves = [next(loader).ids for _ in range(2)]
    assert sorted(whole) == sorted([*halves[0], *halves[1]])


def test_teachers_of_half_the_labels_see_no_other(open_arm: Open) -> None:
    """Fresh images that the teacher has seen."""
    run = open_arm(SLUG, set=("own_share=0.5",))
    stage = next(s for s in plan_of(f"{SLUG}", set=("own_share=0.5",)) if s.name == "component-1")
    run.stage = stage.name
    batch = first_batch(run)
    rows = [int(name.partition("/")[2]) for name in batch.ids if name.startswith("train/")]
    assert rows
    assert max(rows) < 250
    assert (batch.labels >= 0).sum() == len(rows)


def test_fresh_images_where_there_are_none_are_refused(
    open_arm: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CIFAR-100 has no pool: the student would be trained on an empty set."""
    run = open_arm(SLUG, arm=f"{SLUG}.fresh-only")
    monkeypatch.setattr("kdzoo_vision.transfer_sets._pools", lambda run: [])
    with pytest.raises(KdzooError, match="Set own_share below 1"):
        first_batch(run)


# --- how they are changed ----------------------------------------------------------------------------------------


def test_shifted_is_a_padded_crop_and_a_mirror() -> None:
    """Columns mirrored after the shift would shift the other way; a border that wraps around shows another image."""
    batch = images(200) - 5.0
    got = batch_images.shifted(batch, 2, seeded())
    black = float(batch_images.darkest(batch))
    padded = nn.functional.pad(batch, (2, 2, 2, 2), value=black)
    seen = set()
    for k in range(len(batch)):
        for down in range(5):
            for right in range(5):
                crop = padded[k, :, down : down + 8, right : right + 8]
                for mirrored in (False, True):
                    if torch.allclose(got[k], crop.flip(2) if mirrored else crop):
                        seen.add((k, down, right, mirrored))
    assert len(seen) == 200  # every image is one of the 50 views, and nearly all views occur
    assert len({view[1:] for view in seen}) >= 40


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "change",
    [
        lambda x, share: batch_images.rotated(x, 30.0, share, seeded()),
        lambda x, share: batch_images.upside_down(x, share, seeded()),
        lambda x, share: batch_images.blurred(x, share, seeded()),
        lambda x, share: batch_images.recoloured(x, share, seeded()),
        lambda x, share: batch_images.mixed(x, 1.0, share, seeded()),
    ],
    ids=["rotated", "upside-down", "blurred", "recoloured", "mixed"],
)
def test_changes_take_hold_of_their_share(change: Callable[[Tensor, float], Tensor], channels: int) -> None:
    """A share that is not kept, an argument that is changed in place, a channel that is left out."""
    before = images(40, channels)
    kept = before.clone()
    assert torch.allclose(change(before, 0.0), before, atol=1e-5)
    all_of_them = change(before, 1.0)
    assert torch.equal(before, kept)
    assert all_of_them.shape == before.shape
    assert (all_of_them - before).abs().amax((2, 3)).gt(1e-4).float().mean() > 0.85
    changed = (change(before, 0.5) - before).abs().amax((1, 2, 3)) > 1e-4
    assert 8 <= int(changed.sum()) <= 32


def test_rotation_by_nothing_and_blur_of_a_flat_image() -> None:
    """A grid that is off by half a pixel, a kernel that does not sum to 1."""
    before = images()
    torch.testing.assert_close(batch_images.rotated(before, 0.0, 1.0, seeded()), before)
    flat = torch.ones(2, 1, 9, 9) * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    soft = batch_images.blurred(flat, 1.0, seeded())
    torch.testing.assert_close(soft[:, :, 3:6, 3:6], flat[:, :, 3:6, 3:6])


def test_mixed_images_are_averages_of_two() -> None:
    """Weights that do not sum to 1, or a partner of another row than the permutation says."""
    before = torch.eye(8).view(8, 1, 2, 4)
    after = batch_images.mixed(before, 1.0, 1.0, seeded()).flatten(1)
    torch.testing.assert_close(after.sum(1), torch.ones(8))
    assert (after > 0).sum(1).max() <= 2
    weights = {round(float(row.diagonal()[0]), 4) for row in after.diagonal().view(8, 1, 1) if row < 1}
    assert len(weights) == 1  # one weight for the batch


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_no_class_are_in_the_batchs_range(channels: int) -> None:
    """Pixels of another range would be told apart by brightness alone."""
    batch = images(64, channels, 28) * 3
    for make in (batch_images.noise, batch_images.drawings):
        strange = make(batch, 16, seeded())
        assert strange.shape == (16, channels, 28, 28)
        low, high = batch.amin((0, 2, 3)), batch.amax((0, 2, 3))
        assert (strange.amin((0, 2, 3)) >= low - 1e-4).all()
        assert (strange.amax((0, 2, 3)) <= high + 1e-4).all()
        assert strange.std((2, 3)).mean() > 0.5
        assert not torch.equal(strange[0], strange[1])


def test_arms_change_the_images_as_they_say(open_arm: Open) -> None:
    """An intervention that is announced but not made: its arm would be a copy."""
    plain = first_batch(open_arm(SLUG))
    views = plain.views["image"]
    noisy = first_batch(open_arm(SLUG, arm=f"{SLUG}.synthetic[noise]"))
    count = round(0.2 * len(views))
    assert torch.equal(noisy.views["image"][:-count], views[:-count])
    assert not torch.equal(noisy.views["image"][-count:], views[-count:])
    assert (noisy.labels[-count:] == -1).all()
    assert noisy.counts == {"item": len(views), "label": len(views) - count}
    still = first_batch(open_arm(SLUG, arm=f"{SLUG}.without-augmentation"))
    clean = fashion.load("train")
    rows = torch.tensor([int(name.partition("/")[2]) for name in still.ids])
    assert torch.equal(still.views["image"], clean.collate(clean.items, rows, None).views["image"])
    for arm in ("mixup", "policy[rotation]", "policy[vertical-flip]", "policy[colour]", "policy[blur]"):
        other = first_batch(open_arm(SLUG, arm=f"{SLUG}.{arm}"))
        assert other.ids == plain.ids
        assert not torch.equal(other.views["image"], views), arm


# --- where the student starts ------------------------------------------------------------------------------------


def nets() -> tuple[nn.Module, nn.Module]:
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(build("cnn-xs", num_classes=10, in_channels=1, image_size=28))
    return made[0], made[1]


def test_interpolation_ends_at_both_nets() -> None:
    """Shares the wrong way round: the claim about distance would be mirrored."""
    own, taught = (net.state_dict() for net in nets())
    taught["stages.0.1.num_batches_tracked"] += 7
    for share, expected in ((0.0, taught), (1.0, own)):
        got = starts.interpolated(own, taught, random_share=share)
        for name in own:
            if own[name].is_floating_point():
                torch.testing.assert_close(got[name], expected[name])
    assert starts.interpolated(own, taught, random_share=0.5)["stages.0.1.num_batches_tracked"] == 7
    torch.testing.assert_close(
        starts.interpolated(own, taught, random_share=0.25)["classifier.weight"],
        0.25 * own["classifier.weight"] + 0.75 * taught["classifier.weight"],
    )
    del taught["classifier.bias"]
    with pytest.raises(ValueError, match=r"classifier\.bias"):
        starts.interpolated(own, taught, random_share=0.5)


def test_batch_norms_are_measured_by_plain_averages() -> None:
    """An exponential average would keep a part of what stood there before."""
    norm = nn.BatchNorm1d(3, momentum=0.1).eval()
    assert norm.running_mean is not None
    norm.running_mean += 100
    batches = [torch.randn(20, 3, generator=seeded(k)) + k for k in range(4)]
    starts.estimate_batch_norms(norm, batches)
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0))
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_var, torch.stack([b.var(0) for b in batches]).mean(0))
    assert norm.momentum == 0.1
    assert not norm.training
    before = norm.running_mean.clone()
    starts.estimate_batch_norms(norm, [])
    assert torch.equal(norm.running_mean, before)


def test_frozen_batch_norms_keep_their_statistics() -> None:
    """`train()` undoes it, so it must hold for a forward pass in training mode."""
    net = nets()[0].train()
    starts.freeze_batch_norms(net)
    before = {name: norm.running_mean.clone() for name, norm in starts.batch_norms(net).items()}  # type: ignore[union-attr]
    net(torch.randn(4, 1, 28, 28, generator=seeded()))
    after = {name: norm.running_mean for name, norm in starts.batch_norms(net).items()}
    assert before.keys() == {"stages.0.1", "stages.1.1", "stages.2.1"}
    assert all(torch.equal(before[name], after[name]) for name in before)  # type: ignore[arg-type]


def test_pre_activations_are_read_before_the_relu_in_place() -> None:
    """What a hook keeps of a map that the next layer overwrites is the activation."""
    net = nets()[0].eval()
    with starts.pre_activations(net) as seen:
        net(torch.randn(4, 1, 28, 28, generator=seeded()))
    assert {name: parts[0].shape for name, parts in seen.items()} == {
        "stages.0.1": (4, 4), "stages.1.1": (4, 8), "stages.2.1": (4, 16)
    }  # fmt: skip
    assert min(parts[0].min().item() for parts in seen.values()) < 0
    assert not any(module._forward_hooks for module in net.modules())


def test_frozen_batch_norms_are_measured_first(open_arm: Open) -> None:
    """A loader that freezes the norms while they are measured leaves them at mean 0 and variance 1 for good."""
    run = open_arm(SLUG, arm=f"{SLUG}.frozen-norm", set=("steps=18",))
    run.folder.mkdir(exist_ok=True)
    run.hook.fit(run=run)
    for norm in starts.batch_norms(run.models["student"]).values():
        assert norm.running_mean is not None
        assert norm.running_mean.abs().mean() > 1e-3
        assert norm.num_batches_tracked == kd_fidelity.BATCHES


@pytest.mark.parametrize(
    ("arm", "source", "share"),
    [("from-final[0.25]", "component-1", 0.25), ("from-initial[0.0]", "origin", 0.0)],
)
def test_the_student_starts_between(open_arm: Open, arm: str, source: str, share: float) -> None:
    """A start that is announced in the table but not made."""
    random, run = open_arm(SLUG), open_arm(SLUG, arm=f"{SLUG}.{arm}")
    taught = run.models[source].state_dict()
    expected = starts.interpolated(random.models["student"].state_dict(), taught, random_share=share)
    got = run.models["student"].state_dict()
    assert all(torch.allclose(got[name].float(), expected[name].float(), atol=1e-6) for name in expected)
    assert not torch.equal(
        got["classifier.weight"], random.models["student"].state_dict()["classifier.weight"]
    )


def test_first_weights_of_a_teacher_are_not_its_last(open_arm: Open) -> None:
    """`initial` that is written after training would make the two experiments one."""
    initial = open_arm(SLUG, arm=f"{SLUG}.from-initial[0.0]").models
    torch.testing.assert_close(
        initial["origin"].state_dict()["stages.0.0.weight"],
        initial["component-1"].state_dict()["stages.0.0.weight"],
        atol=0.3,
        rtol=1.0,
    )
    assert not torch.equal(
        initial["origin"].state_dict()["stages.0.0.weight"],
        initial["component-1"].state_dict()["stages.0.0.weight"],
    )


# --- who teaches, and what is measured ---------------------------------------------------------------------------


def plan_of(arm: str, **request: Any) -> list[Any]:
    plan = make_plan(Request(SLUG, task=TASK, arms=arm, seeds=1, **request))
    return [spec.stage for spec in plan.runs[(arm, 0)]]


def test_all_arms_share_their_teachers() -> None:
    """A setting of the student in a teacher's key would train a teacher an arm; one seed for all, one teacher."""
    plan = make_plan(Request(SLUG, task=TASK, arms="all", seeds=2))
    made: dict[str, set[str]] = {}
    for spec in plan.specs.values():
        if spec.stage.name.startswith("component-"):
            made.setdefault(spec.stage.name, set()).add(spec.key)
    assert {name: len(keys) for name, keys in made.items()} == {f"component-{k}": 1 for k in range(1, 6)}
    assert len({key for keys in made.values() for key in keys}) == 5


def test_settings_of_the_student_are_all_named() -> None:
    """A new setting that is forgotten in STUDENTS_OWN would give each of its arms teachers of their own."""
    params = load().method(SLUG).params
    teachers = {name for name in params if name.startswith("component_")} | {"own_share", "eval.cka"}
    assert set(kd_fidelity.STUDENTS_OWN) == params.keys() - teachers


def test_the_evaluation_sees_those_who_taught() -> None:
    """Fidelity to the task's teacher is not fidelity to one's own."""
    cards = load()
    arms = arms_of(cards, cards.method(SLUG), cards.task(TASK))
    arm = arms[f"{SLUG}.ensemble[3]"]
    *_, last = stages_of(arm, cards, cards.task(TASK), settings_of(arm, cards, cards.task(TASK), {}))
    assert last.needs == ("fit", "component-1", "component-2", "component-3")
    assert last.roles is not None
    assert [role.name for role in last.roles] == [
        "student",
        "teacher",
        "component-1",
        "component-2",
        "component-3",
    ]
    assert all(role.kind == "frozen" for role in last.roles)


def test_the_rate_follows_the_distance_from_final_weights_only() -> None:
    """A full rate would drive the student out of its teacher's basin at once, a rate of 0 would refuse to train."""
    rates = {}
    for arm in ("from-final[0.0]", "from-final[0.25]", "from-initial[0.25]"):
        *_, fit, _ = plan_of(f"{SLUG}.{arm}", set=("lr=0.04",))
        rates[arm] = fit.set["lr"]
    assert rates == {"from-final[0.0]": 1e-6, "from-final[0.25]": 0.01, "from-initial[0.25]": 0.04}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("task_weight=1.5",), "the study's alpha"),
        (("mixup_share=1", "task_weight=0.5"), "mixed images have no label"),
        (("init_from=final", "components=3"), "Set components = 1"),
    ],
)
def test_impossible_arms_are_refused(given: tuple[str, ...], message: str) -> None:
    """Labels for mixed images, a start between three teachers: training would go on with something else."""
    with pytest.raises(KdzooError, match=message):
        make_plan(Request(SLUG, task=TASK, arms=SLUG, set=given))


def test_the_ensemble_answers_with_its_mean(open_arm: Open) -> None:
    """One member's answer in the place of all."""
    run = open_arm(SLUG, arm=f"{SLUG}.ensemble[3]")
    run.enter(first_batch(run))
    said = run.signal("ensemble").logits
    members = [run.signal(f"component-{k}").logits for k in (1, 2, 3)]
    assert said is not None
    mean = torch.stack([m.softmax(1) for m in members if m is not None]).mean(0)
    torch.testing.assert_close(said.exp(), mean)
    assert not torch.allclose(members[0], members[1])  # type: ignore[arg-type]


def test_alpha_weighs_both_parts(open_arm: Open) -> None:
    """A soft loss at full weight beside the labels."""
    run = open_arm(SLUG, arm=f"{SLUG}.labels")
    batch = first_batch(run)
    run.enter(batch)
    terms = kd_fidelity.loss_terms(run, batch)
    assert terms is not None
    assert terms["soft"].weight == 0.5
    assert terms["soft"].per == "item"


def measured(arm: str, folder: Path, copied: bool = False) -> dict[str, Any]:
    """The metrics of an arm after three steps; `copied`: with its teacher's weights in the place of the student's."""
    plan, store = make_plan(Request(SLUG, task=TASK, arms=arm, seeds=1, smoke=True)), Store(folder)
    manifest: dict[str, Any] = {}
    for spec in plan.runs[(arm, 0)]:
        if copied and spec.stage.name == "evaluate":
            source, target = (store.folder(spec.needs[name]) for name in ("component-1", "fit"))
            copyfile(source / "student.safetensors", target / "student.safetensors")
        manifest = execute(spec, store)
    return {name: metric["value"] for name, metric in manifest["metrics"].items()}


def test_a_student_that_is_its_teacher_agrees_with_it(tmp_path: Path) -> None:
    """Fidelity measured against another model, or on images that the two did not see alike."""
    found = measured(SLUG, tmp_path, copied=True)
    for place in ("test", "train", "distill"):
        assert found[f"{place}/agreement[teacher=own]"] == 1
        assert found[f"{place}/teacher_kl[teacher=own]"] == pytest.approx(0, abs=1e-6)
    assert found["test/accuracy[model=own-teacher]"] == found["test/accuracy"]
    layers = {f"test/cka[layer=stages.{k}.1]" for k in range(3)}
    assert {name for name in found if name.startswith("test/cka[")} == layers
    assert all(found[name] == pytest.approx(1) for name in (*layers, "test/cka"))
    assert found["test/agreement"] < 1


def test_the_tasks_teacher_may_teach(tmp_path: Path) -> None:
    """With it both fidelities are one; layers of two architectures cannot be paired."""
    found = measured(f"{SLUG}.task-teacher", tmp_path)
    assert found["test/agreement[teacher=own]"] == found["test/agreement"]
    assert found["test/teacher_kl[teacher=own]"] == pytest.approx(found["test/teacher_kl"])
    assert "test/cka" not in found
