"""The contract's checks of what a method says of itself: its card, its signatures, its plan, its record."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from kdzoo import catalog, plugins
from kdzoo.arms import claims_on
from kdzoo.bench import run_bench
from kdzoo.cards import MethodCard, read
from kdzoo.claim_rows import Claim
from kdzoo.plan import Plan, Request, make_plan
from kdzoo.testing.hook_types import hook_type_problems
from kdzoo.testing.subject import Subject, few_evaluated, refusal
from kdzoo.workers import Options


def card_is_valid(subject: Subject) -> None:
    """The card reads, its module imports, its tasks are installed, and every claim can be answered somewhere."""
    cards = catalog.load()
    path = cards.paths[subject.method]
    card = read(path, MethodCard)
    cards.module(subject.method)
    owners = [
        plugin.name
        for plugin, folders in plugins.load().collect("cards", list)
        if path.parent in map(Path, folders)
    ]
    assert owners == [card.plugin], (
        f"card {path.name}: plugin is {card.plugin!r}, but the folder is that of {', '.join(owners)}: facets and "
        "'pip install' hints would name another distribution. Write the name of the entry point."
    )
    answered: list[Claim] = []
    for name, use in card.tasks.items():
        assert name in cards.tasks, (
            f"card {path.name}: task {name!r} is not installed, so 'kdzoo bench {card.slug} --task {name}' cannot run. "
            "Depend on the distribution that brings it."
        )
        task = cards.tasks[name]
        assert use.profile == task.profile, (
            f"card {path.name}: tasks.{name} has profile {use.profile!r}, the task has {task.profile!r}: "
            "--profile would offer the wrong one. Make them equal."
        )
        answered += claims_on(card, task)
    said = refusal(partial(subject.plan, "all"))
    assert not said, f"card {path.name}: no bench of all arms can be planned on {subject.task}: {said}"
    lost = [claim.text or f"claim {claim.claim}" for claim in card.claims if claim not in answered]
    assert not lost, (
        f"card {path.name}: no task of the method measures what these claims speak of, so no bench would ever answer "
        f"them: {'; '.join(lost)}. Name a metric that a task's card declares."
    )


def hooks_are_typed(subject: Subject) -> None:
    """Implementations carry the names and annotations of the hooks; a type checker then sees wrong use."""
    cards = catalog.load()
    modules = [cards.module(subject.method)]
    if subject.task_card.plugin == subject.card.plugin:
        modules.append(cards.module(subject.task))
    problems = [problem for module in modules for problem in hook_type_problems(module)]
    assert not problems, "; ".join(problems) + ". docs/hooks.md shows every signature."


def all_arms_make_a_record(subject: Subject) -> None:
    """Every arm of the card runs a smoke bench to its end; none has another start, order or budget than it says."""
    request = Request(
        subject.method, task=subject.task, arms="all", seeds=1, set=subject.settings, smoke=True
    )
    plans: list[Plan] = []
    command = f"kdzoo bench {subject.method} --task {subject.task} --arms all --smoke"
    with few_evaluated(subject.rows):
        record, _ = run_bench(
            request,
            Options(subject.root, jobs=0),
            lambda *_: None,
            command,
            measure_latency=False,
            planned=plans.append,
        )
    failed = [
        f"{one['arm']}, stage {one['stage']}: {one['error']}"
        for one in record.failures
        if not one.get("skipped")
    ]
    assert not failed, "; ".join(failed)
    refused = [f"{row.arm}: {row.warnings[-1]}" for row in record.runs if row.status != "done"]
    assert not refused, "; ".join(refused)
    left_out = set(plans[0].all_arms) - {row.arm for row in record.runs}
    assert not left_out, f"the record of --arms all lacks {', '.join(sorted(left_out))}"
    verdicts = {claim["verdict"] for claim in record.claims} - {"not testable", "not run"}
    assert not verdicts, f"one seed of three steps was given the verdicts {', '.join(sorted(verdicts))}"


def paper_profile_names_its_data(subject: Subject) -> None:
    """Without a data root a paper's task plans to one message: the folder's layout, where it is had, the terms."""
    name, source = next(iter(subject.task_card.data.items()))
    assert source.text.strip(), (
        f"task {subject.task!r}: data.{name} has no text, so nobody can know how the files are to lie under --data-root"
    )
    said = refusal(partial(make_plan, Request(subject.method, task=subject.task, profile="paper")))
    assert said, (
        f"task {subject.task!r} of the paper profile plans without --data-root: it would fail once models are built"
    )
    wanted = ("--data-root", source.text.splitlines()[0], source.source, source.licence)
    missing = [part for part in wanted if part not in said]
    assert not missing, f"planned without --data-root, the message lacks {missing}: {said}"
