"""MOKD: who asks whom, whose loss is whose, what the averages and centres do, one optimiser as good as two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdzoo import bench, fit, roles
from kdzoo.artefacts import Store
from kdzoo.errors import KdzooError
from kdzoo.fit import StepModule
from kdzoo.losses.divergences import soft_cross_entropy
from kdzoo.plan import Request, make_plan
from kdzoo.records import RunRow
from kdzoo.report import table
from kdzoo.runs import Run
from kdzoo_vision.methods import mokd
from kdzoo_vision.ssl.dino import centres, move_averages
from kdzoo_vision.ssl.optimizers import make_optimizer

SMALL = ("batch=4", "cnn=cnn-xs", "outputs=16", "head_hidden=12", "head_bottleneck=8", "small_crops=2")
TRAINED = {"cnn": ("cnn", "cnn-head", "cnn-thead"), "vit": ("vit", "vit-head", "vit-thead")}


@pytest.fixture
def opened(kdzoo_subject: Callable[..., Any]) -> Callable[..., Run]:
    """A run of MOKD with small models, its first batch entered."""

    def go(*settings: str, arm: str = "") -> Run:
        run: Run = kdzoo_subject("mokd", "fashion-ssl", (*SMALL, *settings)).open(arm)
        roles.build(run)
        for role, module in run.models.items():
            module.train(run.roles[role].kind == "train")
        run.enter(next(iter(run.loader())))
        return run

    return go


def total(run: Run, names: str) -> torch.Tensor:
    """The weighted sum of the terms whose names end so."""
    assert run.batch is not None
    terms = mokd.loss_terms(run, run.batch)
    found = [term.weight * term.total for name, term in terms.items() if name.endswith(names)]
    assert found
    return torch.stack(found).sum()


@pytest.mark.parametrize("model", ["cnn", "vit"])
def test_no_gradient_crosses_models(opened: Callable[..., Run], model: str) -> None:
    """One backward pass may stand for the official two only while each loss moves its own model alone."""
    run = opened()
    total(run, f"-{model}").backward()
    for name in ("cnn", "vit"):
        for role in TRAINED[name]:
            gradients = [p.grad for p in run.models[role].parameters() if p.grad is not None]
            moved = any(bool(g.abs().sum() > 0) for g in gradients)
            assert moved == (name == model), role
    assert all(
        p.grad is None for role in run.models if role.endswith("-ema") for p in run.models[role].parameters()
    )


@pytest.mark.parametrize(("student", "teacher"), [("cnn", "vit"), ("vit", "cnn")])
def test_the_search_is_wired_as_published(opened: Callable[..., Run], student: str, teacher: str) -> None:
    """Query from student m', tokens of teacher m's first large crop, loss on m' small crops: easy to wire backwards."""
    run = opened("lambda_cnn=0.5", "lambda_vit=0.25", "student_temperature=0.2", "first_temperature=0.05")
    assert run.batch is not None
    found = mokd.loss_terms(run, run.batch)[f"search-{student}"]
    assert found.weight == {"cnn": 0.5, "vit": 0.25}[student]
    head, answering = run.models[f"{student}-thead"], run.models[f"{teacher}-thead-ema"]
    small, large = run.out(student, "small"), run.signal(f"{teacher}-ema", "large")
    with torch.no_grad():
        if student == "cnn":
            reduced = head.reduce(small.features["map"])  # type: ignore[operator]
            query, tokens = reduced.mean((2, 3)), reduced.flatten(2).transpose(1, 2)
        else:
            assert small.embedding is not None
            query, tokens = small.embedding, small.features["tokens"]
        inner = large.features["map" if teacher == "cnn" else "tokens"]
        seen = answering.tokens(inner)[:4]  # type: ignore[operator]
        expected = torch.zeros(())
        for crop in range(2):
            for image in range(4):
                row = crop * 4 + image
                target = answering(seen[image : image + 1], query[row : row + 1])
                said = head(tokens[row : row + 1])
                expected += soft_cross_entropy(
                    said, target, temperature=(0.2, 0.05), axis=-1, reduction="sum"
                )
    torch.testing.assert_close(found.total.detach(), expected / 2, rtol=1e-4, atol=1e-4)


