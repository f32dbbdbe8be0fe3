"""Learning without labels: heads, backbones with tokens, crops, schedules, the optimiser of two models, probes."""

from __future__ import annotations

import doctest
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from kdzoo.errors import KdzooError
from kdzoo_vision.data.multicrop import PHOTO_DRAWS, Crops, grey_crops, photo_crop
from kdzoo_vision.ssl import backbones, probes, schedules
from kdzoo_vision.ssl.heads import MlpHead, TokenHead, WeightNormed, resized_positions
from kdzoo_vision.ssl.optimizers import PerModel, clip_each
from kdzoo_vision.ssl.probes import linear_probe, neighbour_votes
from kdzoo_vision.ssl.schedules import cosine, linear

CROPS = Crops(large_size=28, small_size=14, small=3, large_area=(0.4, 1.0), small_area=(0.1, 0.4))


# --- heads ------------------------------------------------------------------------------------------------------------


def test_weight_normed_rows_have_their_length() -> None:
    """A row that is not normalised makes one output the favourite."""
    layer = WeightNormed(5, 7, learn_length=False)
    with torch.no_grad():
        layer.direction.mul_(9.0)
        layer.length.fill_(2.0)
    answers = layer(torch.eye(5))
    torch.testing.assert_close(answers.square().sum(0), torch.full((7,), 4.0))
    assert not layer.length.requires_grad
    assert WeightNormed(5, 7, learn_length=True).length.requires_grad


def test_mlp_head_does_not_see_the_length_of_its_last_vector() -> None:
    """Without the normalisation confidence would grow with the features' scale."""
    head = MlpHead(6, 9, hidden=8, bottleneck=4)
    x = torch.randn(5, 6)
    before = head(x)
    with torch.no_grad():
        head.mlp[-1].weight.mul_(3.0)  # type: ignore[union-attr,operator]
    torch.testing.assert_close(head(x), before)
    assert before.abs().max() <= 1.0


def token_head(**changes: Any) -> TokenHead:
    torch.manual_seed(0)
    return TokenHead(**{"width": 8, "outputs": 6, "side": 4, "depth": 2, "heads": 2, "std": 0.3, **changes})


def test_a_query_changes_the_answer_and_is_not_part_of_it() -> None:
    """The query must be heard by the tokens, and its own token must not be averaged into the answer."""
    head, tokens, query = token_head(), torch.randn(3, 16, 8), torch.randn(3, 8)
    plain, asked = head(tokens), head(tokens, query)
    assert plain.shape == asked.shape == (3, 6)
    assert not torch.allclose(plain, asked, atol=1e-3)
    # By hand: the query first and without a position, the mean over the 16 tokens that follow it.
    x = torch.cat([query.unsqueeze(1), tokens + head.positions], 1)
    for block in head.blocks:
        x = block(x)
    torch.testing.assert_close(asked, head.last_layer(head.norm(x)[:, 1:].mean(1)))


def test_positions_of_a_smaller_grid() -> None:
    """A constant stays constant, a ramp keeps its direction, a full grid is taken as it is."""
    ramp = torch.arange(4.0).repeat(4, 1).flatten().view(1, 16, 1)  # grows from left to right
    assert resized_positions(ramp, 16) is ramp
    torch.testing.assert_close(resized_positions(torch.ones(1, 16, 1), 4), torch.ones(1, 4, 1))
    small = resized_positions(ramp, 4).view(2, 2)
    assert (small[:, 1] > small[:, 0] + 1).all()
    torch.testing.assert_close(small[0], small[1])
    with pytest.raises(KdzooError, match="square"):
        resized_positions(ramp, 6)


def test_a_map_is_reduced_and_laid_out_row_by_row() -> None:
    """Tokens in another order than the positions would be in other places."""
    head = token_head(channels=3)
    tokens = head.tokens(torch.randn(2, 3, 4, 4))
    assert tokens.shape == (2, 16, 8)
    x = torch.zeros(1, 3, 4, 4)
    x[0, :, 1, 2] = 5.0
    changed = (head.tokens(x) - head.tokens(torch.zeros_like(x))).abs().sum(2)[0]
    assert changed.nonzero().flatten().tolist() == [6]


def test_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(KdzooError, match="divisor of the width"):
        token_head(heads=3)


