"""Seeds are functions of where they are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdzoo.rng import extend, id_words, mix, sample_seeds, word
from kdzoo.testing import toy

MASK = (1 << 64) - 1


def splitmix(state: int) -> int:
    """The finaliser of splitmix64 in plain integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def test_mix_is_splitmix64() -> None:
    """The first output of the published generator from state 0, halved into 63 bits."""
    assert (
        splitmix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF
    )  # the reference implementation's first number for seed 0
    assert mix(0) == 0xE220A8397B1DCDAF >> 1
    assert mix(5, 7) == splitmix((splitmix(5 + 0x9E3779B97F4A7C15) + 7 + 0x9E3779B97F4A7C15) & MASK) >> 1


def test_every_part_and_its_place_counts() -> None:
    """Two purposes with one seed would draw the same numbers."""
    seeds = [
        mix(),
        mix(0),
        mix(0, 0),
        mix(1),
        mix(1, 2),
        mix(2, 1),
        mix("1", 2),
        mix("a"),
        mix("b"),
        mix(None),
        mix(-2),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert (
        len(
            {mix(seed, "fit", step, micro) for seed in range(20) for step in range(200) for micro in range(4)}
        )
        == 16000
    )


def test_seeds_are_equal_in_every_process() -> None:
    """Python's own hash of a string differs between processes; a resumed run would draw other numbers."""
    code = "from kdzoo.rng import mix, word; print(word('order'), mix(3, 'order', 7))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(word("order")), str(mix(3, "order", 7))]


def test_sample_seeds_are_those_of_plain_integers() -> None:
    """torch has signed integers and an arithmetic shift only."""
    words = id_words([f"train/{row}" for row in range(50)])
    for base in (0, 1, mix("sample", 3), (1 << 63) - 1):
        expected = [splitmix((int(value) + base) & MASK) >> 1 for value in words]
        assert sample_seeds(base, words).tolist() == expected


def test_sample_seeds_depend_on_the_sample_and_not_on_its_place() -> None:
    """Whatever the batch, a sample is augmented alike in one epoch."""
    words = id_words(["a", "b", "c"])
    first, second = sample_seeds(1, words), sample_seeds(1, words.flip(0))
    assert first.tolist() == second.flip(0).tolist()
    assert (sample_seeds(2, words) != first).all()


def test_no_ids_give_no_words() -> None:
    assert id_words([]).shape == (0,)


def test_seeds_are_spread_evenly() -> None:
    """Seeds of neighbouring ids whose low bits agree would augment alike."""
    seeds = sample_seeds(mix("x"), id_words([str(row) for row in range(4096)]))
    for bit in range(0, 62, 3):
        assert 0.45 < float(((seeds >> bit) & 1).float().mean()) < 0.55, bit


def test_a_purpose_has_its_own_numbers(tmp_path: Path) -> None:
    """Two parts of a method, two steps and two micro-steps never share numbers; the same place always does."""
    run = toy.run(tmp_path)

    def drawn(step: int, micro: int, purpose: str) -> float:
        run.seed_micro_step(step, micro)
        return float(torch.rand((), generator=run.rng(purpose)))

    places = [(0, 0, "a"), (0, 0, "b"), (0, 1, "a"), (1, 0, "a")]
    values = [drawn(*place) for place in places]
    assert len(set(values)) == len(values)
    assert [drawn(*place) for place in reversed(places)] == values[::-1]


@pytest.mark.parametrize("other", [{"seed": 1}, {"stage": "later"}])
def test_another_seed_gives_other_numbers(tmp_path: Path, other: dict[str, object]) -> None:
    base = toy.run(tmp_path)
    changed = toy.run(tmp_path, seed=int(other.get("seed", 0)))  # type: ignore[call-overload]
    if "stage" in other:
        changed._base = mix(changed.seed, str(other["stage"]))
    numbers = []
    for run in (base, changed):
        run.seed_micro_step(0, 0)
        numbers.append((float(torch.rand(())), float(torch.rand((), generator=run.rng("x")))))
    assert numbers[0][0] != numbers[1][0]
    assert numbers[0][1] != numbers[1][1]


def test_micro_step_seeds_default_generator_alone(tmp_path: Path) -> None:
    """The default generator is set by place: what was drawn before plays no part."""
    run = toy.run(tmp_path)
    run.seed_micro_step(4, 0)
    first = torch.rand(3)
    torch.rand(1000)
    run.seed_micro_step(4, 0)
    assert (torch.rand(3) == first).all()


def test_extend_is_one_round_of_mix() -> None:
    """What steps use must be as good as what runs use."""
    assert extend(5, 7) == splitmix((5 + 7 + 0x9E3779B97F4A7C15) & MASK) >> 1
    places = [(step, micro << 32 | rank) for step in range(500) for micro in range(4) for rank in range(4)]
    assert len({extend(extend(9, step), place) for step, place in places}) == 8000
