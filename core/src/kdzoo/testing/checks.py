"""The contract of a method, check by check: each takes a `Subject` and raises AssertionError where it is broken.

`NotApplicable` means that a check has nothing to say about a method. docs/testing.md says what each protects from.
"""

from __future__ import annotations

from collections.abc import Callable

from kdzoo.testing.checks_cards import (
    all_arms_make_a_record,
    card_is_valid,
    hooks_are_typed,
    paper_profile_names_its_data,
)
from kdzoo.testing.checks_switches import switch_acts, switch_removes
from kdzoo.testing.checks_training import (
    batch_may_be_split,
    finite_in_bfloat16,
    frozen_roles_stay,
    only_trained_roles_get_gradients,
    recorded_signals_are_live,
    resume_is_exact,
    same_seed_same_result,
)
from kdzoo.testing.subject import Subject

METHOD_CHECKS: dict[str, Callable[[Subject], None]] = {
    check.__name__: check
    for check in (
        card_is_valid,
        hooks_are_typed,
        only_trained_roles_get_gradients,
        frozen_roles_stay,
        finite_in_bfloat16,
        same_seed_same_result,
        resume_is_exact,
        batch_may_be_split,
        recorded_signals_are_live,
        all_arms_make_a_record,
    )
}
"""On every method x local task."""

SWITCH_CHECKS: dict[str, Callable[[Subject, str], None]] = {
    check.__name__: check for check in (switch_acts, switch_removes)
}
"""On every switch of every method x local task."""

PAPER_CHECKS: dict[str, Callable[[Subject], None]] = {
    check.__name__: check for check in (paper_profile_names_its_data,)
}
"""On every method x task of the paper profile."""
