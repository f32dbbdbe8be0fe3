"""The critical-difference plot: mean ranks on a line, bars over methods that do not differ. One SVG, no script.

Its colours are CSS variables of the class ``kdzoo-cd``, light and dark by the reader's preference; a page that embeds
the drawing may set them itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from kdzoo.ranks import groups

AXIS = 320  # pixels from the best rank to the worst
_TOP, _ROW, _BAR = 62, 24, 9  # y of the axis, heights of a name and of a bar
_LETTER, _SMALL = 8.2, 6.8  # widest mean width of a letter at 14 and 12 pixels, over common fonts
_STYLE = """
.kdzoo-cd { --cd-paper: #ffffff; --cd-ink: #1b2430; --cd-soft: #5c6773; --cd-bar: #b4430f;
  font: 14px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) {
  .kdzoo-cd { --cd-paper: #14181d; --cd-ink: #e6eaf0; --cd-soft: #98a3b0; --cd-bar: #f59a6b; } }
.kdzoo-cd .paper { fill: var(--cd-paper); }
.kdzoo-cd text { fill: var(--cd-ink); }
.kdzoo-cd .soft { fill: var(--cd-soft); font-size: 12px; }
.kdzoo-cd path { fill: none; stroke: var(--cd-ink); stroke-width: 1; }
.kdzoo-cd .lead { stroke: var(--cd-soft); }
.kdzoo-cd .bar { stroke: var(--cd-bar); stroke-width: 4; stroke-linecap: round; }
""".strip()


def critical_svg(mean_ranks: Mapping[str, float], difference: float | None, caption: Sequence[str]) -> str:
    """Draw mean ranks, best at the left. The drawing is as wide as the names need.

    Args:
        mean_ranks: method -> mean rank, at least two methods.
        difference: the critical difference; None where it cannot be tested: then there are no bars.
        caption: lines under the drawing: what was ranked and over what.
    """
    if len(mean_ranks) < 2:
        raise ValueError(
            f"got {len(mean_ranks)} methods, expected at least 2: one alone has no place in an order"
        )
    order = sorted(mean_ranks, key=lambda name: mean_ranks[name])
    last, half = len(order), (len(order) + 1) // 2
    best, worst = order[:half], order[half:][::-1]
    left = 36 + max(len(_label(name, mean_ranks)) for name in best) * _LETTER
    right = 36 + max(len(_label(name, mean_ranks)) for name in worst) * _LETTER
    # The widest line of the caption is centred on the axis.
    rest = (max(map(len, caption), default=0) * _SMALL - AXIS) / 2 + 10
    left, right = round(max(left, rest)), round(max(right, rest))
    width = left + AXIS + right

    def at(rank: float) -> float:
        return left + (rank - 1) / (last - 1) * AXIS

    parts = [_path(f"M{left} {_TOP}h{AXIS}")]
    for rank in range(1, last + 1, 1 + last * 20 // AXIS):  # numbers need 20 pixels each
        parts += [
            _path(f"M{at(rank):.1f} {_TOP}v-6"),
            _text(at(rank), _TOP - 11, str(rank), "middle", "soft"),
        ]
    lanes: list[int] = []
    if difference is not None:
        parts += _scale(left, difference / (last - 1) * AXIS, difference)
        bars = groups(mean_ranks, difference)
        lanes = _lanes(bars, mean_ranks)
        for members, lane in zip(bars, lanes, strict=True):
            low, high = at(mean_ranks[members[0]]), at(mean_ranks[members[-1]])
            parts.append(_path(f"M{low - 3:.1f} {_TOP + 10 + lane * _BAR}H{high + 3:.1f}", "bar"))
    top = _TOP + 26 + (max(lanes, default=0) + 1) * _BAR
    for names, edge, anchor, gap in ((best, left - 10, "end", -6), (worst, left + AXIS + 10, "start", 6)):
        for place, name in enumerate(names):
            y = top + place * _ROW
            parts.append(_path(f"M{at(mean_ranks[name]):.1f} {_TOP}V{y}H{edge}", "lead"))
            parts.append(_text(edge + gap, y + 4.5, _label(name, mean_ranks), anchor))
    bottom = top + half * _ROW + 8
    for place, line in enumerate(caption):
        parts.append(_text(left + AXIS / 2, bottom + place * 17, line, "middle", "soft"))
    height = bottom + 17 * len(caption)
    said = ", ".join(f"{name} {mean_ranks[name]:.2f}" for name in order)
    return (
        f'<svg class="kdzoo-cd" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img"><title>{escape(f"Mean ranks, best first: {said}")}</title>'
        f'<style>{_STYLE}</style><rect class="paper" width="{width}" height="{height}"/>{"".join(parts)}</svg>\n'
    )


def _label(name: str, mean_ranks: Mapping[str, float]) -> str:
    return f"{name} ({mean_ranks[name]:.2f})"


def _scale(left: float, length: float, difference: float) -> list[str]:
    """The critical difference as a length, above the axis; longer than the axis, it is cut off with an arrow."""
    end = "v-4v8" if length <= AXIS else "l-6 -4m6 4l-6 4"
    words = f"critical difference {difference:.2f}"
    return [
        _path(f"M{left:.1f} 24v-4v8v-4h{min(length, AXIS):.1f}{end}"),
        _text(left, 13, words, "start", "soft"),
    ]


def _lanes(bars: Sequence[Sequence[str]], mean_ranks: Mapping[str, float]) -> list[int]:
    """A lane for each bar, so that no two touch; bars come best first."""
    ends: list[float] = []
    lanes = []
    for members in bars:
        low, high = mean_ranks[members[0]], mean_ranks[members[-1]]
        lane = next((i for i, end in enumerate(ends) if end < low), len(ends))
        ends[lane : lane + 1] = [high]
        lanes.append(lane)
    return lanes


def _path(form: str, kind: str = "") -> str:
    return f'<path class="{kind}" d="{form}"/>' if kind else f'<path d="{form}"/>'


def _text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(words)}</text>'
