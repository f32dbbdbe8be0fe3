"""Claims as cards hold them: the ``[[claims]]`` row, and what makes a row impossible to answer.

The five kinds (what each computes is said in `kdzoo.claims`):

    order  metric, arms (two or more, best first), by
    level  metric, arms (one), above or below
    same   metric, arms (two), by > 0
    gap    metrics (two), arms (two), by
    trend  metric, arms (one or two, without the level), along, sense, by
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

import msgspec

from kdzoo.errors import KdzooError, unknown
from kdzoo.metric_names import Better, MetricName, better_of, parse

Kind = Literal["order", "level", "same", "gap", "trend"]

MIN_ITEMS = 50  # a fraction of fewer samples moves by over 2 % when one sample changes


class Claim(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One ``[[claims]]`` row of a card; `validate` checks what the types cannot.

    Attributes:
        claim: number of the claim; rows with one number must all hold.
        kind: one of five; may be left out only beside `why`.
        text: the claim in words, for tables.
        metric: metric name (all kinds but gap).
        metrics: two metric names (gap), the one with the larger gain first.
        arms: best first, by the metric's own direction. For trend without the level: ``m.few`` stands for
            ``m.few[0.25]``, ``m.few[0.5]``, ... or ``m.few[share=0.25]``, ...
        by: margin in the metric's unit; for trend in that unit per grid step.
        above, below: the constant of a level.
        along: the setting whose grid a trend follows.
        sense: "rising" or "falling".
        min_items: a sub-population with fewer samples is not testable.
        why: reason why the row cannot be tested at all, e.g. it needs a data set that cannot be had.
    """

    claim: int
    kind: Kind | None = None
    text: str | None = None
    metric: str | None = None
    metrics: tuple[str, ...] | None = None
    arms: tuple[str, ...] = ()
    by: float = 0.0
    above: float | None = None
    below: float | None = None
    along: str | None = None
    sense: Literal["rising", "falling"] | None = None
    min_items: int = MIN_ITEMS
    why: str | None = None


# kind -> (fewest arms, most arms, settings beside claim, text, arms, by, min_items, why)
_SHAPE: dict[str, tuple[int, float, str]] = {
    "order": (2, math.inf, "metric"),
    "level": (1, 1, "metric above below"),
    "same": (2, 2, "metric"),
    "gap": (2, 2, "metrics"),
    "trend": (1, 2, "metric along sense"),
}


def validate(claim: Claim, arms: Collection[str], metrics: Mapping[str, Better]) -> None:
    """Refuse a claim that could not be answered, before anything runs.

    Args:
        arms: all arms the card declares, grid arms by their full names, in declared order.
        metrics: declared metric -> "higher" or "lower"; see `kdzoo.metric_names.better_of` for the keys.

    Raises:
        KdzooError: what was given, what is expected, what to do; unknown names with the nearest known ones.
    """
    if claim.claim < 1:
        raise KdzooError(
            f"claim {claim.claim}: claims are numbered from 1, as in the method's list of claims."
        )
    if claim.kind is None and claim.why:
        return
    if claim.kind is None:
        raise KdzooError(
            f"claim {claim.claim} has no kind. Give {', '.join(_SHAPE)}, or `why` it has no test."
        )
    if claim.kind not in _SHAPE:
        raise unknown("kind", claim.kind, _SHAPE, f"(In claim {claim.claim}; kinds: {', '.join(_SHAPE)}.)")
    where = f"claim {claim.claim} ({claim.kind})"
    _validate_settings(claim, where)
    names = metric_names(claim)
    if claim.kind == "gap" and len(set(names)) != 2:
        raise KdzooError(
            f"{where}: metrics {list(claim.metrics or ())}; expected two, the larger gain first."
        )
    for metric in names:
        better_of(metric, metrics)
    for arm in claim.arms:
        if arm == "kd":
            raise KdzooError(
                f"{where}: arm 'kd' is another method on each task, so the claim would change its meaning. "
                "Name the baseline by its slug, e.g. hinton-kd."
            )
        if claim.kind != "trend" and arm not in arms:
            raise unknown("arm", arm, arms, f"(In {where}; `kdzoo show` lists the arms.)")
    if claim.kind == "trend":
        grids = [[level for level, _ in grid(claim, arm, arms)] for arm in claim.arms]
        if grids[0] != grids[-1]:
            raise KdzooError(
                f"{where}: its arms have different grids, {grids[0]} and {grids[-1]}. Use one grid."
            )


