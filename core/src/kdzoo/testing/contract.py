"""The contract as tests: inherit, name the plugin, and pytest holds every method of it to every check.

Example::

    # tests/test_contract.py
    from kdzoo.testing.contract import MethodContract


    class TestContract(MethodContract):
        plugin = "audio"

One item a check and (method, local task), one a switch, one a task of the paper profile. The ids are
``rkd-emoji-retrieval``: ``pytest -k rkd`` runs what concerns one method. docs/testing.md describes every check.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from kdzoo import catalog, plugins
from kdzoo.testing import checks
from kdzoo.testing.subject import NotApplicable, Subject, Use, plugin_uses


class MethodContract:
    """What every method of a plugin must keep, on every local task that it runs on.

    Attributes:
        plugin: the name of the entry point in the group ``kdzoo``.
        settings: task -> ``name=value`` as ``--set`` takes them, for a task whose models or data are too large for
            a test: ``{"speech-commands": ("batch=8", "student=tiny")}``.
        rows: how many rows of `val` and `test` an arm is evaluated on in its smoke run; 0 for all, where a metric makes
            no sense on a part of them.
    """

    plugin: ClassVar[str] = ""
    settings: ClassVar[Mapping[str, Sequence[str]]] = {}
    rows: ClassVar[int] = 500

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        """Every method x local task, with their switches; every method x task of the paper profile."""
        wanted = set(metafunc.fixturenames)
        if not wanted & {"use", "paper_use"}:
            return
        uses = plugin_uses(cls.plugin, "paper" if "paper_use" in wanted else "local")
        if "switch" in wanted:
            pairs = [(use, switch) for use in uses for switch in _switches(use)]
            ids = [f"{'-'.join(use)}-{switch}" for use, switch in pairs]
            metafunc.parametrize(("use", "switch"), pairs, ids=ids, scope="class")
        else:
            name = "paper_use" if "paper_use" in wanted else "use"
            metafunc.parametrize(name, uses, ids=["-".join(use) for use in uses], scope="class")

    @pytest.fixture
    def subject(self, use: Use, kdzoo_subject: Callable[..., Subject]) -> Subject:
        return kdzoo_subject(*use, tuple(self.settings.get(use[1], ())), self.rows)

    def test_every_card_can_be_read(self) -> None:
        """A card with a mistake is left out of the catalogue, and so of every test below."""
        cards = catalog.load()
        for owner, folders in plugins.load().collect("cards", list):
            for slug, why in cards.broken.items() if owner.name == self.plugin else ():
                path = cards.paths.get(slug)
                inside = slug in map(str, folders) or (path and path.parent in map(Path, folders))
                assert not inside, why

    def test_card_is_valid(self, subject: Subject) -> None:
        """A card that names a task or a metric that does not exist promises what no bench can answer."""
        _hold(checks.card_is_valid, subject)

    def test_hooks_are_typed(self, subject: Subject) -> None:
        """Without annotations a type checker sees no mistake in a hook."""
        _hold(checks.hooks_are_typed, subject)

    def test_only_trained_roles_get_gradients(self, subject: Subject) -> None:
        """A teacher that moves is no teacher; a connector that gets no gradient is a random projection."""
        _hold(checks.only_trained_roles_get_gradients, subject)

    def test_frozen_roles_stay(self, subject: Subject) -> None:
        """A teacher whose batch norm counts along is another teacher in each arm."""
        _hold(checks.frozen_roles_stay, subject)

    def test_switch_acts(self, subject: Subject, switch: str) -> None:
        """A switch without effect makes its ablation a copy of the method."""
        _hold(checks.switch_acts, subject, switch)

    def test_switch_removes(self, subject: Subject, switch: str) -> None:
        """A weight of 0 that turns into a default leaves in the component that an ablation says is out."""
        _hold(checks.switch_removes, subject, switch)

    def test_finite_in_bfloat16(self, subject: Subject) -> None:
        """A loss that overflows in bf16 fails on GPUs only, after hours."""
        _hold(checks.finite_in_bfloat16, subject)

    def test_same_seed_same_result(self, subject: Subject) -> None:
        """Unseeded randomness makes a run unrepeatable; a fixed seed makes all seeds one."""
        _hold(checks.same_seed_same_result, subject)

    def test_resume_is_exact(self, subject: Subject) -> None:
        """State outside the checkpoint makes a result depend on when the machine went down."""
        _hold(checks.resume_is_exact, subject)

    def test_batch_may_be_split(self, subject: Subject) -> None:
        """A loss that couples a batch is another loss under gradient accumulation, in silence."""
        _hold(checks.batch_may_be_split, subject)

    def test_recorded_signals_are_live(self, subject: Subject) -> None:
        """A teacher read from disk that says something else than the live one is another teacher."""
        _hold(checks.recorded_signals_are_live, subject)

    def test_all_arms_make_a_record(self, subject: Subject) -> None:
        """An arm that nobody runs fails on the day of the record."""
        _hold(checks.all_arms_make_a_record, subject)

    def test_paper_profile_names_its_data(
        self, paper_use: Use, kdzoo_subject: Callable[..., Subject]
    ) -> None:
        """A missing data set must not be a traceback: the message shows layout, source and terms."""
        _hold(checks.paper_profile_names_its_data, kdzoo_subject(*paper_use))


def _switches(use: Use) -> list[str]:
    method, task = use
    switches = catalog.load().method(method).switches
    return [name for name, switch in switches.items() if not switch.tasks or task in switch.tasks]


def _hold(check: Callable[..., None], *given: Any) -> None:
    """Call a check; what it has nothing to say about is skipped, with the reason."""
    try:
        check(*given)
    except NotApplicable as reason:
        pytest.skip(str(reason))