def test_arms_leave_out_what_they_say(opened: Callable[..., Run]) -> None:
    """An ablation that keeps a term compares the method with itself."""

    def names(arm: str) -> set[str]:
        run = opened(arm=arm)
        assert run.batch is not None
        return {name.rpartition("-")[0] for name in mokd.loss_terms(run, run.batch)}

    assert names("mokd") == {"self-mlp", "self-thead", "cross-mlp", "search"}
    assert names("mokd.independent") == {"self-mlp", "self-thead"}
    assert names("mokd.without-search") == {"self-mlp", "self-thead", "cross-mlp"}
    assert names("mokd.without-cross-mlp") == {"self-mlp", "self-thead", "search"}
    assert names("mokd.without-self") == {"cross-mlp", "search"}
    assert names("mokd.without-t-head") == {"self-mlp", "cross-mlp"}


def test_without_averaging_a_teacher_is_its_student(opened: Callable[..., Run]) -> None:
    """The switch must give copies, and the average must start as one and then lag; buffers stay its own."""
    for averaging in ("true", "false"):
        run = opened(f"averaging={averaging}", "teacher_momentum=0.5")
        for role in ("cnn", "vit", "cnn-head", "vit-thead"):
            theirs = run.models[role].state_dict()
            for name, value in run.models[f"{role}-ema"].state_dict().items():
                assert torch.equal(value, theirs[name]), (role, name)
        with torch.no_grad():
            for role in ("cnn", "vit-thead"):
                for parameter in run.models[role].parameters():
                    parameter.add_(1.0)
        run.models["cnn"].get_buffer("net.stages.0.1.running_mean").fill_(7.0)
        move_averages(run)
        far = 0.5 if averaging == "true" else 0.0
        for role in ("cnn", "vit-thead"):
            pairs = zip(run.models[role].parameters(), run.models[f"{role}-ema"].parameters(), strict=True)
            for parameter, average in pairs:
                torch.testing.assert_close(
                    parameter - average, torch.full_like(parameter, far), rtol=0, atol=1e-5
                )
        assert not (run.models["cnn-ema"].get_buffer("net.stages.0.1.running_mean") == 7.0).any()


def test_the_average_of_the_convolution_net_takes_the_batchs_statistics(opened: Callable[..., Run]) -> None:
    """In evaluation mode its first answers would be those of a net that has never normalised anything."""
    run = opened()
    average = run.models["cnn-ema"]
    before = average.get_buffer("net.stages.0.1.running_mean").clone()
    said = run.signal("cnn-ema", "large").embedding
    assert not average.training
    assert not torch.equal(average.get_buffer("net.stages.0.1.running_mean"), before)
    assert run.batch is not None
    torch.testing.assert_close(said, run.out("cnn", "large").embedding)  # a copy so far
    with torch.no_grad():
        assert not torch.allclose(average(run.batch.views["large"]).embedding, said, atol=1e-3)


def test_centres_move_once_a_step_and_by_all_rows(opened: Callable[..., Run]) -> None:
    """A centre that moved within the step would make accumulated and whole batches different losses."""
    run = opened()
    assert run.batch is not None
    mokd.loss_terms(run, run.batch)
    known = centres(run)
    assert set(known.pending) == {"cnn-head", "vit-head", "cnn-thead", "vit-thead"}
    assert all(not value.any() for value in known.centres.values())
    (total_, count), before = known.pending["vit-head"], known.at("vit-head")
    assert count == 8  # two large crops of four images
    known.close(run, 0.9)
    torch.testing.assert_close(known.at("vit-head"), 0.9 * before + 0.1 * total_ / 8)
    assert not known.pending


