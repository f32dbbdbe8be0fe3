"""Two ranks under the Trainer, as torchrun starts them, against one process: plain, and with the weights shared."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdzoo import roles
from kdzoo.errors import KdzooError
from kdzoo.testing import toy
from kdzoo_llm import pruning
from kdzoo_llm.sharding import Shards

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not
import one_llm_rank
import tiny_papers

LETTERS = "abcdefghijklmnopqrstuvwxyz 0123456789"
# The student writes the answers in half of the steps; they and the references differ in length.
FULL = {"optimizer": "adamw", "lr": 0.001, "clip": 0.5, "on_policy": 0.5}
LORA = {"optimizer": "sgd", "rank": 3, "lr": 0.1, "clip": 0.5, "accumulate": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("gkd", FULL),
    "shard": ("gkd", {**FULL, "shard": "true"}),
    "shard-lora": ("llm-neo", {**LORA, "shard": "true"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, two_ranks: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("llm-ranks")
    tiny_papers.write_infinity(folder / "data")
    tiny_papers.save_model(folder / "data/llama", "llama", LETTERS)
    codes, errors = two_ranks(
        Path(one_llm_rank.__file__), str(folder), json.dumps(CASES), home=folder / "home"
    )
    assert codes == [0, 0], "\n".join(errors)
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(2)]


def alone(folder: Path, place: Path, case: str) -> dict[str, torch.Tensor]:
    """The student that one process trains with the whole batch, without `shard`."""
    method, settings = CASES[case]
    changes = {name: value for name, value in settings.items() if name != "shard"}
    one_llm_rank.train(place, folder / "data", method, changes)
    return load_file(place / "student.safetensors")


def gap(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_with_half_a_batch_equal_one_with_all_of_it(
    folder: Path, said: list[dict[str, Any]], tmp_path: Path, case: str
) -> None:
    """Catches a gradient averaged once too often, a norm over a part of the weights, and tokens counted by rank."""
    theirs = load_file(folder / case / "0/student.safetensors")
    assert gap(alone(folder, tmp_path, case), theirs) < 1e-6
    for rank in range(2):
        assert said[rank][case]["ranks"] == 2
        assert said[rank][case]["curves"]["val/nll"]
        assert said[rank][case]["hash"] != said[rank][case]["facts"]["init_hash"], "nothing was trained"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_afterwards_the_weights_are_plain_and_equal(said: list[dict[str, Any]], case: str) -> None:
    """A part left behind would be saved, hashed and evaluated as if it were the whole."""
    first, second = said[0][case], said[1][case]
    assert first["plain"]
    assert second["plain"]
    assert first["hash"] == second["hash"]
    assert first["curves"] == second["curves"]


@pytest.mark.slow
def test_each_rank_holds_half(said: list[dict[str, Any]]) -> None:
    """Weights that are whole on every rank train as well, and save nothing."""
    for rank in range(2):
        assert said[rank]["shard"]["facts"]["held"] < 0.55 * said[rank]["plain"]["facts"]["held"]


@pytest.mark.slow
def test_stopped_and_resumed_it_is_the_same_run(folder: Path, said: list[dict[str, Any]]) -> None:
    """Catches momentum that is cut at another place than the weights, and ranks that stop at different steps."""
    assert [rank["stopped"] for rank in said] == [rank["shard"] for rank in said]
    whole, stopped = (load_file(folder / name / "0/student.safetensors") for name in ("shard", "stopped"))
    assert gap(whole, stopped) == 0


@pytest.mark.slow
def test_one_process_goes_on_from_its_checkpoint(folder: Path, tmp_path: Path) -> None:
    """A checkpoint with parts in it could be read by as many ranks as have written it only."""
    shutil.copytree(folder / "checkpoint", tmp_path, dirs_exist_ok=True)
    went_on = alone(folder, tmp_path, "shard")
    assert gap(went_on, load_file(folder / "shard/0/student.safetensors")) < 1e-6


@pytest.mark.slow
def test_a_model_in_parts_is_not_to_be_called(said: list[dict[str, Any]]) -> None:
    """torch would complain about mixed kinds of tensors somewhere in the model."""
    for rank in range(2):
        assert "'student' was called outside the loss" in said[rank]["careless"]["error"]


def test_what_would_see_parts_is_refused(tmp_path: Path) -> None:
    """An average would follow a part of the weights, and a hook on a gradient would never be called."""
    moved = toy.run(tmp_path)
    roles.build(moved)
    with pytest.raises(KdzooError, match="moves the role 'average' itself"):
        Shards(moved)
    pruned = toy.run(tmp_path, roles=toy.ALONE)
    roles.build(pruned)
    pruning.hold_zeros(pruned.models["student"])
    with pytest.raises(KdzooError, match=r"the gradient of body\.weight of role 'student'"):
        Shards(pruned)
    other = toy.run(tmp_path, roles=toy.ALONE)
    roles.build(other)
    other.make_optimizer = lambda run: torch.optim.SGD(run.models["student"].parameters(), lr=0.1)
    with pytest.raises(KdzooError, match="an optimiser of its own"):
        Shards(other)


def test_writing_in_parts_is_refused(tmp_path: Path) -> None:
    """Each rank would wait for the others at every token, and they may be done already."""
    run = toy.run(tmp_path, roles=toy.ALONE)
    run.models["student"] = tiny_llama()
    with pytest.raises(KdzooError, match="was asked to write"):
        Shards(run).twins["student"].generate()  # type: ignore[operator]


def tiny_llama() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1
        )
    )
