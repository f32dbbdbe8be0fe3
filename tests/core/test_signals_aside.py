"""When a recorded answer would be a stale one: the teacher is asked live, or the run is refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.method import Batch, Term
from kdzoo.runs import Run
from kdzoo.testing import toy

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not
from signal_runs import Open, said, same_weights, trained


@pytest.fixture
def open_run(tmp_path: Path) -> Open:
    torch.set_num_threads(1)
    return Open(tmp_path)


class Mixes(toy.SoftLabels):
    """Mixup in one of the ways in which it is written."""

    def __init__(self, how: str) -> None:
        self.how = how

    @hookimpl
    def prepare_batch(self, run: Run, batch: Batch) -> None:
        image = batch.views["image"]
        if self.how == "new":
            batch.views["image"] = image.lerp(image.flip(0), 0.3)
        elif self.how == "in place":
            image.copy_(image.lerp(image.flip(0), 0.3))
        elif self.how == "numpy":
            image.numpy()[:] = 0.7 * image.numpy() + 0.3 * image.numpy()[::-1]


@pytest.mark.parametrize("how", ["new", "in place", "numpy"])
def test_the_cache_steps_aside_for_mixup(open_run: Open, how: str) -> None:
    """The recorded answer is about the image before it was mixed."""
    live, run = open_run("live", add=(Mixes(how),)), open_run(add=(Mixes(how),))
    assert same_weights(trained(live), trained(run))
    assert said(run) == {"live": ["the view was edited after it was loaded"]}
    assert run.signal_cache.recordings.entries() == []


def test_a_hook_that_leaves_the_view_alone_costs_no_cache(open_run: Open) -> None:
    """A new view beside the old one: the old one is still worth recording, the new one is asked live."""

    class Both(toy.SoftLabels):
        @hookimpl
        def prepare_batch(self, run: Run, batch: Batch) -> None:
            batch.views["noisy"] = batch.views["image"] + 1

        @hookimpl
        def loss_terms(self, run: Run, batch: Batch) -> dict[str, Term]:
            noisy = run.signal("teacher", "noisy").logits
            assert noisy is not None
            student = run.out("student").logits
            assert student is not None
            return {
                "noisy": Term((student - noisy).square().sum(), per="item"),
                **toy.SoftLabels.loss_terms(self, run, batch),
            }

    live, run = open_run("live", add=(Both(),)), open_run(add=(Both(),))
    assert same_weights(trained(live), trained(run), 1e-6)
    assert said(run)["logits"]["recordings"]
    assert said(run, "noisy") == {"live": ["the view is drawn anew at each step, or made by a hook"]}


def test_an_edit_inside_a_loss_is_noticed(open_run: Open) -> None:
    """A loss that normalises its batch in place, without any prepare_batch, must not get the old answer."""

    class Edits(toy.SoftLabels):
        @hookimpl
        def loss_terms(self, run: Run, batch: Batch) -> dict[str, Term]:
            batch.views["image"].mul_(2)
            return toy.SoftLabels.loss_terms(self, run, batch)

    live, run = open_run("live", add=(Edits(),)), open_run(add=(Edits(),))
    assert same_weights(trained(live), trained(run))
    assert said(run) == {"live": ["the view was edited after it was loaded"]}


def test_a_tapped_teacher_is_asked_live(open_run: Open) -> None:
    """Taps see nothing, or the last live batch, where the forward pass is left out."""

    class Tapped(toy.SoftLabels):
        @hookimpl(wrapper=True)
        def fit(self, run: Run) -> Any:
            seen: list[int] = []
            handle = run.models["teacher"].body.register_forward_hook(lambda *_: seen.append(run.step))
            try:
                return (yield)
            finally:
                handle.remove()
                run.facts["seen"] = len(set(seen))

    run = open_run(add=(Tapped(),))
    trained(run)
    assert run.facts["seen"] == run.steps
    assert said(run)["live"] == ["taps or hooks are attached to the model: they need its forward pass"]


def test_a_teacher_in_training_mode_is_asked_live(open_run: Open) -> None:
    """Its dropout is part of what such a method wants."""

    class Wakes(toy.SoftLabels):
        @hookimpl
        def loss_terms(self, run: Run, batch: Batch) -> dict[str, Term]:
            run.models["teacher"].train()
            return toy.SoftLabels.loss_terms(self, run, batch)

    run = open_run(add=(Wakes(),))
    trained(run)
    assert said(run) == {"live": ["the role is in training mode"]}


def test_a_frozen_teacher_that_moves_stops_the_run(open_run: Open) -> None:
    """Recorded answers would be those of weights that no longer exist."""

    class Moves(toy.SoftLabels):
        @hookimpl
        def after_step(self, run: Run, batch: Batch) -> None:
            run.models["teacher"].head.bias.add_(0.1)

    with pytest.raises(KdzooError, match=r"'teacher' is frozen, but its weights were written to"):
        trained(open_run(add=(Moves(),)))


@pytest.mark.parametrize(
    ("serve", "message"),
    [
        (lambda data: replace(data, collate=toy.collate), "say fixed_views, but their view 'image' changes"),
        (
            lambda data: replace(data, ids=["pool/0", *data.ids[:-1]]),
            "'pool/0' is given twice, at rows 0 and 1",
        ),
    ],
    ids=["views are not fixed", "ids are not unique"],
)
def test_data_that_promise_too_much_are_refused(open_run: Open, serve: Any, message: str) -> None:
    """A wrong word in a task would make every recording wrong without a sign."""
    run = open_run()
    run._serve = lambda run, split: (
        serve(toy.looks_the_same(split)) if split == "pool" else toy.data(run, split)
    )
    with pytest.raises(KdzooError, match=message):
        trained(run)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: x @ x.T, r"shape is \(8, 8\) for 8 samples and \(5, 5\) for 5"),
        (
            lambda x: (x - x.mean(0))[:, :3],
            "changes by .* of the largest value when 5 samples are asked about",
        ),
    ],
    ids=["a matrix of the batch", "centred by the batch"],
)
def test_answers_that_depend_on_the_batch_are_refused(open_run: Open, forward: Any, message: str) -> None:
    """In-batch scores and batch statistics are not about one sample: recorded, they would be those of other batches."""

    class Couples(toy.SoftLabels):
        @hookimpl
        def build_model(self, run: Run, role: str) -> nn.Module | None:
            if role != "teacher":
                return None
            module = nn.Identity()
            module.forward = forward  # type: ignore[method-assign]
            return module

        @hookimpl
        def loss_terms(self, run: Run, batch: Batch) -> dict[str, Term]:
            student, teacher = run.out("student").logits, run.signal("teacher").logits
            assert student is not None
            assert teacher is not None
            return {"x": Term(student.sum() * teacher.sum())}

    with pytest.raises(KdzooError, match=message):
        trained(open_run(add=(Couples(),)))
