"""What ``kdzoo doctor`` says of the llm plugin."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kdzoo.errors import KdzooError
from kdzoo_llm import doctor, vocabularies


def test_what_is_installed_and_intact() -> None:
    """A check that never fails, or that looks at a part of the files."""
    assert "transformers" in doctor.packages()
    assert "31,077 verses" in doctor.shipped_data()
    assert f"{len(list(vocabularies.FILES.glob('*.safetensors')))} models" in doctor.shipped_data()


def test_a_damaged_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that were cut short on the way would be loaded as they are, or fail with a traceback."""
    for part in vocabularies.FILES.glob("model-prose.*"):
        shutil.copy(part, tmp_path / part.name)
    weights = tmp_path / "model-prose.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    monkeypatch.setattr(vocabularies, "FILES", tmp_path)
    with pytest.raises(KdzooError, match=r"model-prose\.safetensors is damaged"):
        doctor.shipped_data()
