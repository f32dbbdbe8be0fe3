"""Models by name: what `Output` holds, sizes, embeddings, timm's models, mistakes in names and options."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdzoo.errors import KdzooError
from kdzoo_vision.models import MODELS, build, count_parameters
from kdzoo_vision.nets import ImageModel

LIGHT = sorted(name for name, spec in MODELS.items() if spec.parameters < 1_000_000)


def small(name: str, **changes: object) -> ImageModel:
    return build(name, **{"num_classes": 10, "in_channels": 1, "image_size": 28, **changes}).eval()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_parameters_are_as_documented(name: str) -> None:
    """A change in architecture that nobody wrote down would make old records incomparable."""
    with torch.device("meta"):  # counts only; weights would cost a second
        assert count_parameters(small(name)) == MODELS[name].parameters


@pytest.mark.parametrize("name", LIGHT)
def test_output_of_own_models(name: str) -> None:
    """Shapes that a method relies on: (B, C), (B, W, H, H) with H falling, (B, F)."""
    model = small(name)
    out = model(torch.randn(3, 1, 28, 28))
    assert out.logits is not None
    assert out.logits.shape == (3, 10)
    *stages, pooled = out.features.items()
    assert [key for key, _ in stages] == [f"stage{k}" for k in range(1, len(stages) + 1)]
    sides = [value.shape[2] for _, value in stages]
    assert sides == sorted(sides, reverse=True)
    assert all(value.ndim == 4 and value.shape[2] == value.shape[3] for _, value in stages)
    assert pooled[0] == "pooled"
    assert pooled[1].shape == (3, model.num_features)
    assert out.embedding is pooled[1]


@pytest.mark.parametrize("name", LIGHT)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    """A layer left out of forward would train nothing and count as size all the same."""
    model = small(name, embedding_dim=5).train()
    out = model(torch.randn(4, 1, 28, 28))
    assert out.logits is not None
    assert out.embedding is not None
    further = sum(said.square().sum() for said in out.extra.values())  # heads beside the one of the logits
    (out.logits.square().sum() + out.embedding.square().sum() + further).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_pooled_is_the_mean_of_the_last_stage_and_logits_are_linear_in_it() -> None:
    model = small("cnn-s")
    out = model(torch.randn(2, 1, 28, 28))
    torch.testing.assert_close(out.features["pooled"], out.features["stage3"].flatten(2).mean(2))
    head = model.classifier
    assert isinstance(head, nn.Linear)
    torch.testing.assert_close(out.logits, out.features["pooled"] @ head.weight.T + head.bias)


def test_features_are_nonnegative_where_a_relu_ends_the_stage() -> None:
    """Hints and attention maps are defined on activations; features before the ReLU would change both."""
    for name in ("cnn-s", "resnet-8"):
        out = small(name)(torch.randn(2, 1, 28, 28))
        assert all(value.min() >= 0 for value in out.features.values())
        assert all(value.max() > 0 for value in out.features.values())


def test_embedding_head() -> None:
    x = torch.randn(4, 1, 28, 28)
    raw = small("cnn-xs", num_classes=None, embedding_dim=6)
    out = raw(x)
    assert out.logits is None
    assert out.embedding is not None
    assert out.embedding.shape == (4, 6)
    assert raw.embedding_dim == 6
    unit = small("cnn-xs", num_classes=None, embedding_dim=6, normalize=True)
    unit.load_state_dict(raw.state_dict())
    expected = out.embedding / out.embedding.norm(dim=1, keepdim=True)
    torch.testing.assert_close(unit(x).embedding, expected)
    assert not torch.allclose(out.embedding.norm(dim=1), torch.ones(4), atol=1e-3)


def test_memory_layout_of_the_input_does_not_matter() -> None:
    for channels in (1, 3):
        model = small("cnn-s", in_channels=channels)
        x = torch.randn(2, channels, 28, 28)
        expected = model(x).logits
        flipped = x.transpose(2, 3).contiguous().transpose(2, 3)
        for other in (x.to(memory_format=torch.channels_last), flipped):
            torch.testing.assert_close(model(other).logits, expected)


def test_weights_are_contiguous() -> None:
    """safetensors refuses weights in channels-last layout."""
    model = small("resnet-8").train()
    out = model(torch.randn(4, 1, 28, 28))
    assert out.logits is not None
    out.logits.sum().backward()
    assert all(value.is_contiguous() for value in model.state_dict().values())


def test_cifar_stems_keep_resolution() -> None:
    """With ImageNet's stem the last map of a 32-pixel image would have one pixel."""
    out = small("resnet-18", in_channels=3, image_size=32, num_classes=100)(torch.randn(1, 3, 32, 32))
    assert [out.features[key].shape[2] for key in ("stem", "stage1", "stage4")] == [32, 32, 4]
    out = small("vgg-11", in_channels=3, image_size=32, num_classes=100)(torch.randn(1, 3, 32, 32))
    assert [out.features[f"stage{k}"].shape[1:3] for k in range(1, 6)] == [
        (64, 32), (128, 16), (256, 8), (512, 4), (512, 2),
    ]  # fmt: skip
    assert out.logits is not None
    assert out.logits.shape == (1, 100)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("timm:resnet18", 64),
        ("mobilenetv3_small_050", 64),
        ("vit_tiny_patch16_224", 64),
        ("deit_tiny_distilled_patch16_224", 64),
        ("timm:convnext_atto", 64),
    ],
)
def test_timm_models_give_timm_logits(name: str, side: int) -> None:
    """Pooling once and reusing it must not change what timm computes, whatever its head."""
    model = small(name, in_channels=3, image_size=side, embedding_dim=4)
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        out, expected = model(x), model.model(x)
    torch.testing.assert_close(out.logits, expected, rtol=1e-4, atol=1e-5)
    assert out.embedding is not None
    assert out.embedding.shape == (2, 4)
    assert out.features["pooled"].shape == (2, model.num_features)
    assert out.features["stage4"].ndim == 4


