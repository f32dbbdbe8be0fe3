"""TransKD: fusion of stages, mixer, assistant, losses, and which of them an arm trains."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kdzoo.errors import KdzooError
from kdzoo.fit import StepModule
from kdzoo.losses.maps import channel_wise_divergence
from kdzoo.plan import Request, make_plan
from kdzoo.runs import Run
from kdzoo_segmentation.fusion import CrossSelectiveFusion, SelectiveFusion, StageProjections
from kdzoo_segmentation.methods import transkd

TASK = "brain-slices"
SMALL = ("teacher=segformer-xs", "teacher_steps=1", "batch=2", "middle=4")
INNER, OUTER = (3, 4, 5, 6), (4, 6, 8, 10)
Open = Callable[..., Run]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pyramid(widths: tuple[int, ...], batch: int = 2) -> list[Tensor]:
    return [rand(batch, width, 16 >> place, 24 >> place, seed=place) for place, width in enumerate(widths)]


# --- fusion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_selective_fusion_by_a_slow_reference(batch: int) -> None:
    """A softmax over channels in place of the two branches, a sum of maps in place of their mean, branches swapped."""
    torch.manual_seed(0)
    block = SelectiveFusion(3, 4, 5, fuse=True).double().eval()
    stage, deeper = rand(batch, 3, 5, 4).double(), rand(batch, 4, 3, 2, seed=1).double()
    out, kept = block(stage, deeper)
    assert out.shape == (batch, 5, 5, 4)
    entered = block.enter(stage)
    squeezed = block.squeeze_alone if batch == 1 else block.squeeze
    for b in range(batch):
        # nearest neighbour: position k of n takes floor(k m / n) of m
        other = [
            [[float(deeper[b, c, y * 3 // 5, x * 2 // 4]) for x in range(4)] for y in range(5)]
            for c in range(4)
        ]
        mean = [
            sum(float(entered[b, c, y, x]) + other[c][y][x] for y in range(5) for x in range(4)) / 20
            for c in range(4)
        ]
        vector = squeezed(torch.tensor(mean, dtype=torch.float64).view(1, 4, 1, 1))
        a, d = (branch(vector).flatten().tolist() for branch in block.branches)
        for c in range(4):
            share = math.exp(a[c]) / (math.exp(a[c]) + math.exp(d[c]))
            for y in range(5):
                for x in range(4):
                    expected = share * float(entered[b, c, y, x]) + (1 - share) * other[c][y][x]
                    assert float(kept[b, c, y, x]) == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(out, block.leave(kept))


def test_fusion_hands_down_from_the_deepest_stage() -> None:
    """The first stage must see all others, the last only itself; and outputs come back in order."""
    torch.manual_seed(0)
    fusion = CrossSelectiveFusion(INNER, OUTER, 8).eval()
    maps = [map_.requires_grad_() for map_ in pyramid(INNER)]
    fused = fusion(maps)
    assert [map_.shape[1:] for map_ in fused] == [
        (width, *map_.shape[2:]) for width, map_ in zip(OUTER, maps, strict=True)
    ]
    for place, map_ in enumerate(fused):
        grads = torch.autograd.grad(map_.square().sum(), maps, retain_graph=True, allow_unused=True)
        assert [grad is not None and bool(grad.any()) for grad in grads] == [k >= place for k in range(4)]


def test_fusion_trains_a_batch_of_one() -> None:
    """Batch norm of one image at one position has no variance: torch refuses it."""
    fusion = CrossSelectiveFusion(INNER, OUTER, 8).train()
    loss = torch.stack([map_.square().sum() for map_ in fusion(pyramid(INNER, batch=1))]).sum()
    loss.backward()
    assert all(stage.squeeze_alone[0].weight.grad is not None for stage in list(fusion.stages)[:3])


def test_projections_keep_stages_apart() -> None:
    """A projection that mixes stages or positions would be no baseline."""
    maps = [map_.requires_grad_() for map_ in pyramid(INNER)]
    projected = StageProjections(INNER, OUTER)(maps)
    for place, map_ in enumerate(projected):
        grads = torch.autograd.grad(map_[0, :, 1, 0].sum(), maps, allow_unused=True)
        assert [grad is not None for grad in grads] == [k == place for k in range(4)]
        grad = grads[place]
        assert grad is not None
        assert int(grad.abs().sum(1).count_nonzero()) == 1


# --- embeddings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [False, True])
def test_mixer_by_a_slow_reference(residual: bool) -> None:
    """Heads that are mixed up, a scale left out, a gate without its sigmoid, a convolution along channels."""
    torch.manual_seed(0)
    mixer = transkd.Mixer(4, 2, residual=residual).double()
    with torch.no_grad():
        mixer.attention_weight.fill_(0.8)
        mixer.local_weight.fill_(1.3)
    embedded = rand(2, 5, 4).double()
    found = mixer(embedded)
    padded = nn.functional.pad(embedded, (0, 0, 1, 1))
    for b in range(2):
        seen = torch.zeros(5, 4, dtype=torch.float64)
        query, key, value = (embedded[b] @ mixer.qkv.weight.T).split(4, dim=1)
        for head in (slice(0, 2), slice(2, 4)):
            for n in range(5):
                weights = (
                    torch.stack([query[n, head] @ key[m, head] for m in range(5)]).div(2**0.5).softmax(0)
                )
                seen[n, head] = sum(weights[m] * value[m, head] for m in range(5))
        local = torch.zeros(5, 4, dtype=torch.float64)
        for n in range(5):
            conv, gate = (
                sum(layer.weight[:, :, k] @ padded[b, n + k] for k in range(3)) + layer.bias
                for layer in (mixer.conv, mixer.gate)
            )
            local[n] = conv * gate.sigmoid()
        expected = 0.8 * (seen @ mixer.out.weight.T + mixer.out.bias) + 1.3 * local
        torch.testing.assert_close(found[b], expected + embedded[b] if residual else expected)


def test_mixer_refuses_heads_that_do_not_fit() -> None:
    """Ten channels for eight heads would fail in a reshape, after the weights were loaded."""
    with pytest.raises(KdzooError, match="divisor of 10"):
        transkd.Mixer(10, 8, residual=False)


def test_assistant_starts_where_the_paper_does() -> None:
    """The own embedding weighs 0.1 to 0.4, the assistant's 0.5 to 0.8; each is fed by the stage before."""
    torch.manual_seed(0)
    assistant = transkd.EmbeddingAssistant(1, INNER, OUTER)
    assert assistant.own.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert assistant.assisted.tolist() == pytest.approx([0.5, 0.6, 0.7, 0.8])
    image, maps = rand(2, 1, 64, 96), pyramid(INNER)
    aligned = [rand(2, (16 >> k) * (24 >> k), width) for k, width in enumerate(OUTER)]
    found = assistant(aligned, image, maps[:-1])
    for place, (mixed, mine, below) in enumerate(zip(found, aligned, (image, *maps), strict=False)):
        stage = assistant.stages[place]
        convolved = stage.proj(below).flatten(2).transpose(1, 2)
        centred = convolved - convolved.mean(2, keepdim=True)
        normed = centred / (convolved.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(mixed, 0.1 * (place + 1) * mine + 0.1 * (place + 5) * normed)


def test_embedding_loss_by_hand() -> None:
    """A sum over positions in place of the mean, weights in the wrong order, a gradient into the teacher."""
    mine = [torch.zeros(1, 2, 2, requires_grad=True), torch.zeros(1, 1, 3, requires_grad=True)]
    taught = [torch.tensor([[[1.0, 1.0], [1.0, 3.0]]], requires_grad=True), torch.full((1, 1, 3), 2.0)]
    found = transkd.embedding_loss(mine, taught, (0.5, 10.0))
    assert found.tolist() == [0.5 * 3.0 + 10.0 * 4.0]
    found.sum().backward()
    assert taught[0].grad is None
    with pytest.raises(ValueError, match="zip"):
        transkd.embedding_loss(mine, taught, (1.0,))


def test_tokens_run_row_by_row() -> None:
    """The mixer's convolution takes neighbours of this order."""
    map_ = torch.arange(12.0).view(1, 2, 2, 3)
    assert transkd.tokens(map_)[0].tolist() == [[k, k + 6.0] for k in range(6)]


# --- feature losses -------------------------------------------------------------------------------------------


def test_feature_losses_by_the_formula() -> None:
    """Which axis the softmax runs over, what the sum is divided by, and the factor T^2."""
    student, teacher = rand(2, 3, 4, 5), rand(2, 3, 4, 5, seed=1)
    t = 2.0
    for b in range(2):
        square = float((student[b] - teacher[b]).square().mean())
        p, q = ((side[b] / t).flatten(1).softmax(1) for side in (teacher, student))
        channels = t * t * float((p * (p / q).log()).sum()) / 3
        p, q = ((side[b] / t).softmax(0) for side in (teacher, student))
        pixels = t * t * float((p * (p / q).log()).sum()) / 20
        for kind, expected in (("mse", square), ("cwd", channels), ("pixel-kl", pixels)):
            found = transkd.feature_loss(student, teacher, kind=kind, temperature=t)
            assert float(found[b]) == pytest.approx(expected, rel=1e-4)
    assert channel_wise_divergence(student, teacher, temperature=t, reduction="none").shape == (2, 3)
    with pytest.raises(ValueError, match="'hcl', 'mse', 'cwd' or 'pixel-kl'"):
        transkd.feature_loss(student, teacher, kind="kl", temperature=1.0)


@pytest.mark.parametrize("kind", ["hcl", "mse", "cwd", "pixel-kl"])
def test_feature_losses_at_equality_and_in_half_width(kind: str) -> None:
    """Zero and no gradient where the student is the teacher; float32 inside; the teacher is left alone."""
    teacher = rand(2, 3, 4, 4).bfloat16().requires_grad_()
    student = teacher.detach().clone().requires_grad_()
    same = transkd.feature_loss(student, teacher, kind=kind, temperature=1.0)
    same.sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-6
    assert same.dtype == torch.float32
    assert float(same.detach().abs().max()) < 1e-6


# --- in a run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "roles", "terms"),
    [
        ("transkd", {"csf", "pea"}, {"features", "embeddings"}),
        ("transkd.without-features", {"pea"}, {"embeddings"}),
        ("transkd.without-embeddings", {"csf"}, {"features"}),
        ("transkd.stage-mse", {"projection"}, {"features"}),
        ("transkd.gl", {"csf", "pea", "mixer"}, {"features", "embeddings"}),
        ("transkd.ea", {"csf", "pea", "assistant"}, {"features", "embeddings"}),
    ],
)
def test_an_arm_trains_its_own_modules_and_ships_the_student(
    open_arm: Open, arm: str, roles: set[str], terms: set[str]
) -> None:
    """A module that is built and not trained, a loss without its module, or one that reaches the student not."""
    run = open_arm("transkd", TASK, arm=arm, set=SMALL)
    assert run.models.keys() == {"student", "teacher"} | roles
    StepModule(run)(next(iter(run.loader()))).backward()
    assert run.terms.keys() == {"task"} | terms
    for role in roles:
        grads = {name: p.grad for name, p in run.models[role].named_parameters()}
        lost = {name for name, grad in grads.items() if grad is None or not grad.any()}
        # Of a batch of two the layer for single images is not asked; batch norm removes what the squeezed zeros keep.
        assert all("squeeze" in name for name in lost), lost
    assert all(p.grad is None for p in run.models["teacher"].parameters())
    assert run.spec.ships == ("student",)


