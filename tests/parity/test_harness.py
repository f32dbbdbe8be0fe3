"""The parity runner itself: a comparison that cannot fail would prove nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import harness
from parity.harness import Case, ParityError
from safetensors.torch import save_file
from torch import Tensor

# A made-up method: y = a * x, loss = sum of y.
X, A = torch.tensor([1.0, 2.0]), torch.tensor(3.0)


def write_case(
    folder: Path,
    *,
    target: str = "line",
    change: dict[str, Any] | None = None,
    tensors: dict[str, Tensor] | None = None,
) -> Path:
    """A complete small case on disk; `tensors` replace stored ones, `change` entries of the JSON."""
    place = folder / "toy"
    place.mkdir(parents=True, exist_ok=True)
    meta = {
        "slug": "toy",
        "target": target,
        "official": "nobody/toy@0",
        "inputs": {"x": ""},
        "params": {"a": ""},
        "args": {"power": 1},
        "outputs": {"loss": "", "order": ""},
        "grads": ["grad_x", "grad_a"],
        "rtol": 1e-4,
        "atol": 1e-6,
        **(change or {}),
    }
    stored = {
        "x": X,
        "a": A,
        "loss": torch.tensor(9.0),
        "order": torch.tensor([0, 1]),
        "grad_x": torch.tensor([3.0, 3.0]),
        "grad_a": torch.tensor(3.0),
        **(tensors or {}),
    }
    (place / f"{target}-a.json").write_text(json.dumps(meta))
    save_file(stored, place / f"{target}-a.safetensors")
    return place / f"{target}-a.json"


def line(case: Case) -> dict[str, Tensor]:
    y = case.leaf("a") * case.leaf("x") ** case.args["power"]
    return case.with_gradients(loss=y.sum(), order=y.argsort())


ADAPTERS: harness.Adapters = {("toy", "line"): line}


def only_case(folder: Path) -> Case:
    (case,) = harness.find_cases(folder)
    return case


def test_right_numbers_pass(tmp_path: Path) -> None:
    """Catches a runner that refuses correct code."""
    write_case(tmp_path)
    harness.check(only_case(tmp_path), adapters=ADAPTERS)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("loss", torch.tensor(9.0 * (1 + 3e-4))),
        ("grad_x", torch.tensor([3.0, 3.001])),
        ("grad_a", torch.tensor(torch.nan)),
        ("order", torch.tensor([1, 0])),
        ("loss", torch.tensor([9.0])),
        ("loss", torch.tensor(9)),
    ],
    ids=["output", "gradient", "nan", "integers", "shape", "dtype"],
)
def test_a_perturbed_number_fails(tmp_path: Path, name: str, wrong: Tensor) -> None:
    """Catches a comparison that looks at some tensors only, or is looser than the case says."""
    write_case(tmp_path, tensors={name: wrong})
    with pytest.raises(ParityError, match=rf"toy/line-a differs from nobody/toy@0:\n  {name}: "):
        harness.check(only_case(tmp_path), adapters=ADAPTERS)


def test_tolerances_are_the_case_s_own(tmp_path: Path) -> None:
    """Catches tolerances fixed in the runner."""
    write_case(tmp_path, change={"rtol": 1e-3}, tensors={"loss": torch.tensor(9.0 * (1 + 3e-4))})
    harness.check(only_case(tmp_path), adapters=ADAPTERS)


def test_a_missing_adapter_fails(tmp_path: Path) -> None:
    """Catches a target of a covered method that nobody compares."""
    write_case(tmp_path, target="curve")
    case = only_case(tmp_path)
    assert harness.why_skipped(case, adapters=ADAPTERS, shipped=False) is None
    with pytest.raises(ParityError, match=r"toy/curve-a: no adapter.*@parity\('toy', 'curve'\)"):
        harness.check(case, adapters=ADAPTERS)


def test_only_a_foreign_folder_may_hold_unknown_methods(tmp_path: Path) -> None:
    """Catches shipped cases that are skipped for want of any adapter."""
    write_case(tmp_path)
    case = only_case(tmp_path)
    assert harness.why_skipped(case, adapters={}, shipped=False) == "no adapter for any target of 'toy'"
    assert harness.why_skipped(case, adapters={}, shipped=True) is None


def test_a_listed_reason_skips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a table of reasons that nobody reads."""
    write_case(tmp_path, target="curve")
    monkeypatch.setitem(harness.UNTESTED, ("toy", "curve"), "needs their data")
    assert harness.why_skipped(only_case(tmp_path), adapters=ADAPTERS, shipped=True) == "needs their data"


