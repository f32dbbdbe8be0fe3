"""Whether a view is still the one that was drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdzoo.drawn import Drawn


def drawn(copies: bool) -> tuple[Drawn, dict[str, Any]]:
    views = {
        "image": torch.zeros(4, 3),
        "pair": {"x": torch.zeros(4), "y": torch.ones(4)},
        "words": ["a", "b"],
        "ids": {"x": torch.ones(4), "vocabulary": "v1"},
    }
    names = frozenset(views)
    return Drawn(
        [("train", torch.tensor([1, 2]), names), ("pool", torch.tensor([5, 6]), frozenset({"image"}))],
        views,
        copies,
    ), views


@pytest.mark.parametrize("copies", [False, True])
def test_edits_of_views_are_noticed(copies: bool) -> None:
    """A stale answer to a mixed image is the one thing that a cache must never give."""
    edits: list[Callable[[dict[str, Any]], Any]] = [
        lambda views: views["image"].add_(1),
        lambda views: views["image"].__setitem__(0, 1.0),
        lambda views: views["image"][2:].fill_(1),
        lambda views: views.__setitem__("image", views["image"].lerp(torch.ones(4, 3), 0.5)),
        lambda views: views.__setitem__("image", views["image"].double()),
    ]
    for edit in edits:
        made, views = drawn(copies)
        assert made.untouched("image", views["image"])
        edit(views)
        assert not made.untouched("image", views["image"])
    made, views = drawn(copies)
    assert made.untouched("pair", views["pair"])
    views["pair"]["y"].mul_(2)
    assert not made.untouched("pair", views["pair"])
    assert made.untouched("ids", views["ids"]), "what is the same for every row is no reason to ask again"
    views["ids"]["vocabulary"] = "v2"
    assert not made.untouched("ids", views["ids"])
    assert not made.untouched("words", views["words"]), "what is not made of tensors could change unseen"
    assert not made.untouched("new", torch.zeros(4))


def test_writes_around_torch_are_noticed_in_prepare_batch() -> None:
    """Mixup written in numpy leaves torch's version counter alone."""
    made, views = drawn(copies=True)
    views["image"].numpy()[0] = 3
    assert not made.untouched("image", views["image"])


def test_pieces_follow_the_rows_of_a_view() -> None:
    """A view that one stream lacks has fewer rows than the batch."""
    made, _ = drawn(False)
    assert [(piece.split, piece.rows.tolist()) for piece in made.pieces("image")] == [
        ("train", [1, 2]),
        ("pool", [5, 6]),
    ]
    assert [(piece.split, piece.size) for piece in made.pieces("pair")] == [("train", 2)]