def _validate_settings(claim: Claim, where: str) -> None:
    """Each kind has its settings and no others; numbers are in range."""
    fewest, most, own = _SHAPE[str(claim.kind)]
    for name in ("metric", "metrics", "above", "below", "along", "sense"):
        given, wanted = getattr(claim, name) is not None, name in own.split()
        if given and not wanted:
            raise KdzooError(f"{where}: `{name}` would be ignored; {claim.kind} takes {own}. Remove it.")
        if not given and wanted and name not in ("above", "below"):
            raise KdzooError(f"{where}: `{name}` is missing; without it there is nothing to compute. Add it.")
    if claim.kind == "level" and (claim.above is None) == (claim.below is None):
        raise KdzooError(
            f"{where}: expected one of `above` and `below`, the constant the arm is held against."
        )
    if claim.sense not in (None, "rising", "falling"):
        raise unknown("sense", claim.sense, ("rising", "falling"), f"(In {where}; rising or falling.)")
    if not fewest <= len(claim.arms) <= most or len(set(claim.arms)) < len(claim.arms):
        span = (
            f"{fewest} or more" if most == math.inf else " or ".join(f"{n:g}" for n in sorted({fewest, most}))
        )
        raise KdzooError(f"{where}: arms {list(claim.arms)}; expected {span}, all different, best first.")
    if not all(math.isfinite(number or 0.0) for number in (claim.by, claim.above, claim.below)):
        raise KdzooError(f"{where}: by, above and below must be finite, or no run could answer the claim.")
    if claim.kind == "same" and claim.by <= 0:
        raise KdzooError(
            f"{where}: by = {claim.by:g}; `same` means within +-by: give by > 0 in the metric's unit."
        )
    if claim.min_items < 1:
        raise KdzooError(
            f"{where}: min_items = {claim.min_items}; expected 1 or more: an empty subset is null."
        )


def metric_names(claim: Claim) -> list[MetricName]:
    """The one metric of a row, or the two of a gap."""
    return [parse(text) for text in claim.metrics or ((claim.metric,) if claim.metric else ())]


def grid(claim: Claim, arm: str, arms: Iterable[str]) -> list[tuple[str, str]]:
    """(level, full arm name) of the grid arms of `arm` along ``claim.along``: by number, else as declared.

    Settings in the brackets of `arm` itself stay fixed: along share, ``m[tau=4]`` finds ``m[share=1,tau=4]``.

    Raises:
        KdzooError: fewer than two levels, or one level twice.
    """
    base, fixed = _settings(arm)
    found: list[tuple[str, str]] = []
    for candidate in arms:
        its_base, settings = _settings(candidate)
        level = settings.pop(claim.along or "", None) or settings.pop("", None)
        if level is not None and its_base == base and settings == fixed:
            found.append((level, candidate))
    if len({level for level, _ in found}) < max(2, len(found)):
        got = ", ".join(name for _, name in found) or "none"
        remedy = f"A trend (claim {claim.claim}) needs two or more levels, each once; found: {got}."
        raise unknown("grid arm", f"{arm}[{claim.along}=...]", (name for name in arms if "[" in name), remedy)
    try:
        return sorted(found, key=lambda pair: float(pair[0]))
    except ValueError:
        return found


def _settings(arm: str) -> tuple[str, dict[str, str]]:
    """``m.few[share=0.5,tau=4]`` -> ("m.few", {"share": "0.5", "tau": "4"}); ``m[0.5]`` has it at ""."""
    base, _, inside = arm.removesuffix("]").partition("[")
    pairs = [part.rpartition("=") for part in inside.split(",") if part]
    return base, {key: value for key, _, value in pairs}
