"""Recorded answers of a teacher in a run: equal to live ones, or asked live after all."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdzoo import fit
from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.method import Batch, Output, Role, Term
from kdzoo.record_signals import record_signals
from kdzoo.recorded_answer import Answer
from kdzoo.recording_maker import difference, form_of, from_rows, to_rows
from kdzoo.runs import Run
from kdzoo.testing import toy
from kdzoo.top_k import bucket, bucketed, compress, dense

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not
from signal_runs import Open, said, same_weights, trained


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_rows_keep_the_order_of_the_memory(layout: torch.memory_format) -> None:
    """A map that came channels-last must come back so: sums over another order differ in the last bit."""
    maps = torch.randn(5, 3, 4, 2).to(memory_format=layout)
    form = form_of(maps)
    back = from_rows(to_rows(maps, form).clone(), list(form.order))
    assert torch.equal(back, maps)
    assert back.stride() == maps.stride()


def test_difference() -> None:
    """Equal infinities and NaNs are equal; one NaN against a number is not."""
    a = torch.tensor([1.0, float("inf"), float("nan")])
    assert difference(a, a.clone()) == 0
    assert difference(a, torch.tensor([1.5, float("inf"), float("nan")])) == pytest.approx(0.5)
    assert difference(a, torch.tensor([1.0, float("inf"), 2.0])) == math.inf
    assert difference(torch.zeros(2), torch.zeros(2)) == 0


@pytest.fixture
def open_run(tmp_path: Path) -> Open:
    torch.set_num_threads(1)
    return Open(tmp_path)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("fixed", [("pool",), ("train", "pool")])
def test_recorded_equals_live(open_run: Open, fixed: Sequence[str], accumulate: int) -> None:
    """The whole point: a mixed batch, half of it augmented, and one that is wholly recorded; bit by bit."""
    settings = {"accumulate": accumulate}
    live, run = open_run("live", fixed=fixed, settings=settings), open_run(fixed=fixed, settings=settings)
    weights, again = trained(live), trained(run)
    fact = said(run)["logits"]
    assert sorted(fact["recordings"]) == sorted(fixed)
    assert fact["apart"] < 1e-6
    assert same_weights(weights, again, 0.0 if fact["exact"] else 1e-5)
    assert "signals" not in live.facts


def test_hook_teacher_signal_of_another_plugin_is_never_recorded(open_run: Open) -> None:
    """An extension may answer anything: what it says today is not what it says tomorrow."""

    class Speaks:
        @hookimpl
        def teacher_signal(self, run: Run, role: str, view: str) -> Output:
            assert run.batch is not None
            return Output(logits=torch.full((len(run.batch.ids), 3), float(run.step)))

    run = open_run(add=(toy.SoftLabels(), Speaks()))
    trained(run)
    assert "signals" not in run.facts
    assert run.signal_cache.recordings.entries() == []


def test_a_wrapper_gets_the_recorded_answer(open_run: Open) -> None:
    """A control that reorders answers, or an extension that sharpens them, stands before core's answer."""
    seen: list[Any] = []

    class Watches:
        @hookimpl(wrapper=True)
        def teacher_signal(self, run: Run, role: str, view: str) -> Any:
            output = yield
            seen.append(output)
            turned = replace(output, logits=output.logits.flip(1))
            assert type(turned) is Output
            return turned

    live, run = (
        open_run("live", add=(toy.SoftLabels(), Watches())),
        open_run(add=(toy.SoftLabels(), Watches())),
    )
    assert same_weights(trained(live), trained(run), 1e-6)
    assert isinstance(seen[-1], Answer)


def test_only_frozen_roles_are_recorded(open_run: Open) -> None:
    """An average of the student's weights speaks otherwise at each step."""

    class FromAverage:
        @hookimpl
        def loss_terms(self, run: Run, batch: Batch) -> dict[str, Term]:
            student, average = run.out("student").logits, run.signal("average").logits
            assert student is not None
            assert average is not None
            return {"apart": Term((student - average - 1).square().sum(), per="item")}

        @hookimpl
        def after_step(self, run: Run, batch: Batch) -> None:
            pairs = zip(run.models["average"].parameters(), run.models["student"].parameters(), strict=True)
            for average, weight in pairs:
                average.lerp_(weight.detach(), 0.5)

    roles = (Role("student"), Role("average", "own", "init:student"))
    live, run = (open_run(signals, add=(FromAverage(),), roles=roles) for signals in ("live", "recorded"))
    assert same_weights(trained(live), trained(run))
    assert "signals" not in run.facts


