"""The contract's checks of a switch: it does what the card says it affects, and off means off."""

from __future__ import annotations

from kdzoo.cards import value_problem
from kdzoo.execute import execute
from kdzoo.runs import Run
from kdzoo.testing.subject import NotApplicable, Subject, When, few_evaluated, loss_if_any, moments

TINY = 1e-6  # share of a weight that stands for "nearly off"

_FIRST_AND_LAST: tuple[When, When] = ("first", "last")


def switch_acts(subject: Subject, name: str) -> None:
    """A switch does what its card says: to the trained weights, to the loss's value alone, or to evaluation alone."""
    switch, off = subject.card.switches[name], f"{subject.method}.without-{name}"
    if switch.effect == "eval":
        _acts_on_evaluation(subject, off)
        return
    if switch.effect == "value" and not subject.repeatable:
        raise NotApplicable("equal seeds give different results, so equal weights cannot be asked for")
    seen = False
    for when in _FIRST_AND_LAST:
        on, without = subject.train(when=when), subject.train(off, when=when)
        apart = on.apart(without, subject.card.ships)
        if switch.effect == "weights":
            seen = apart > 0
        else:
            moved = on.largest(subject.card.ships)
            assert apart <= 1e-4 * moved, (
                f"switch {name!r}: effect is 'value', but the trained weights differ by {apart:.3g}. Say effect = "
                "'weights', or take the gradient out of the component."
            )
            seen = seen or on.losses != without.losses
        if seen:
            return
    what = "the trained weights" if switch.effect == "weights" else "the loss"
    raise AssertionError(
        f"switch {name!r}, off = {switch.off}: {what} are bit by bit those of {subject.method}, in the first steps and "
        "in the last. The ablation would be a copy of the method. Read the setting where the component is computed; "
        "or correct effect in the card."
    )


def switch_removes(subject: Subject, name: str) -> None:
    """A weight of 0 is the limit of small weights: nothing else takes the component's place."""
    values = subject.plan().settings[subject.method]
    params = {**subject.task_card.params, **subject.card.params}
    weights = {
        key: float(values[key])
        for key, off in subject.card.switches[name].off.items()
        if key.endswith("weight") and not isinstance(off, bool) and off == 0
        and isinstance(values[key], float | int) and values[key] > 0
        and value_problem(params[key], values[key] * TINY) is None
    }  # fmt: skip
    if not weights:
        raise NotApplicable("it sets no weight to 0, so there is no limit to compare with")
    if not subject.repeatable:
        raise NotApplicable("equal seeds give different results, so losses cannot be compared")

    def look(run: Run) -> list[float | None]:
        return [loss_if_any(run, step) for _, step in moments(run)]

    for key, weight in weights.items():
        on, nearly, off = (subject.look(look, patch={key: weight * share}) for share in (1.0, TINY, 0.0))
        for with_it, with_little, without in zip(on, nearly, off, strict=True):
            if with_it is None or with_little is None or without is None:
                continue
            contribution = abs(with_it - without)
            assert abs(with_little - without) <= 1e-3 * contribution + 1e-5 * abs(without) + 1e-9, (
                f"switch {name!r}: with {key} = {weight * TINY:g} the loss is {with_little:.6g}, with {key} = 0 it is "
                f"{without:.6g}: the component does not vanish with its weight. Either something takes its place at 0 "
                f"(look for 'cfg.{key} or ...'), or it is not multiplied by the weight."
            )


def _acts_on_evaluation(subject: Subject, off: str) -> None:
    """The stages of training have equal keys, so they are shared; the metrics differ."""
    plans = {arm: subject.plan(arm).runs[(arm, 0)] for arm in (subject.method, off)}
    (*mine, _), (*theirs, _) = plans.values()
    assert [spec.key for spec in mine] == [spec.key for spec in theirs], (
        f"{off}: effect is 'eval', but the training has another key: it would be trained again, to other weights. "
        "Switch it by a setting whose name begins with 'eval.', or say effect = 'weights'."
    )
    found = []
    with few_evaluated(subject.rows):
        for stages in plans.values():
            for spec in stages:
                manifest = execute(spec, subject.store)
            found.append(manifest["metrics"])
    assert found[0] != found[1], (
        f"{off}: every metric is that of {subject.method}. The ablation would be a copy of the method. Read the "
        "setting in evaluate."
    )
