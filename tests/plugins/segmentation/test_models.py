"""Models by name: what `Output` holds, every parameter trained, mistakes in names."""

from __future__ import annotations

import pytest
import torch

from kdzoo.errors import KdzooError
from kdzoo_segmentation.models import SPECS, build, side

TINY = sorted(name for name in SPECS if name.endswith(("-xs", "-s", "-m")))


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_name_can_be_built(name: str) -> None:
    """A paper's model that fails only on the GPU machine; on ``meta``, where weights cost nothing."""
    facts = side(name, 5, 3, 64, 96)
    assert facts.classes == 5
    assert facts.layers is not None
    assert facts.layers["score"][0] == 5
    stages = SPECS[name]["backbone"].get("num_stages", 4)
    assert {*(f"stage{k}" for k in range(1, stages + 1)), "head"} <= set(facts.layers)
    heights = [facts.layers[f"stage{k}"][1] for k in range(1, stages + 1)]
    assert heights == sorted(heights, reverse=True)


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_gets_a_gradient_and_scores_are_the_classifier_s(name: str) -> None:
    """A layer that forward leaves out; a "head" that is not what the classifier sees."""
    torch.manual_seed(0)
    model = build(name, classes=4, channels=2).train()
    image = torch.randn(2, 2, 48, 64)
    out = model(image)
    assert out.logits is not None
    assert out.logits.shape == (2, 4, 48, 64)
    extra = [score.square().sum() for score in out.extra.get("auxiliary", [])]
    (out.logits.square().sum() + sum(extra)).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    model.eval()
    with torch.no_grad():
        out = model(image)
        classifier = model.net.decode_head.conv_seg
        torch.testing.assert_close(classifier(out.features["head"]), out.features["score"])


def test_patch_embeddings_are_what_the_blocks_get() -> None:
    """Another stage's, or one before its norm; and maps that are rows for columns."""
    torch.manual_seed(0)
    model = build("segformer-xs", classes=4).eval()
    image = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        features = model(image).features
        below = image
        for k, stage in enumerate(model.net.backbone.layers, 1):
            embed = stage[0]
            convolved = embed.projection(below)
            expected = embed.norm(convolved.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            torch.testing.assert_close(features[f"embed{k}"], expected)
            below = features[f"stage{k}"]
    assert not any(key.startswith("embed") for key in build("fcn-r18-xs", classes=4).eval()(image).features)
    assert not any(stage[0]._forward_hooks for stage in model.net.backbone.layers)


def test_first_weights_depend_on_the_seed_alone() -> None:
    """mmseg's rules draw from torch's default generator; a second build in a process must not differ."""
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(build("deeplabv3p-r18-xs", classes=3, channels=1).state_dict())
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_a_classifier_that_is_to_begin_apart_does() -> None:
    """mmseg initialises last and would put its sd of 0.01 in place of Kaiming's."""
    torch.manual_seed(0)
    apart, near = (
        float(build(name, classes=7).net.decode_head.conv_seg.weight.detach().std())
        for name in ("psp-r18x3-s", "psp-r18-s")
    )
    assert abs(near - 0.01) < 0.003
    assert abs(apart - (2 / 32) ** 0.5) < 0.08


def test_unknown_name() -> None:
    with pytest.raises(KdzooError, match="Did you mean psp-r18-xs"):
        build("psp-r18-x", classes=3)
