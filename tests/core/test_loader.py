"""Orders and batches: seekable, independent of each other, counted over the whole step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.loader import Loader, Order, join
from kdzoo.method import Batch
from kdzoo.rng import mix
from kdzoo.runs import Run
from kdzoo.task import Data
from kdzoo.testing import toy


def order(
    batch: int = 8, seed: int = 0, name: str = "train", per_group: int = 0, split: str = "train"
) -> Order:
    return Order(toy.data(None, split), seed, name, batch, per_group)


def endless(seed: int, name: str, n: int, count: int) -> list[int]:
    """The order by its definition: shuffled epochs, one after the other."""
    rows: list[int] = []
    epoch = 0
    while len(rows) < count:
        generator = torch.Generator().manual_seed(mix(seed, "order", name, epoch))
        rows += torch.randperm(n, generator=generator).tolist()
        epoch += 1
    return rows[:count]


@pytest.mark.parametrize("batch", [1, 7, 8, 40, 41, 100])
def test_batches_are_slices_of_shuffled_epochs(batch: int) -> None:
    """A batch over the edge of an epoch, one as large as an epoch and one larger lose and repeat nothing."""
    made = [row for step in range(9) for row in order(batch).rows(step)[0].tolist()]
    assert made == endless(0, "train", 40, 9 * batch)


def test_an_order_can_be_entered_anywhere() -> None:
    """A resumed run begins in the middle."""
    whole, late = order(7), order(7)
    steps = [whole.rows(step) for step in range(30)]
    for step in (29, 3, 17):
        rows, seeds = late.rows(step)
        assert torch.equal(rows, steps[step][0])
        assert torch.equal(seeds, steps[step][1])


def test_a_sample_has_one_seed_an_epoch() -> None:
    """Augmentation depends on (seed, epoch, sample) and not on the size of the batch or the place in it."""

    def seeds(batch: int, epoch: int, seed: int = 0) -> dict[int, int]:
        made = order(batch, seed)
        flat = [
            pair
            for step in range(80 // batch)
            for pair in zip(*map(torch.Tensor.tolist, made.rows(step)), strict=True)
        ]
        return dict(flat[40 * epoch : 40 * (epoch + 1)])

    assert seeds(8, 0) == seeds(5, 0) == seeds(16, 0)
    assert seeds(8, 1) == seeds(5, 1)
    assert all(seeds(8, 0)[row] != seeds(8, 1)[row] for row in range(40))
    assert all(seeds(8, 0)[row] != seeds(8, 0, seed=1)[row] for row in range(40))


def test_seed_and_stream_give_another_order() -> None:
    """Two streams with one order would pair the same samples in every run."""
    assert order().rows(0)[0].tolist() != order(seed=1).rows(0)[0].tolist()
    assert order().rows(0)[0].tolist() != order(name="pool").rows(0)[0].tolist()


def test_the_hash_names_the_order() -> None:
    """Equal hashes are what makes two arms comparable."""
    first = order().hash(20)
    assert first == order().hash(20)
    others = [order(seed=1), order(batch=10), order(name="pool"), order(per_group=2), order(split="val")]
    assert len({first, order().hash(21), *(other.hash(20) for other in others)}) == 7


def test_another_stream_leaves_the_labelled_order_alone(tmp_path: Path) -> None:
    """An arm that also reads unlabelled data must see the labelled data as the other arms do."""
    alone = toy.run(tmp_path / "a").orders()
    joined = toy.run(tmp_path / "b", streams=("train", "pool")).orders()
    assert [one.name for one in joined] == ["train", "pool"]
    assert alone[0].hash(20) == joined[0].hash(20)


@pytest.mark.parametrize("per_group", [2, 4])
def test_groups_are_drawn_whole(per_group: int) -> None:
    """Metric learning needs positives: so many rows of each of so many groups, none twice where there are enough."""
    made = order(8, per_group=per_group)
    labels = toy.data(None, "train").groups
    assert labels is not None
    for step in range(30):
        rows, seeds = made.rows(step)
        for part in rows.split(per_group):
            assert len(set(labels[part].tolist())) == 1
            assert len(set(part.tolist())) == per_group
        assert len(set(seeds.tolist())) == 8
        again, _ = order(8, per_group=per_group).rows(step)
        assert torch.equal(rows, again)


def test_groups_come_equally_often() -> None:
    made, labels = order(4, per_group=2), toy.data(None, "train").groups
    assert labels is not None
    counts = Counter(int(labels[rows[0]]) for step in range(30) for rows in made.rows(step)[0].split(2))
    assert set(counts.values()) == {20}


def test_a_group_that_is_too_small_is_drawn_again() -> None:
    """With two pictures of a class and four asked for, both come twice, in two views."""
    groups = torch.tensor([0, 0, 1, 1, 1, 1])
    data = Data(None, [str(row) for row in range(6)], lambda *_: Batch([], {}), "x", groups)
    rows, seeds = Order(data, 0, "train", 8, 4).rows(0)
    small = next(part for part in rows.split(4) if groups[part[0]] == 0)
    assert sorted(small.tolist()) == [0, 0, 1, 1]
    assert len(set(seeds.tolist())) == 8


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: order(0), "batch is 0, expected at least 1"),
        (lambda: Order(Data(None, [], lambda *_: Batch([], {}), "x"), 0, "train", 8), "is empty"),
        (lambda: order(9, per_group=2), "batch 9 is no multiple of per_group 2.*Use 8"),
        (lambda: order(8, per_group=2, split="pool"), "its split has no groups"),
    ],
)
def test_impossible_orders_are_refused(make, said) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(KdzooError, match=said):
        make()


# --- the loader -------------------------------------------------------------------------------------------------


def test_micro_batches_and_ranks_share_a_batch(tmp_path: Path) -> None:
    """Together they are the whole batch, each sample once, whatever the division."""
    run = toy.run(tmp_path, settings={"batch": 24, "steps": 3})
    whole = [batch.ids for batch in Loader(run, run.orders(), 1)]
    halves = [batch.ids for batch in Loader(run, run.orders(), 2)]
    assert [halves[2 * step] + halves[2 * step + 1] for step in range(3)] == whole
    drawn = [order.rows(0) for order in run.orders()]
    parts = [
        Loader(run, run.orders(), 2, rank, 3)._collate(drawn, micro).ids
        for micro in range(2)
        for rank in range(3)
    ]
    assert [name for part in parts for name in part] == whole[0]


def test_norm_counts_the_whole_step(tmp_path: Path) -> None:
    """A mean over micro-batches of unequal counts is not the mean over the step."""
    run = toy.run(
        tmp_path,
        streams=("train", "pool"),
        settings={"batch": 8, "pool_batch": 16, "steps": 2, "accumulate": 4},
    )
    batches = list(run.loader())
    assert len(batches) == len(run.loader()) == 8
    assert [batch.counts for batch in batches] == [{"item": 6, "label": 2}] * 8
    assert [batch.norm for batch in batches] == [{"item": 24, "label": 8, "step": 4}] * 8


def test_a_loader_serves_the_steps_that_are_left(tmp_path: Path) -> None:
    run = toy.run(tmp_path, settings={"steps": 10})
    whole = [batch.ids for batch in run.loader()]
    run.step = 6
    assert [batch.ids for batch in run.loader()] == whole[6:]
    assert len(run.loader()) == 4


@pytest.mark.parametrize(
    ("batch", "accumulate", "ranks", "fits"), [(8, 2, 2, True), (8, 3, 1, False), (9, 1, 2, False)]
)
def test_a_batch_that_cannot_be_shared_equally_is_refused(
    tmp_path: Path, batch: int, accumulate: int, ranks: int, fits: bool
) -> None:
    """Unequal parts would leave samples out in silence."""
    run = toy.run(tmp_path, settings={"batch": batch})
    if fits:
        Loader(run, run.orders(), accumulate, 0, ranks)
        return
    with pytest.raises(KdzooError, match=f"cannot be shared equally.*multiple of {accumulate * ranks}"):
        Loader(run, run.orders(), accumulate, 0, ranks)


class Counts:
    """An extension that counts tokens."""

    @hookimpl
    def prepare_batch(self, run: Run, batch: Batch) -> None:
        batch.counts["token"] = 3 * len(batch.ids)


def test_prepare_batch_may_count(tmp_path: Path) -> None:
    """Counts that a hook changes reach the norm: it is taken after the hooks of all micro-batches."""
    run = toy.run(tmp_path, add=[Counts()], settings={"steps": 1, "accumulate": 2})
    assert [batch.norm["token"] for batch in run.loader()] == [24, 24]


def test_join_puts_streams_together() -> None:
    one = Batch(["a"], {"image": torch.ones(1, 2)}, torch.tensor([3]), {"item": 1, "label": 1})
    two = Batch(["b"], {"image": torch.zeros(1, 2), "weak": torch.zeros(1)}, torch.tensor([-1]), {"item": 1})
    both = join([one, two])
    assert both.ids == ["a", "b"]
    assert both.views["image"].tolist() == [[1, 1], [0, 0]]
    assert both.views["weak"].shape == (1,)
    assert both.labels.tolist() == [3, -1]
    assert both.counts == {"item": 2, "label": 1}
    assert join([one]) is one
