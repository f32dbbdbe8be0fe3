"""Our code against numbers of the official implementations; KDZOO_GOLDEN names another folder of cases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from parity import harness

ADAPTERS = harness.load_adapters(Path(__file__).parent / "adapters")
FOLDER = Path(os.environ.get("KDZOO_GOLDEN") or harness.GOLDEN)
CASES = harness.find_cases(FOLDER)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: harness.Case) -> None:
    """Catches a change that moves a loss away from what the authors' code computes."""
    reason = harness.why_skipped(case, adapters=ADAPTERS, shipped=harness.GOLDEN.samefile(FOLDER))
    if reason is not None:
        pytest.skip(reason)
    harness.check(case, adapters=ADAPTERS)


def test_no_adapter_waits_for_a_case_that_does_not_exist() -> None:
    """Catches a misspelled target: its adapter would never run, and its case would be somebody else's."""
    shipped = {case.key for case in harness.find_cases(harness.GOLDEN)}
    assert set(ADAPTERS) <= shipped


def test_no_excuse_is_stale() -> None:
    """Catches an UNTESTED entry that outlived its reason: it would hide a case that an adapter compares."""
    assert not set(harness.UNTESTED) & set(ADAPTERS)
    assert all(reason.strip() for reason in harness.UNTESTED.values())