def test_one_optimiser_is_the_official_two(opened: Callable[..., Run]) -> None:
    """Rates, decays, clipping and the frozen last layer of each group, against torch's optimisers by hand."""
    run = opened("cnn_optimizer=sgd", "cnn_lr=0.1", "vit_lr=0.01", "warmup=0", "freeze_share=0.0", "steps=10")
    first = {
        role: [p.detach().clone() for p in run.models[role].parameters()]
        for role in ("cnn", "vit", "cnn-thead")
    }
    optimizer = make_optimizer(run)
    assert run.batch is not None
    StepModule(run)(next(iter(run.loader()))).backward()
    gradients = {role: [p.grad for p in run.models[role].parameters()] for role in first}
    kept = {role: [None if g is None else g.clone() for g in parts] for role, parts in gradients.items()}
    optimizer.step()
    for role, rate, decay in (("cnn", 0.1, 1e-4), ("cnn-thead", 0.01, 0.04)):
        for start, gradient, now in zip(first[role], kept[role], run.models[role].parameters(), strict=True):
            if gradient is None:
                continue
            gradient = gradient * (3.0 / (gradient.norm() + 1e-6)).clamp_max(1.0)
            held = 0.0 if role == "cnn" and start.dim() == 1 else decay
            torch.testing.assert_close(
                now.detach(), start - rate * (gradient + held * start), rtol=1e-4, atol=1e-6
            )
    assert [type(part).__name__ for part in optimizer.parts] == ["SGD", "AdamW"]
    assert not run.models["cnn-head"].last_layer.length.requires_grad  # type: ignore[union-attr]
    assert run.models["vit-head"].last_layer.length.requires_grad  # type: ignore[union-attr]


def test_two_shipped_models_are_compared_and_counted(tmp_path: Path) -> None:
    """A record that compares the mean of two models only, or counts one of them, says nothing about the other."""
    plan = make_plan(Request("mokd", arms="mokd", seeds=2, smoke=True))
    ships = {
        role: {"params": n, "flops": 10 * n, "latency_ms": 1.0}
        for role, n in (("cnn-ema", 5), ("vit-ema", 7))
    }
    names = ("knn[model=cnn-ema]", "knn[model=vit-ema]", "knn")
    rows = [
        RunRow(
            arm=arm,
            seed=seed,
            status="done",
            steps=3,
            ships=ships,
            metrics={
                f"test/{name}": {"value": base + gain, "n": 9}
                for name, gain in zip(names, gains, strict=True)
            },
        )
        for arm, gains in (("student", (0.0, 0.0, 0.0)), ("mokd", (0.1, 0.3, 0.2)))
        for seed, base in enumerate((0.5, 0.6))
    ]
    found = {
        row["metric"]: row["mean"]
        for row in bench._comparisons(plan, rows, Store(tmp_path))
        if row["arms"] == ["mokd", "student"] and row["mean"] is not None
    }
    assert found == pytest.approx(
        {"test/knn[model=cnn-ema]": 0.1, "test/knn[model=vit-ema]": 0.3, "test/knn": 0.2}
    )
    params, flops, latency, _ = table._costs([rows[0]])
    assert (params.value, flops.value, latency.value) == (12, 120, 2.0)


def test_all_that_ships_names_the_start(opened: Callable[..., Run]) -> None:
    """Arms whose ViTs start apart must not pass for equal because their convolution nets do."""
    run = opened()
    hashes = {"cnn-ema": "a", "vit-ema": "b"}
    assert fit._start(run, hashes) != fit._start(run, hashes | {"vit-ema": "c"})
    assert fit._start(run, hashes) != fit._start(run, hashes | {"cnn-ema": "c"})


def test_small_crops_of_broken_patches_are_refused(opened: Callable[..., Run]) -> None:
    """timm's assertion in the middle of the first step says neither which setting nor what to set."""
    with pytest.raises(KdzooError, match="Set small_size to a multiple of 7"):
        opened("small_size=12")