def test_other_answers_from_equal_weights_are_another_recording(open_run: Open) -> None:
    """A normalisation that is a setting, or new code in forward, leaves the weights' hash alone."""

    def halved(run: Run) -> Run:
        build = toy.build_model

        class Halves:
            @hookimpl
            def build_model(self, run: Run, role: str) -> nn.Module | None:
                if role != "teacher":
                    return None
                module = build(run, role)
                forward = module.forward
                module.forward = lambda x: Output(logits=forward(x).logits / 2)
                return module

        run.manager.register(Halves(), name="halves")
        return run

    first, second = open_run(), halved(open_run())
    trained(first)
    trained(second)
    one, other = (next(iter(said(run)["logits"]["recordings"].values())) for run in (first, second))
    identities = [
        entry.recording.identity for entry in first.signal_cache.recordings.entries() if entry.recording
    ]
    assert one != other
    assert len({identity.teacher for identity in identities}) == 1
    assert len({identity.answers for identity in identities}) == 2


def test_a_recording_of_another_teacher_stops_the_run(open_run: Open) -> None:
    """The last line: whatever the manifest says, the first batch is asked both ways."""
    trained(open_run())
    run = open_run()
    fit.roles.build(run)
    cache = run.signal_cache
    teacher = cache.teacher("teacher", "image")
    recording = cache.recording(teacher, "pool", "logits")
    recording.column("values")[0].add_(1.0)
    with pytest.raises(
        KdzooError, match=r"as recorded .* differ by .* of the largest value: recorded \[.*live \["
    ):
        run.hook.fit(run=run)


def test_runs_and_seeds_share_one_recording_and_its_cost(open_run: Open) -> None:
    """Recorded once; every run is charged what it cost, whoever made it, and counts its own forward passes only."""
    runs = [open_run(seed=seed) for seed in (0, 1)]
    for run in runs:
        trained(run)
    (entry,) = runs[0].signal_cache.recordings.entries()
    assert entry.recording is not None
    for run in runs:
        assert run.cost.spent["recorded_teacher_forwards"] == 64  # 56 samples, in one group of 64
        assert run.cost.spent["recorded_seconds"] == entry.recording.manifest["seconds"]
        # 8 live rows a step, filled up to 32; the first step's 16 rows once more to compare.
        assert run.cost.teacher_forwards == 20 * 32 + 16


def test_a_second_answer_in_a_step_is_free(open_run: Open) -> None:
    """Two losses that pull the same teacher must not read it twice."""

    class Twice(toy.SoftLabels):
        @hookimpl
        def loss_terms(self, run: Run, batch: Batch) -> dict[str, Term]:
            assert run.signal("teacher").logits is run.signal("teacher").logits
            return toy.SoftLabels.loss_terms(self, run, batch)

    trained(open_run(add=(Twice(),)))


