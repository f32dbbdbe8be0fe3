"""The claims of a record, number by number, as a report shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from kdzoo.claims import combined
from kdzoo.records import Record
from kdzoo.report import charts
from kdzoo.report.scale import finite
from kdzoo.report.table import signed

SIGNS = {
    "reproduced": "✓",
    "not reproduced": "✗",
    "no difference shown": "≈",
    "not run": "○",
    "not testable": "?",
}
"""A sign for each verdict: colour alone must not say it."""

MEANINGS = {
    "reproduced": "the whole interval lies on the claimed side",
    "not reproduced": "the whole interval lies on the other side",
    "no difference shown": "the interval holds both sides: these runs decide nothing",
    "not run": "an arm of the claim has no finished run",
    "not testable": "too few seeds, too few samples, or a number that was not measured",
}

KINDS = {
    "order": "the first beats the second",
    "level": "an arm lies beyond a constant",
    "same": "two arms differ by less than a margin",
    "gap": "the gain on one metric is larger than on another",
    "trend": "a gain or a value rises or falls along a grid of arms",
}


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """One comparison that a claim consists of. The estimate is positive in the claimed direction."""

    label: str
    text: str
    verdict: str
    sign: str
    estimate: str
    n: int
    metric: str
    kind: str
    why: str
    strip: Markup | None


@dataclass(frozen=True, slots=True)
class ClaimView:
    """A claim with all its rows; all must hold."""

    number: int
    text: str
    verdict: str
    sign: str
    meaning: str
    rows: list[ClaimRow]

    @property
    def css(self) -> str:
        return self.verdict.replace(" ", "-")


def claims_view(record: Record) -> list[ClaimView]:
    """Claims in order of number, each under the verdict that its rows have together."""
    known = _asked(record)
    grouped: dict[int, list[tuple[int, dict[str, Any]]]] = {}
    for at, claim in enumerate(record.claims):
        grouped.setdefault(claim["claim"], []).append((at, claim))
    found = []
    for number, several in sorted(grouped.items()):
        verdict = combined(claim["verdict"] for _, claim in several)
        heading = next((claim["text"] for _, claim in several if claim["text"]), several[0][1]["label"])
        ends = finite(p[end] for _, claim in several for p in _parts(claim) for end in ("low", "high"))
        span = (min(ends, default=-1.0), max(ends, default=1.0))
        rows = []
        for at, claim in several:
            metric, by = known.get(at, ("", 0.0))
            for part, finding in enumerate(_parts(claim)):
                text = claim["text"] or "" if claim["text"] != heading and part == 0 else ""
                rows.append(_row(f"claim-{at}-{part}", finding, claim, text, metric, by, span))
        found.append(ClaimView(number, heading, verdict, SIGNS[verdict], MEANINGS[verdict], rows))
    return found


def _parts(claim: dict[str, Any]) -> list[dict[str, Any]]:
    return claim.get("parts") or [claim]


def _row(
    name: str,
    finding: dict[str, Any],
    claim: dict[str, Any],
    text: str,
    metric: str,
    by: float,
    span: tuple[float, float],
) -> ClaimRow:
    mean, low, high = finding["estimate"], finding["low"], finding["high"]
    known = bool(finite([mean]))
    kind = KINDS.get(claim["kind"] or "", "")
    return ClaimRow(
        label=finding["label"],
        text=text,
        verdict=finding["verdict"],
        sign=SIGNS[finding["verdict"]],
        estimate=signed(mean, low, high) if known else "",
        n=finding["n"],
        metric=metric,
        kind=f"{kind}, by at least {by:g}"
        if by and claim["kind"] != "same"
        else f"{kind} ({by:g})"
        if by
        else kind,
        why=finding["why"] or "",
        strip=charts.strip(name, low, mean, high, span) if known and low is not None else None,
    )


def _asked(record: Record) -> dict[int, tuple[str, float]]:
    """Place of a row -> its metric and margin, from the card, where the installed card has the same rows."""
    from kdzoo.arms import claims_on
    from kdzoo.report.arms_view import method_card, task_card

    card, task = method_card(record), task_card(record)
    if card is None or task is None:
        return {}
    rows = claims_on(card, task)
    if [(row.claim, row.kind, row.text) for row in rows] != [
        (claim["claim"], claim["kind"], claim["text"]) for claim in record.claims
    ]:
        return {}
    return {i: (row.metric or " and ".join(row.metrics or ()), row.by) for i, row in enumerate(rows)}