@pytest.mark.parametrize("returned", [{"loss": torch.tensor(9.0)}, {"loss": torch.tensor(9.0), "lost": X}])
def test_other_names_fail(tmp_path: Path, returned: dict[str, Tensor]) -> None:
    """Catches an adapter that leaves an output or a gradient out, or misspells it."""
    write_case(tmp_path)
    with pytest.raises(ParityError, match=r"the case expects \['grad_a', 'grad_x', 'loss', 'order'\]"):
        harness.check(only_case(tmp_path), adapters={("toy", "line"): lambda case: returned})


def test_a_second_adapter_for_one_target_is_refused() -> None:
    """Catches a copied decorator: the first function would silently never run."""
    harness.load_adapters(Path(__file__).parent / "adapters")
    with pytest.raises(ValueError, match="registered twice"):
        harness.parity("rkd", "angle")(line)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    """Catches a run that compares nothing and passes: no folder, an empty one, or half a case."""
    with pytest.raises(ParityError, match="does not exist"):
        harness.find_cases(tmp_path / "none")
    with pytest.raises(ParityError, match="nothing would be compared"):
        harness.find_cases(tmp_path)
    path = write_case(tmp_path)
    text = path.read_text()
    path.write_text(text.replace('"grads"', '"gradients"'))
    with pytest.raises(ParityError, match=r"lacks \['grads'\]"):
        harness.find_cases(tmp_path)
    path.write_text(text[:-5])
    with pytest.raises(ParityError, match="not JSON"):
        harness.find_cases(tmp_path)
    path.write_text(text.replace('"slug": "toy"', '"slug": "boy"'))
    with pytest.raises(ParityError, match="lies in the place of toy/line"):
        harness.find_cases(tmp_path)


def test_damaged_tensors_are_refused(tmp_path: Path) -> None:
    """Catches a case whose tensors are gone, unreadable, or not the ones that its JSON names."""
    path = write_case(tmp_path, change={"grads": ["grad_x"]})
    with pytest.raises(ParityError, match="what is missing would not be compared"):
        harness.check(only_case(tmp_path), adapters=ADAPTERS)
    path.with_suffix(".safetensors").write_bytes(b"broken")
    with pytest.raises(ParityError, match="cannot read"):
        harness.check(only_case(tmp_path), adapters=ADAPTERS)
    path.with_suffix(".safetensors").unlink()
    with pytest.raises(ParityError, match="cannot read"):
        harness.check(only_case(tmp_path), adapters=ADAPTERS)


@pytest.mark.slow
def test_the_whole_run_fails_and_skips_where_it_should(tmp_path: Path) -> None:
    """Catches a runner that ignores KDZOO_GOLDEN, or a pytest that collects no case."""
    golden = tmp_path / "golden"
    (golden / "rkd").mkdir(parents=True)
    for path in (harness.GOLDEN / "rkd").glob("distance-a.*"):
        (golden / "rkd" / path.name).write_bytes(path.read_bytes())
        other = golden / "rkd" / path.name.replace("distance", "unheard-of")
        other.write_bytes(path.read_bytes().replace(b'"target": "distance"', b'"target": "unheard-of"'))
    write_case(golden)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", str(Path(__file__).with_name("test_parity.py")), "-rA", "-k",
        "test_case", "-p",
         "no:cacheprovider"],
        env={**os.environ, "KDZOO_GOLDEN": str(golden)},
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    assert run.returncode == 1, run.stdout + run.stderr
    assert "1 failed, 1 passed, 1 skipped" in run.stdout
    assert "rkd/unheard-of-a: no adapter" in run.stdout
