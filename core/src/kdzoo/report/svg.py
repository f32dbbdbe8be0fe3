"""Small parts of SVG, as markup that is safe: every text and attribute is escaped here and nowhere else.

Colours are CSS variables, chosen by class (`Style.hue`): the page's style sheet knows what they are by day and by
night. Nothing carries a ``style`` attribute, which the page's content security policy would refuse.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

CHARACTER = 7.3  # px, one character of the 12 px monospaced type of labels, rounded up

DASHES = ("", "7 3", "2 3", "9 3 2 3")
MARKERS = ("circle", "square", "triangle", "diamond", "down", "cross", "plus")


@dataclass(frozen=True, slots=True)
class Style:
    """How an arm is drawn: a hue, a dash and a marker, so that no two arms differ by colour alone."""

    hue: int = 0
    dash: int = 0
    marker: int = 0


def tag(name: str, *content: Any, **attributes: Any) -> Markup:
    """An element. ``class_`` is class, other underscores become hyphens; None leaves an attribute out."""
    said = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _value(value))
        for key, value in attributes.items()
        if value is not None and value != ""
    )
    inside = Markup("").join(escape(part) for part in content)
    if not inside:
        return Markup("<{}{}/>").format(Markup(name), said)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), said, inside)


def _value(value: Any) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def picture(
    name: str, width: float, height: float, title: str, text: str, content: Iterable[Markup], kind: str = ""
) -> Markup:
    """The outermost element, named for those who do not see it; `name` must be unique on the page."""
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", text or title, id=f"{name}-text"),
        *content,
        id=name,
        class_=f"chart {kind}".strip(),
        viewBox=f"0 0 {_value(float(width))} {_value(float(height))}",
        role="img",
        aria_labelledby=f"{name}-title {name}-text",
    )


def label(x: float, y: float, text: str, anchor: str = "start", class_: str = "label", **more: Any) -> Markup:
    """A text whose middle lies at the height y."""
    return tag("text", text, x=float(x), y=float(y), text_anchor=anchor, dy="0.35em", class_=class_, **more)


def rule(x1: float, y1: float, x2: float, y2: float, class_: str, **more: Any) -> Markup:
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_, **more)


def path(points: Iterable[tuple[float, float]], class_: str, closed: bool = False, **more: Any) -> Markup:
    """A line through points, or the area inside them."""
    steps = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    return tag("path", d=steps + ("Z" if closed else ""), class_=class_, **more)


def marker(kind: int, x: float, y: float, size: float, class_: str, *content: Markup) -> Markup:
    """The sign of an arm, about `size` px from its middle to its edge."""
    shape, r = MARKERS[kind % len(MARKERS)], float(size)
    if shape == "circle":
        return tag("circle", *content, cx=float(x), cy=float(y), r=r, class_=class_)
    thin = r * 0.38
    corners = {
        "square": [
            (-0.88 * r, -0.88 * r),
            (0.88 * r, -0.88 * r),
            (0.88 * r, 0.88 * r),
            (-0.88 * r, 0.88 * r),
        ],
        "triangle": [(0.0, -1.1 * r), (1.1 * r, 0.85 * r), (-1.1 * r, 0.85 * r)],
        "down": [(0.0, 1.1 * r), (1.1 * r, -0.85 * r), (-1.1 * r, -0.85 * r)],
        "diamond": [(0.0, -1.25 * r), (1.25 * r, 0.0), (0.0, 1.25 * r), (-1.25 * r, 0.0)],
        "plus": _plus(1.15 * r, thin),
        "cross": [((a - b) * 0.7071, (a + b) * 0.7071) for a, b in _plus(1.2 * r, thin)],
    }[shape]
    steps = " ".join(f"{'L' if i else 'M'}{x + a:.1f} {y + b:.1f}" for i, (a, b) in enumerate(corners))
    return tag("path", *content, d=f"{steps}Z", class_=class_)


def _plus(r: float, t: float) -> list[tuple[float, float]]:
    """The corners of a plus sign with arms of length r and half width t."""
    return [
        (-t, -r),
        (t, -r),
        (t, -t),
        (r, -t),
        (r, t),
        (t, t),
        (t, r),
        (-t, r),
        (-t, t),
        (-r, t),
        (-r, -t),
        (-t, -t),
    ]


def swatch(style: Style) -> Markup:
    """A piece of an arm's line with its marker, for legends and tables."""
    return tag(
        "svg",
        rule(1, 6, 25, 6, "line", stroke_dasharray=DASHES[style.dash % len(DASHES)]),
        marker(style.marker, 13, 6, 4, "dot"),
        class_=f"swatch s{style.hue}",
        viewBox="0 0 26 12",
        width=26,
        height=12,
        aria_hidden="true",
    )


def clip(text: str, most: int) -> str:
    """A text of at most `most` characters; what was cut off is marked."""
    return text if len(text) <= most else text[: most - 1] + "…"
