"""The ML-Decoder: one query a label, shared queries, dropout, and the backbone below it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdzoo.errors import KdzooError
from kdzoo_vision.ml_decoder import LabelModel, MLDecoder
from kdzoo_vision.models import build


def decoder(**changes: object) -> MLDecoder:
    torch.manual_seed(0)
    options = {"width": 8, "hidden": 12, "heads": 2, "dropout": 0.0} | changes
    return MLDecoder(5, int(options.pop("labels", 7)), **options)  # type: ignore[arg-type]


def maps(count: int = 3) -> Tensor:
    return torch.randn(count, 5, 2, 3, generator=torch.Generator().manual_seed(1))


def slow(net: MLDecoder, maps: Tensor) -> tuple[Tensor, Tensor]:
    """One image, one query, one head at a time, from the formula."""
    state = net.state_dict()
    embeddings = []
    size = net.query.in_features // net.heads
    for image in maps:
        tokens = net.tokens(image.flatten(1).T).relu()
        key, value = net.key_value(tokens).chunk(2, dim=1)
        rows = []
        for start in net.norm1(2 * state["queries"]):
            query, read = net.query(start), []
            for h in range(net.heads):
                part = slice(h * size, (h + 1) * size)
                weights = torch.softmax(key[:, part] @ query[part] / math.sqrt(size), 0)
                read.append(weights @ value[:, part])
            state_ = net.norm2(start + net.merge(torch.cat(read)))
            rows.append(net.norm3(state_ + net.shrink(net.expand(state_).relu())))
        embeddings.append(torch.stack(rows))
    found = torch.stack(embeddings)
    each = -(-net.labels // found.shape[1])
    logits = [
        found[:, c // each] @ net.weight[c // each, :, c % each] + net.bias[c] for c in range(net.labels)
    ]
    return found, torch.stack(logits, 1)


@pytest.mark.parametrize("groups", [None, 4, 1])
def test_against_the_formula(groups: int | None) -> None:
    """Would catch labels read from another query's group, heads mixed up, or a missing residual."""
    net = decoder(groups=groups)
    with torch.no_grad():
        net.bias.uniform_()
        found, expected = net(maps()), slow(net, maps())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found[0].shape == (3, groups or 7, 8)
    assert found[1].shape == (3, 7)


def test_queries_are_fixed_and_kept() -> None:
    """Would catch queries that are trained, or that a loaded model draws anew: its classifiers would read noise."""
    net = decoder()
    assert "queries" not in dict(net.named_parameters())
    other = decoder(labels=7)
    torch.manual_seed(1)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.queries, net.queries)
    net(maps())[1].sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_another_number_of_heads_does_not_load() -> None:
    """Would catch weights that fit by their shapes and give other numbers."""
    with pytest.raises(RuntimeError, match="scale"):
        decoder(heads=4).load_state_dict(decoder(heads=2).state_dict())


def test_dropout_acts_in_training_only() -> None:
    """Would catch a teacher that answers at random, and a dropout that never acts."""
    net = decoder(dropout=0.5)
    assert not torch.equal(net(maps())[1], net(maps())[1])
    net.eval()
    assert torch.equal(net(maps())[1], net(maps())[1])
    plain = decoder(dropout=0.0)
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(plain.train()(maps()), net(maps()))


def test_an_image_answers_for_itself() -> None:
    """Would catch attention across the images of a batch."""
    net = decoder().eval()
    whole, alone = net(maps()), net(maps()[1:2])
    torch.testing.assert_close(whole[0][1:2], alone[0])
    torch.testing.assert_close(whole[1][1:2], alone[1])


def test_refusals() -> None:
    """Would catch a reshape error instead of the settings that are wrong."""
    with pytest.raises(KdzooError, match=r"width 8 and 3 heads.*label_dim"):
        decoder(heads=3)
    with pytest.raises(KdzooError, match="9 queries for 7 labels"):
        decoder(groups=9)


def test_label_model_reads_the_last_map() -> None:
    """Would catch a head on an earlier stage, or on the pooled vector, which has one token."""
    torch.manual_seed(0)
    backbone = build("cnn-s", num_classes=None, in_channels=3, image_size=32)
    net = LabelModel(backbone, 6, (3, 32, 32), width=8, hidden=8, heads=2, dropout=0.0).eval()
    x = torch.randn(2, 3, 32, 32)
    said = net(x)
    embeddings, logits = net.decoder(backbone(x).features["stage3"])
    torch.testing.assert_close(said.logits, logits)
    torch.testing.assert_close(said.extra["labels"], embeddings)
    assert said.embedding is not None
    assert said.embedding.shape == (2, 32)
    shared = LabelModel(backbone, 6, (3, 32, 32), width=8, hidden=8, heads=2, groups=2)
    assert "labels" not in shared(x).extra


def test_building_moves_no_statistics() -> None:
    """Would catch the blank image, which only finds the map's width, in batch norm's running means."""
    backbone = build("cnn-s", num_classes=None, in_channels=3, image_size=32)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    LabelModel(backbone, 6, (3, 32, 32), width=8, hidden=8, heads=2)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    assert backbone.training


def test_timm_backbone() -> None:
    """Would catch a stem taken for the last stage."""
    backbone = build("timm:resnet10t", num_classes=None, in_channels=3, image_size=32)
    net = LabelModel(backbone, 5, (3, 32, 32), width=8, hidden=8, heads=2)
    assert net.decoder.tokens.in_features == 512
    assert net(torch.zeros(2, 3, 32, 32)).logits.shape == (2, 5)