# --- backbones --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "inner", "shape"), [("cnn-xs", "map", (2, 16, 4, 4)), ("vit-xs", "tokens", (2, 16, 32))]
)
def test_backbones_show_their_tokens(name: str, inner: str, shape: tuple[int, ...]) -> None:
    """The T-Head reads these; small crops must pass through the same net."""
    net = backbones.build(name, in_channels=1, image_size=28, patch=7).eval()
    out = net(torch.randn(2, 1, 28, 28))
    assert out.features[inner].shape == shape
    assert out.embedding is not None
    assert out.embedding.shape == (2, net.width)
    small = net(torch.randn(2, 1, 14, 14))
    assert small.embedding is not None
    assert small.embedding.shape == (2, net.width)
    assert small.features[inner].shape[1:] == ((16, 2, 2) if inner == "map" else (4, 32))


def test_a_class_token_hears_the_patches() -> None:
    """An embedding that does not depend on the image would be measured as one."""
    net = backbones.build("vit-xs", in_channels=1, image_size=28, patch=7).eval()
    a, b = (net(torch.randn(1, 1, 28, 28)).embedding for _ in range(2))
    assert a is not None
    assert b is not None
    assert not torch.allclose(a, b, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "patch", "message"),
    [
        ("vit-xs", 5, "patch 5 for image_size 28"),
        ("timm:swin_tiny_patch4_window7_224", 4, "a ViT with a class token"),
    ],
)
def test_backbones_that_cannot_be(name: str, patch: int, message: str) -> None:
    with torch.device("meta"), pytest.raises(KdzooError, match=message):
        backbones.build(name, in_channels=1, image_size=28 if patch == 5 else 224, patch=patch)


# --- crops ------------------------------------------------------------------------------------------------------------


def pictures(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def test_grey_crops_depend_on_the_sample_alone() -> None:
    """Augmentation that depends on the place in the batch would differ between accumulated and whole batches."""
    images, seeds = pictures(), torch.arange(6) * 7919
    large, small = grey_crops(images, seeds, CROPS)
    assert large.shape == (12, 1, 28, 28)
    assert small.shape == (18, 1, 14, 14)
    assert large.min() >= 0
    assert large.max() <= 1
    part_large, part_small = grey_crops(images[4:], seeds[4:], CROPS)
    torch.testing.assert_close(part_large, large.view(2, 6, 1, 28, 28)[:, 4:].flatten(0, 1))
    torch.testing.assert_close(part_small, small.view(3, 6, 1, 14, 14)[:, 4:].flatten(0, 1))
    other, _ = grey_crops(images, seeds + 1, CROPS)
    assert not torch.allclose(other, large, atol=1e-2)


def test_grey_crops_have_the_areas_asked_for() -> None:
    """On a ramp from left to right, a crop's range of values is its width: bounds of area and ratio bound it."""
    ramp = torch.linspace(0, 1, 28).expand(200, 1, 28, 28)
    crops = Crops(28, 14, 1, (0.5, 0.5), (0.1, 0.1))
    large, small = grey_crops(ramp, torch.arange(200), crops)
    for made, share, size in ((large, 0.5, 28), (small, 0.1, 14)):
        rows = made.mean((1, 2))
        spans = (rows[:, -1] - rows[:, 0]).abs() * size / (size - 1)
        # Contrast and brightness scale the range by 0.6 to 1.4 each, and clamping may shorten it.
        most = math.sqrt(share * 4 / 3) * 1.4 * 1.4
        assert spans.max() <= most * 1.05
        assert spans.median() == pytest.approx(math.sqrt(share), rel=0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"large_area": (0.0, 1.0)}, "areas of the large crops"),
        ({"small_area": (0.5, 0.2)}, "areas of the small crops"),
        ({"small": 0}, "at least one small crop"),
    ],
)
def test_crops_that_cannot_be(change: dict[str, Any], message: str) -> None:
    whole = {
        "large_size": 28,
        "small_size": 14,
        "small": 3,
        "large_area": (0.4, 1.0),
        "small_area": (0.1, 0.4),
    }
    with pytest.raises(KdzooError, match=message):
        Crops(**{**whole, **change})


