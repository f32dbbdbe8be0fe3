"""The kinds of word problems: their sentences, the numbers they take, and the steps that solve them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

Step = tuple[str, str, str]
"""(left, sign, right): a letter names a number of the problem, a digit an earlier step's result, "=2" a constant."""


@dataclass(frozen=True, slots=True)
class Template:
    """One kind of problem.

    Attributes:
        text: the question, with {who}, {other}, {thing} and the letters of its numbers.
        steps: how the answer is computed.
        ranges: letter -> smallest and largest number drawn; the letter that `whole` names is drawn last.
        whole: (letter, others, divisor): this letter is set so that the sum of it and the others is a multiple of the
            divisor's number.
    """

    text: str
    steps: tuple[Step, ...]
    ranges: Mapping[str, tuple[int, int]]
    whole: tuple[str, str, str] | None = None


_HAVE = "How many {thing} does {who} have now?"
_TOGETHER = "How many {thing} do they have together?"
_MANY, _SOME, _FEW = (6, 24), (2, 9), (2, 5)
TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        "gift": Template(
            f"{{who}} has {{a}} {{thing}}. {{other}} gives {{who}} {{b}} more. Then {{who}} loses {{c}}. {_HAVE}",
            (("a", "+", "b"), ("0", "-", "c")),
            {"a": _MANY, "b": _SOME, "c": _SOME},
        ),
        "boxes": Template(
            f"{{who}} buys {{a}} boxes with {{b}} {{thing}} each. Then {{who}} gives {{c}} to {{other}}. {_HAVE}",
            (("a", "*", "b"), ("0", "-", "c")),
            {"a": _FEW, "b": _SOME, "c": _FEW},
        ),
        "more": Template(
            f"{{who}} has {{a}} {{thing}}. {{other}} has {{b}} more than {{who}}. {_TOGETHER}",
            (("a", "+", "b"), ("a", "+", "0")),
            {"a": _MANY, "b": _SOME},
        ),
        "fewer": Template(
            f"{{who}} has {{a}} {{thing}}. {{other}} has {{b}} fewer than {{who}}. {_TOGETHER}",
            (("a", "-", "b"), ("a", "+", "0")),
            {"a": _MANY, "b": _SOME},
        ),
        "share": Template(
            "{who} has {a} {thing} and finds {b} more. {who} shares them with {c} friends. "
            "How many {thing} does each friend get?",
            (("a", "+", "b"), ("0", "/", "c")),
            {"a": _MANY, "b": _SOME, "c": _FEW},
            whole=("b", "a", "c"),
        ),
        "bags": Template(
            f"{{who}} packs {{a}} bags with {{b}} {{thing}} each. {{other}} packs {{c}} {{thing}}. {_TOGETHER}",
            (("a", "*", "b"), ("0", "+", "c")),
            {"a": _FEW, "b": _SOME, "c": _FEW},
        ),
        "both": Template(
            "{who} buys {a} boxes with {b} {thing} each. {other} buys {c} boxes with {d} {thing} each. "
            + _TOGETHER,
            (("a", "*", "b"), ("c", "*", "d"), ("0", "+", "1")),
            {"a": _FEW, "b": _FEW, "c": _FEW, "d": _FEW},
        ),
        "market": Template(
            "{who} has {a} {thing}. {who} sells {b} and then {c} more. Then {other} gives {who} {d}. "
            + _HAVE,
            (("a", "-", "b"), ("0", "-", "c"), ("1", "+", "d")),
            {"a": _MANY, "b": _FEW, "c": _FEW, "d": _SOME},
        ),
        "twice": Template(
            f"{{who}} has {{a}} {{thing}}. {{other}} has twice as many. Then {{who}} loses {{b}}. {_TOGETHER}",
            (("a", "*", "=2"), ("a", "-", "b"), ("0", "+", "1")),
            {"a": (6, 16), "b": _FEW},
        ),
        "friend": Template(
            "{who} has {a} {thing} and {other} has {b}. They give {c} to a friend. " + _TOGETHER,
            (("a", "+", "b"), ("0", "-", "c")),
            {"a": _MANY, "b": _SOME, "c": _FEW},
        ),
        "finds": Template(
            f"{{who}} buys {{a}} {{thing}} and finds {{b}} more. Then {{who}} gives {{c}} to {{other}}. {_HAVE}",
            (("a", "+", "b"), ("0", "-", "c")),
            {"a": _MANY, "b": _SOME, "c": _SOME},
        ),
        "packs": Template(
            f"{{who}} packs {{a}} bags with {{b}} {{thing}} each. Then {{who}} loses {{c}}. {_HAVE}",
            (("a", "*", "b"), ("0", "-", "c")),
            {"a": _FEW, "b": _SOME, "c": _FEW},
        ),
        "sells": Template(
            f"{{who}} has {{a}} {{thing}} and sells {{b}}. {{other}} has {{c}} {{thing}}. {_TOGETHER}",
            (("a", "-", "b"), ("0", "+", "c")),
            {"a": _MANY, "b": _FEW, "c": _SOME},
        ),
        "stock": Template(
            "{who} buys {a} boxes with {b} {thing} each and finds {c} more. Then {who} sells {d}. " + _HAVE,
            (("a", "*", "b"), ("0", "+", "c"), ("1", "-", "d")),
            {"a": _FEW, "b": _SOME, "c": _FEW, "d": _FEW},
        ),
    }
)
UNSEEN = ("finds", "packs", "sells", "stock")
"""Templates that train and pool never show."""
