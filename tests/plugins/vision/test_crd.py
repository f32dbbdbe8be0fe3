"""CRD's memory and noise, and the layers that attention transfer and similarity preservation ask for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kdzoo.errors import KdzooError
from kdzoo.fit import StepModule
from kdzoo.runs import Run
from kdzoo_vision.methods import crd

Open = Callable[..., Run]
SMALL = ("noise=7", "embed_dim=4")


def memory_of(run: Run) -> crd.ContrastMemory:
    memory = run.models["memory"]
    assert isinstance(memory, crd.ContrastMemory)
    return memory


def test_memory_moves_only_what_the_batch_held(open_arm: Open) -> None:
    """A row of another sample that moves would teach the student someone else's view."""
    run = open_arm("crd", "fashion-few-labels", set=SMALL)
    memory, batch = memory_of(run), next(iter(run.loader()))
    before = memory.student.clone()
    StepModule(run)(batch)
    run.hook.after_step(run=run, batch=batch)
    moved = (memory.student != before).any(dim=1).nonzero().flatten().tolist()
    assert sorted(moved) == sorted(memory.rows[name] for name in batch.ids)
    assert torch.allclose(memory.student[moved].norm(dim=1), torch.ones(len(moved)), atol=1e-5)


def test_constants_are_set_once(open_arm: Open) -> None:
    """A constant that follows each batch makes the scores of two batches incomparable."""
    run = open_arm("crd", "fashion-few-labels", set=SMALL)
    module, batch = StepModule(run), next(iter(run.loader()))
    module(batch)
    first = memory_of(run).z_student.clone()
    assert first > 0
    module(batch)
    assert torch.equal(memory_of(run).z_student, first)


def test_scores_agree_with_gathered_rows(open_arm: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of all scores, in parts or whole, against the official way: gather the rows, multiply."""
    memory = crd.ContrastMemory([str(i) for i in range(9)], 4, temperature=0.5, momentum=0.5)
    anchors, pairs = torch.nn.functional.normalize(torch.randn(5, 4), dim=1), torch.randint(9, (5, 3))
    monkeypatch.setattr(crd, "TABLE", 18)  # two anchors at a time
    found = memory.scores(anchors, "teacher", pairs)
    plain = (torch.einsum("bd,bkd->bk", anchors, memory.teacher[pairs]) / 0.5).exp()
    assert torch.allclose(found, plain / (plain.mean() * 9), rtol=1e-5)


def test_noise_of_the_own_class_is_left_out() -> None:
    """Pushing two shirts apart is what the option is there to avoid; unseen images count as of another class."""
    memory = crd.ContrastMemory(list("abcd"), 2, temperature=0.5, momentum=0.5)
    memory.classes.copy_(torch.tensor([0, 0, 1, crd.UNSEEN]))
    pairs = torch.tensor([[0, 0, 1, 2, 3]])
    assert crd.counted(memory, pairs, torch.tensor([0])).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize(
    ("method", "setting"),
    [("attention-transfer", "stages=stage9"), ("similarity-preserving", "layer=stage9")],
)
def test_a_layer_that_is_not_there(open_arm: Open, method: str, setting: str) -> None:
    """A misspelt layer must name those there are, not end in a KeyError."""
    with pytest.raises(KdzooError, match="Did you mean stage3"):
        open_arm(method, "fashion-few-labels", set=(setting,))