class Layers(nn.Module):
    """A teacher with everything: logits, layers, an embedding, a mask, and something that compares the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(toy.INPUTS, 4), nn.Linear(4, toy.CLASSES)

    def forward(self, x: Tensor) -> Output:
        inner = self.inner(x)
        return Output(
            logits=self.head(inner),
            features={"inner": inner, "unread": inner * 2},
            embedding=F.normalize(inner, dim=1),
            mask=torch.ones(len(x), dtype=torch.bool),
            extra={"gram": inner @ inner.T, "note": "kept"},
        )


class Deep:
    """A method that reads whatever part a test names, of the teacher `Layers`."""

    def __init__(self, read: Callable[[Output], Tensor]) -> None:
        self.read = read

    @hookimpl
    def build_model(self, run: Run, role: str) -> nn.Module | None:
        return Layers() if role == "teacher" else None

    @hookimpl
    def loss_terms(self, run: Run, batch: Batch) -> dict[str, Term]:
        student = run.out("student").logits
        assert student is not None
        read = self.read(run.signal("teacher"))
        return {"x": Term((student.sum(1) * read.view(len(read), -1).sum(1)).tanh().sum(), per="item")}


@pytest.mark.parametrize(
    ("read", "parts"),
    [
        (lambda output: output.features["inner"], {"features/inner"}),
        (lambda output: output.embedding, {"embedding"}),
        (lambda output: output.features.get("inner") * output.features["inner"], {"features/inner"}),
        (lambda output: torch.cat(list(output.features.values()), 1), {"features/inner", "features/unread"}),
        (lambda output: output.mask.float(), set()),
        (lambda output: output.extra["gram"], set()),
    ],
    ids=["layer", "embedding", "get", "all layers", "mask", "in-batch"],
)
def test_each_part_is_recorded_when_it_is_read(open_run: Open, read: Any, parts: set[str]) -> None:
    """Layers that nobody reads would fill the disk; what couples a batch is computed from the batch in hand."""
    live, run = open_run("live", add=(Deep(read),)), open_run(add=(Deep(read),))
    assert same_weights(trained(live), trained(run), 1e-5)
    made = {
        entry.recording.identity.part for entry in run.signal_cache.recordings.entries() if entry.recording
    }
    assert made == parts


def test_an_answer_is_an_output(open_run: Open) -> None:
    """Methods ask for missing layers, copy outputs, deal them out in another order."""
    run = open_run(add=(Deep(lambda output: output.logits),))
    fit.roles.build(run)
    run.enter(next(iter(run.loader())))
    answer = run.signal("teacher")
    assert isinstance(answer, Answer)
    assert isinstance(answer, Output)
    assert list(answer.features) == ["inner", "unread"]
    assert answer.features.get("nothing") is None
    assert "nothing" not in answer.features
    assert answer.tokens is None
    assert answer.extra["note"] == "kept"
    copied = replace(answer, tokens="x")
    assert (type(copied), copied.tokens) == (Output, "x")
    assert torch.equal(copied.logits, answer.logits)
    order = torch.randperm(16)
    dealt = answer.dealt(order).dealt(order)
    for one, other in (
        (dealt.logits, answer.logits), (dealt.features["inner"], answer.features["inner"]), (dealt.mask, answer.mask),
    ):  # fmt: skip
        assert one is not None
        assert other is not None
        assert torch.equal(one, other[order][order])
    assert not answer.logits.requires_grad


@pytest.mark.parametrize("policy", ["spread", "drop"])
def test_top_k_trains_on_the_shortened_teacher(open_run: Open, policy: Any) -> None:
    """Recorded and live rows of a batch alike: the same as a live teacher whose logits are cut in a wrapper."""

    class Cuts:
        @hookimpl(wrapper=True)
        def teacher_signal(self, run: Run, role: str, view: str) -> Any:
            output = yield
            return Output(logits=dense(compress(output.logits, 2), toy.CLASSES, policy))

    live, run = open_run("live", add=(toy.SoftLabels(), Cuts())), open_run(f"top-k=2:{policy}")
    whole = trained(open_run("live"))
    weights = trained(run)
    assert same_weights(trained(live), weights, 1e-6)
    assert (
        not same_weights(whole, weights, 1e-3) or policy == "spread"
    )  # of three classes, spread loses nothing
    assert same_weights(whole, weights, 1e-4) == (policy == "spread")


def test_tail_bucket_gives_k_plus_one_classes(open_run: Open) -> None:
    """A method that takes buckets finds the classes beside the logits, for recorded and live rows."""

    class Buckets:
        @hookimpl
        def loss_terms(self, run: Run, batch: Batch) -> dict[str, Term]:
            student, teacher = run.out("student").logits, run.signal("teacher")
            assert student is not None
            assert teacher.logits is not None
            assert teacher.logits.shape == (16, 2)
            short = bucketed(student, teacher.extra["classes"])
            total = kl_divergence(short, teacher.logits, temperature=1.0, axis=1, reduction="sum")
            return {"kd": Term(total, per="item")}

    class Cuts:
        @hookimpl(wrapper=True)
        def teacher_signal(self, run: Run, role: str, view: str) -> Any:
            kept = compress((yield).logits, 1)
            return Output(logits=bucket(kept), extra={"classes": kept.indices})

    live, run = open_run("live", add=(Buckets(), Cuts())), open_run("top-k=1:tail-bucket", add=(Buckets(),))
    assert same_weights(trained(live), trained(run), 1e-6)


def test_top_k_holds_logits_only(open_run: Open) -> None:
    """A card that names logits and a method that reads layers: found at the first step, not trained on half of it."""
    with pytest.raises(KdzooError, match=r"--signals top-k=2:spread: arm 'toy' pulls features/inner"):
        trained(open_run("top-k=2", add=(Deep(lambda output: output.features["inner"]),)))


def test_an_interrupted_run_goes_on_from_recordings(open_run: Open) -> None:
    """Stopped in the middle, gone on from: the same weights, and the recording is charged once."""
    whole = trained(open_run())

    class Stops(toy.SoftLabels):
        @hookimpl
        def after_step(self, run: Run, batch: Batch) -> None:
            run.stopping = run.step == 6

    from kdzoo.runs import Stopped

    first = open_run(add=(Stops(),))
    with pytest.raises(Stopped):
        trained(first)
    second = open_run()
    second.folder = first.folder
    assert same_weights(whole, trained(second))
    assert second.cost.spent["recorded_teacher_forwards"] == 64


def test_record_signals_records_what_a_run_would_pull(open_run: Open) -> None:
    """Recorded beforehand, a run makes nothing more."""
    run = open_run()
    fit.roles.build(run)
    ((recording, made),) = record_signals(run, ["logits"])
    assert made
    assert len(recording) == toy.SIZES["pool"]
    assert [made for _, made in record_signals(run, ["logits"])] == [False]
    trained(second := open_run())
    assert said(second)["logits"]["recordings"] == {"pool": recording.key}


def test_record_signals_refuses_what_cannot_be(open_run: Open) -> None:
    """No fixed stream, no frozen role, no such part."""
    for run, parts, message in (
        (open_run(fixed=()), ["logits"], "no stream that shows a sample the same way"),
        (open_run(roles=(Role("student"),), add=()), ["logits"], "no frozen role"),
        (open_run(), ["features/stage9"], "unknown part of the role 'teacher' 'features/stage9'"),
    ):
        fit.roles.build(run)
        with pytest.raises(KdzooError, match=message):
            list(record_signals(run, parts))