def test_weights_are_per_image_sums(open_arm: Open) -> None:
    """A mean over the batch divided by the batch again; a weight of another loss; the embeddings' own weight."""
    found = {}
    for factor, kind in ((1.0, "cwd"), (3.0, "cwd"), (3.0, "hcl")):
        run = open_arm("transkd", TASK, set=(*SMALL, f"cwd_weight={factor}", f"feature_loss={kind}"))
        batch = next(iter(run.loader()))
        StepModule(run)(batch)
        ((total, scale),) = run.terms["features"]
        assert scale * len(batch.ids) == pytest.approx(factor if kind == "cwd" else 1.0)
        found[factor, kind] = float(total.detach())
    assert found[1.0, "cwd"] == pytest.approx(found[3.0, "cwd"], rel=1e-6)


def test_building_draws_nothing_from_the_student(open_arm: Open) -> None:
    """Looking at the widths must leave modes, statistics and first weights as they were."""
    first, second = (
        open_arm("transkd", TASK, arm=arm, set=SMALL) for arm in ("transkd", "transkd.without-features")
    )
    assert first.models["student"].training
    assert not first.models["teacher"].training
    states = [run.models["student"].state_dict() for run in (first, second)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("student=fcn-r18-xs",), "'embed1', which the student does not have"),
        (("stage_weights=1,1",), "one weight a layer"),
        (("assistant=true", "stages=stage3,stage4"), "equal numbers expected"),
        (("accumulate=2",), "couples the samples"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    settings: tuple[str, ...], said: str
) -> None:
    """Each would fail after the teacher was trained, or train another loss in silence."""
    with pytest.raises(KdzooError, match=said):
        make_plan(Request("transkd", task=TASK, arms="transkd", seeds=1, set=(*SMALL, *settings)))