def test_timm_stages_skip_the_stem_and_thin_out_deep_nets() -> None:
    """`stage1` of a ResNet is layer1 as in papers; a ViT of 12 blocks names four."""
    resnet = small("timm:resnet18", in_channels=3, image_size=64)(torch.randn(1, 3, 64, 64))
    assert {key: value.shape[1] for key, value in resnet.features.items()} == {
        "stem": 64, "stage1": 64, "stage2": 128, "stage3": 256, "stage4": 512, "pooled": 512,
    }  # fmt: skip
    vit = small("vit_tiny_patch16_224", in_channels=3, image_size=32)
    assert vit.indices == [2, 5, 8, 11]
    vit_s = small("vit-s")
    assert vit_s.indices == [0, 1, 2, 3]


def test_options() -> None:
    assert small("cnn-s", widths=(4, 4), strides=(2, 1)).num_features == 4
    assert small("vit-xs", depth=1).indices == [0]
    assert small("timm:resnet18", stem="small", in_channels=3).model.conv1.kernel_size == (3, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cnn-z", {}, r"unknown model 'cnn-z'. Did you mean .*cnn-"),
        ("timm:resnet19", {}, r"Did you mean timm:resnet"),
        ("cnn-s", {"widht": (4,)}, r"unknown option of cnn-s 'widht'. Did you mean widths"),
        ("cnn-s", {"pretrained": True}, "no weights exist for this architecture"),
        ("resnet-8", {"depth": 9}, r"6n \+ 2"),
        ("vit-xs", {"patch": 5}, "divisor of image_size"),
        ("timm:resnet18", {"colour": 1}, "timm refuses the options"),
        ("timm:resnet18", {"stem": "tiny"}, "'standard' or 'small' expected"),
        ("timm:convnext_atto", {"stem": "small"}, "for timm's ResNets"),
        ("timm:resnet18", {"stem": "small", "pretrained": True}, "some layers would be random"),
        ("timm:resnet33ts", {"pretrained": True, "stem": "small"}, "some layers would be random"),
    ],
)
def test_mistakes_are_explained(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(KdzooError, match=message):
        small(name, **options)


def test_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without network a pretrained model must not turn into a random one."""
    import timm.models._builder as builder

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(builder, "load_pretrained", offline)
    with pytest.raises(KdzooError, match=r"could not be loaded \(ConnectionError: no route to host\)"):
        small("timm:resnet18", in_channels=3, pretrained=True)


def test_pretrained_reaches_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag must not get lost on its way; the head for other classes stays random, as timm does it."""
    import timm.models._builder as builder

    seen = []
    monkeypatch.setattr(builder, "load_pretrained", lambda *_, **given: seen.append(given["num_classes"]))
    small("timm:resnet18", in_channels=3, pretrained=True)
    assert seen == [10]
