"""Bad and good code: ruff is the judge, and cheating it is no repair."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kdzoo.errors import KdzooError
from kdzoo_llm.data import lint_fixes
from kdzoo_llm.data.packed import FILES, text
from kdzoo_llm.vocabularies import open_vocabulary


def test_counts_and_disjoint_rules() -> None:
    """A rule in two splits would be learnt, not understood."""
    counts = tuple(len(lint_fixes.load(split)) for split in lint_fixes.SPLITS)
    assert counts == (303, 122, 60, 123)
    rules = [{lint_fixes.rule_of(row) for row in lint_fixes.load(split)} for split in lint_fixes.SPLITS]
    assert sum(map(len, rules)) == len(set.union(*rules))


def test_ruff_judges() -> None:
    """The shipped repair passes, the shipped fault does not, and neither does anything that only silences ruff."""
    row = next(row for row in lint_fixes.load("test") if lint_fixes.rule_of(row) == "ARG004")
    assert lint_fixes.is_fixed(row.answer, "ARG004")
    for bad in (row.prompt, "", "pass", '"""Words."""', "def f(:", f"{row.prompt}# ruff: noqa"):
        assert not lint_fixes.is_fixed(bad, "ARG004")


def test_a_missing_ruff_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ImportError would not say what to install."""
    monkeypatch.setitem(sys.modules, "ruff", None)
    with pytest.raises(KdzooError, match=r"kdzoo-llm\[lint\]"):
        lint_fixes.is_fixed("x = 1\n", "F401")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """Other pairs under the same name would change every result."""
    (tmp_path / "lint-manifest.json").write_bytes((FILES / "lint-manifest.json").read_bytes())
    (tmp_path / "lint-pairs.json.gz").write_bytes(b"other")
    with pytest.raises(KdzooError, match=r"lint-pairs\.json\.gz has sha256 .* expects .*build_lint"):
        text("lint", "build_lint.py", "lint-pairs.json.gz", tmp_path)


def test_the_tokenizer_keeps_indentation() -> None:
    """Python whose blanks are lost is no Python."""
    vocabulary = open_vocabulary("file:lint-1k")
    unknown = vocabulary.tokenizer.unk_token_id
    texts = [row.answer for row in lint_fixes.load("train")]
    assert all(unknown not in ids for ids in vocabulary.encode_all(texts))
    assert [vocabulary.decode(ids) for ids in vocabulary.encode_all(texts)] == texts