def test_photo_crops() -> None:
    """Sizes by kind; without mirror, colours and blur the crop is a resized part of the photo."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    crops = Crops(24, 12, 2, (1.0, 1.0), (0.2, 0.2))
    still = [0.9] * PHOTO_DRAWS  # 0.9: no mirror, no colours, not grey, no blur but on crop 0, not solarised
    assert photo_crop(photo, 1, still, crops).shape == (24, 24, 3)
    assert photo_crop(photo, 2, still, crops).shape == (12, 12, 3)
    mirrored = photo_crop(photo, 1, [0.1, *still[1:]], crops)
    assert np.array_equal(mirrored[:, ::-1], photo_crop(photo, 1, still, crops))
    blurred = photo_crop(photo, 0, still, crops)  # the first large crop is always blurred
    assert (
        np.abs(np.diff(blurred.astype(int), axis=1)).mean()
        < np.abs(np.diff(mirrored.astype(int), axis=1)).mean()
    )
    grey = photo_crop(photo, 1, [*still[:6], 0.1, *still[7:]], crops)
    assert (grey == grey[..., :1]).all()
    changed = [still[0], 0.1, *still[2:]]
    for order in (0.0, 0.3, 0.7, 0.99):  # each order of the four colour changes runs
        assert not np.array_equal(
            photo_crop(photo, 1, [*changed[:10], order, *changed[11:]], crops), mirrored
        )
    solar = photo_crop(photo, 1, [*still[:9], 0.1, *still[10:]], crops)
    assert solar.max() <= 128  # what was above the threshold is turned around


# --- schedules and optimiser ------------------------------------------------------------------------------------------


def test_schedules_hit_their_ends() -> None:
    """An off-by-one in the warm-up shifts the whole run."""
    assert cosine(1.0, 0.0, 0, 10, warmup=5) == 0.0
    assert cosine(1.0, 0.0, 4, 10, warmup=5) == 1.0
    assert cosine(1.0, 0.0, 5, 10, warmup=5) == 1.0
    assert cosine(1.0, 0.2, 9, 10) == pytest.approx(0.2 + 0.4 * (1 + math.cos(0.9 * math.pi)))
    assert cosine(0.3, 0.0, 0, 3, warmup=1) == 0.3
    assert cosine(0.996, 1.0, 0, 1) == 0.996
    assert linear(0.04, 0.07, 0, 0.0) == 0.07
    assert linear(0.04, 0.07, 5, 10) == pytest.approx(0.055)


def test_gradients_are_clipped_one_by_one() -> None:
    """Clipping over the whole model would shrink small gradients along with the large one."""
    large, small, none = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    large.grad, small.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    clip_each([large, small, none], 2.0)
    torch.testing.assert_close(large.grad, torch.tensor([1.2, 1.6]))
    torch.testing.assert_close(small.grad, torch.tensor([0.3, 0.4]))


def pair_of_models() -> tuple[nn.Parameter, nn.Parameter, nn.Parameter, PerModel, list[bool]]:
    a, b, last = (nn.Parameter(torch.ones(2)) for _ in range(3))
    frozen = [True]
    sgd = torch.optim.SGD([{"params": [a], "decays": True}], lr=9.0)
    adam = torch.optim.AdamW([{"params": [b, last], "decays": False, "weight_decay": 0.0}], lr=9.0)
    joined = PerModel([sgd, adam], lambda group: (0.5, 0.1), [last], lambda: frozen[0], 0.0)
    return a, b, last, joined, frozen


def test_each_model_steps_by_its_own_rule() -> None:
    """SGD with decay for one, AdamW without for the other; the last layer stays until it is let go."""
    a, b, last, joined, frozen = pair_of_models()
    for _ in range(2):
        for parameter in (a, b, last):
            parameter.grad = torch.ones(2)
        joined.step()
        joined.zero_grad()
        frozen[0] = False
        if last.detach()[0] == 1.0:
            torch.testing.assert_close(a.detach(), torch.full((2,), 1 - 0.5 * (1 + 0.1)))
            torch.testing.assert_close(b.detach(), torch.full((2,), 0.5), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last.detach(), torch.full((2,), 0.5), rtol=1e-5, atol=1e-5)


def test_the_joined_state_comes_back() -> None:
    """A resumed run whose AdamW has forgotten its moments is another run."""
    first, second = pair_of_models(), pair_of_models()
    for parameter in first[:3]:
        parameter.grad = torch.tensor([1.0, 2.0])
    first[3].step()
    second[3].load_state_dict(first[3].state_dict())
    assert second[3].param_groups[0] is second[3].parts[0].param_groups[0]
    assert torch.equal(
        second[3].parts[1].state[second[1]]["exp_avg"], first[3].parts[1].state[first[1]]["exp_avg"]
    )


# --- probes -----------------------------------------------------------------------------------------------------------


def test_votes_by_hand() -> None:
    """Length must not count, and a near voter must outweigh two far ones."""
    bank = torch.tensor([[5.0, 0.0], [0.1, 0.1], [0.0, 2.0]])
    labels = torch.tensor([0, 1, 1])
    query = torch.tensor([[1.0, 0.05]])
    near = F.normalize(query) @ F.normalize(bank).T
    votes = neighbour_votes(bank, labels, query, classes=3, k=3, temperature=0.1)
    weights = torch.exp((near - near.max()) / 0.1)[0]
    torch.testing.assert_close(votes[0], torch.stack([weights[0], weights[1] + weights[2], torch.zeros(())]))
    assert votes.argmax() == 0
    assert neighbour_votes(bank, labels, query, classes=3, k=3, temperature=100.0).argmax() == 1


def test_votes_do_not_depend_on_the_chunk_and_a_small_bank_votes_whole() -> None:
    torch.manual_seed(0)
    bank, labels, features = torch.randn(9, 4), torch.arange(9) % 3, torch.randn(7, 4)
    whole = neighbour_votes(bank, labels, features, classes=3, k=20, temperature=0.07)
    assert torch.allclose(
        whole, neighbour_votes(bank, labels, features, classes=3, k=9, temperature=0.07, chunk=2)
    )
    with pytest.raises(ValueError, match="bank, features"):
        neighbour_votes(bank, labels, features[:, :2], classes=3, k=1, temperature=0.07)
    with pytest.raises(ValueError, match="k = 0"):
        neighbour_votes(bank, labels, features, classes=3, k=0, temperature=0.07)


def test_the_linear_probe_is_at_its_minimum() -> None:
    """A probe that stops early measures the optimiser: at the minimum the gradient of the penalised loss is zero."""
    torch.manual_seed(0)
    bank = torch.randn(60, 3) * torch.tensor([1.0, 20.0, 0.1]) + 5
    labels = (bank[:, 0] > 5).long() + (bank[:, 2] > 5).long()
    logits = linear_probe(bank, labels, bank, classes=3, decay=0.01, chunk=25)
    assert (logits.argmax(1) == labels).float().mean() > 0.8
    x = (bank - bank.mean(0)) / bank.std(0)
    design = torch.cat([x, torch.ones(60, 1)], 1)
    weights = torch.linalg.lstsq(design, logits).solution
    slope = design.T @ (logits.softmax(1) - F.one_hot(labels, 3)) / 60
    slope[:-1] += 0.01 * weights[:-1]
    assert slope.abs().max() < 1e-4
    with pytest.raises(ValueError, match="decay"):
        linear_probe(bank, labels, bank, classes=3, decay=0.0)


def test_training_batches_of_photos_carry_no_labels(tmp_path: Path) -> None:
    """Learning without labels must not be able to see them."""
    from kdzoo_vision.data import photos
    from kdzoo_vision.data.photo_crops import cropped

    for label in range(2):
        for part in ("train", "val"):
            folder = tmp_path / "imagenet" / part / f"n{label + 1:08d}"
            folder.mkdir(parents=True)
            Image.fromarray(np.full((30, 40, 3), 90 * label, dtype=np.uint8)).save(
                folder / f"{part}_{label}.JPEG"
            )
    data = cropped(
        photos.load("imagenet-1k", "train", tmp_path, image_size=16, val_share=0.0),
        Crops(16, 8, 3, (0.4, 1.0), (0.1, 0.4)),
    )
    rows = torch.arange(2)
    batch = data.collate(data.items, rows, torch.tensor([5, 6]))
    assert batch.labels.tolist() == [-1, -1]
    assert batch.counts == {"item": 2, "label": 0}
    assert batch.views["large"].shape == (4, 3, 16, 16)
    assert batch.views["small"].shape == (6, 3, 8, 8)
    alone = data.collate(data.items, rows[1:], torch.tensor([6]))
    torch.testing.assert_close(alone.views["small"], batch.views["small"].view(3, 2, 3, 8, 8)[:, 1])
    assert data.collate(data.items, rows, None).labels.tolist() == [0, 1]


@pytest.mark.parametrize("module", [probes, schedules])
def test_examples_run(module: Any) -> None:
    """An example that was never tried, or whose output has changed."""
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
