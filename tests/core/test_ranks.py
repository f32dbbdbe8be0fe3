"""Two processes on one machine, as torchrun starts them, against one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from kdzoo.artefacts import Store
from kdzoo.fit import fit_stage
from kdzoo.testing import toy

CHILD = Path(__file__).with_name("one_rank.py")
# Without dropout and noise, whose seeds belong to a rank, half of a batch on each of two ranks is the whole batch.
STILL = {"dropout": 0.0, "noise": 0.0}
CASES: dict[str, dict[str, Any]] = {
    "plain": STILL,
    "accumulate": {**STILL, "accumulate": 2},
    "clip": {**STILL, "clip": 0.5, "optimizer": "adamw", "lr": 0.01},
}


class Pair:
    """What two ranks said and wrote before rank 1 failed."""

    def __init__(self, folder: Path, two_ranks: Any) -> None:
        self.folder = folder
        self.codes, self.errors = two_ranks(CHILD, str(folder), json.dumps(CASES), home=folder / "home")
        said = [folder / f"said-{rank}.json" for rank in range(2)]
        assert all(path.exists() for path in said), "\n".join(self.errors)
        self.said = [json.loads(path.read_text()) for path in said]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, two_ranks: Any) -> Pair:
    return Pair(tmp_path_factory.mktemp("ranks"), two_ranks)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_with_half_a_batch_equal_one_with_all_of_it(pair: Pair, tmp_path: Path, case: str) -> None:
    """Catches a gradient averaged once too often, a norm over one rank only, and ranks that see the same samples."""
    run = toy.run(tmp_path, settings=CASES[case], streams=("train", "pool"))
    fit_stage(run)
    for role in ("student", "connector", "average"):
        ours, theirs = (
            load_file(tmp_path / f"{role}.safetensors"),
            load_file(pair.folder / case / "0" / f"{role}.safetensors"),
        )
        for name, value in ours.items():
            assert (value - theirs[name]).abs().max() < 1e-6, (role, name)
    for rank in range(2):
        said = pair.said[rank][case]
        assert said["ranks"] == 2
        assert said["facts"] == run.facts, "the hashes of initialisation and order must not depend on ranks"
        assert said["cost"] == {name: getattr(run.cost, name) for name in said["cost"]}
        for name, points in run.logs.items():
            assert [value for _, value in said["logs"][name]] == pytest.approx(
                [v for _, v in points], abs=1e-5
            )


@pytest.mark.slow
def test_ranks_resume_from_the_checkpoint_of_rank_0(pair: Pair) -> None:
    """Catches ranks that go on from different steps, and randomness that is not a function of step and rank."""
    stopped, whole = (
        load_file(pair.folder / name / "0" / "student.safetensors") for name in ("stopped", "whole")
    )
    assert all((value == stopped[name]).all() for name, value in whole.items())
    assert pair.said[0]["stopped"]["logs"] == pair.said[0]["whole"]["logs"]


@pytest.mark.slow
def test_rank_0_alone_writes_and_speaks(pair: Pair) -> None:
    """Catches two ranks that take the same lock, write the same files, or decide differently what is reused."""
    first, second = pair.said[0]["bench"], pair.said[1]["bench"]
    assert first["errors"] == second["errors"] == []
    assert first["reused"] == second["reused"] == [[False, True]] * len(first["reused"])
    assert first["metrics"] == second["metrics"]
    assert "done" in first["spoken"]
    assert second["spoken"] == []
    assert not list((pair.folder / "home" / "artefacts").glob("*.part"))
    assert not list((pair.folder / "home" / "artefacts").glob("*.lock"))
    store = Store(pair.folder / "home")
    keys = [path.name for path in store.root.iterdir()]
    assert len(keys) == len(first["reused"])
    assert all(store.manifest(key) for key in keys)


@pytest.mark.slow
def test_a_lost_rank_ends_the_other(pair: Pair) -> None:
    """Catches a rank that waits for ever for one that has failed."""
    assert pair.codes[1] != 0
    assert "rank 1 is lost" in pair.errors[1]
    assert pair.codes[0] != 0
