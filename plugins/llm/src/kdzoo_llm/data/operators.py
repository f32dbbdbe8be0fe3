"""An invented operator, "a @@@ b = a + b + k", and the rule that explains it.

The arithmetic task of "Enabling Large Language Models to Learn from Rules" (2023, https://arxiv.org/abs/2311.08883;
card rule-distillation). A small model first learns to follow such rules in its prompt, for many k but not for the
target's; then the target rule is to be learned from a few examples, with or without reading it.
Numbers are written digit by digit; all of it is computed.
"""

from __future__ import annotations

from functools import lru_cache

from kdzoo.errors import KdzooError, unknown
from kdzoo.rng import mix
from kdzoo_llm.data.digits import DIGITS, Order, spell
from kdzoo_llm.data.draws import Draws
from kdzoo_llm.data.examples import Example

SHOTS = (4, 8, 16, 32)  # card rule-distillation, "Tasks"
RULES = tuple(range(100))
TARGET = 17  # as 17 and 7 its digits occur in other rules: no part of it is new, the whole is
ZEROS = 0.35  # share of the base's digits that are 0 beside those drawn: sums of fewer digits lead to those of more
PLAIN = 0.2  # share of the base rows that are ordinary sums without a rule
POOL, VAL, TEST = 200, 200, 500  # val and test: that many in the domain, as many outside
SIZES = {"in": (0, 99), "out": (100, 999)}  # operands; the paper's tests outside the domain have 3-4 digits
SHARES = {"train": 0.2, "pool": 0.2, "val": 0.2, "test": 0.4}  # of all pairs of operands


def rule_text(k: int, order: Order = "most", width: int = 1) -> str:
    """The rule as a prompt's first sentence."""
    return f"rule : a @@@ b = a + b + {spell(k, order, width)} ."


def question(a: int, b: int, order: Order = "most", width: int = 1, sign: str = "@@@") -> str:
    return f"{spell(a, order, width)} {sign} {spell(b, order, width)} ="


@lru_cache(maxsize=8)
def base(
    split: str, number: int = 20_000, target: int = TARGET, order: Order = "most", width: int = 1
) -> list[Example]:
    """Rows that teach a model to add and to follow a rule that it reads; never the target's rule.

    Half of the operands have up to three digits: what the rule says of long numbers is to be known already.

    Args:
        split: "train" or "val"; no row is in both.
        number: rows.
        target: the k that no rule has.
        order: which digit is written first.
        width: zeros fill the numbers of questions and rules up to so many digits; answers one more.

    Raises:
        KdzooError: no such split.
    """
    if split not in ("train", "val"):
        raise unknown("split of the base rows", split, ("train", "val"), "It has train, val.")
    rules = [k for k in RULES if k != target]
    rows: list[Example] = []
    seen: set[str] = set()
    attempt = 0
    while len(rows) < number:
        attempt += 1
        draws = Draws("operators", "base", attempt)
        k = -1 if draws.chance(PLAIN) else draws.one(rules)
        a, b = (thinned(draws, 3 if draws.chance(0.5) else 2) for _ in range(2))
        side = "val" if mix("operators", "side", k, a, b) % 10 == 0 else "train"
        ask = question(a, b, order, width, "+") if k < 0 else question(a, b, order, width)
        prompt = ask if k < 0 else f"{rule_text(k, order, width)} {ask}"
        if side != split or prompt in seen:
            continue
        seen.add(prompt)
        answer = spell(a + b + max(k, 0), order, width + (width > 1))
        rows.append(Example(f"base/{split}/{len(rows)}", prompt, answer))
    return rows


def thinned(draws: Draws, digits: int) -> int:
    """A number of at most so many digits, some of them 0 more often than others (`ZEROS`)."""
    drawn = [0 if draws.chance(ZEROS) else draws.below(10) for _ in range(digits)]
    return sum(digit * 10**place for place, digit in enumerate(drawn))


@lru_cache(maxsize=64)
def load(
    split: str,
    shots: int = max(SHOTS),
    draw: int = 0,
    target: int = TARGET,
    order: Order = "most",
    width: int = 1,
) -> list[Example]:
    """Rows of the target operator, as questions without the rule.

    Args:
        split: "train": `shots` examples in the domain (one or two digits); "pool": questions in the domain, answers
            empty; "val" and "test": in the domain (ids ``<split>/id/<n>``) and outside (``<split>/ood/<n>``).
        shots: for train only; fewer shots of one draw are the first of more shots.
        draw: for train only: another number draws other examples.
        target, order, width: as in `base`.

    Returns:
        No pair of operands is in two splits, whatever the draw. Do not change the list.

    Raises:
        KdzooError: no such split; a number of shots that the paper does not have.
    """
    if split not in SHARES:
        raise unknown("split of the operator task", split, SHARES, f"It has {', '.join(SHARES)}.")
    if split == "train" and shots not in SHOTS:
        raise KdzooError(
            f"{shots} shots are asked for, expected one of {SHOTS}: others have no published setting."
        )
    if split in ("train", "pool"):
        parts = [
            ("id", pairs(split, "in", shots if split == "train" else POOL, draw if split == "train" else 0))
        ]
    else:
        number = VAL if split == "val" else TEST
        parts = [("id", pairs(split, "in", number)), ("ood", pairs(split, "out", number))]
    rows = []
    for part, found in parts:
        for number, (a, b) in enumerate(found):
            name = f"{split}/{draw}/{part}/{number}" if split == "train" else f"{split}/{part}/{number}"
            answer = "" if split == "pool" else spell(a + b + target, order, width + (width > 1))
            rows.append(Example(name, question(a, b, order, width), answer))
    return rows


def pairs(split: str, size: str, number: int, draw: int = 0) -> list[tuple[int, int]]:
    """Different pairs of operands that belong to a split, the first `number` of a draw."""
    found: dict[tuple[int, int], None] = {}
    attempt = 0
    while len(found) < number:
        attempt += 1
        draws = Draws("operators", split, size, draw, attempt)
        pair = (draws.between(*SIZES[size]), draws.between(*SIZES[size]))
        if split_of(*pair) == split:
            found[pair] = None
    return list(found)


def split_of(a: int, b: int) -> str:
    """The split that a pair of operands belongs to, as a function of the pair."""
    place = mix("operators", "pair", a, b) % 1000 / 1000
    for split, share in SHARES.items():
        place -= share
        if place < -1e-9:
            return split
    return "test"


def with_rule(example: Example, k: int = TARGET, order: Order = "most", width: int = 1) -> str:
    """The prompt of the teacher, who reads the rule."""
    return f"{rule_text(k, order, width)} {without_rule(example)}"


def without_rule(example: Example) -> str:
    """The prompt of the student."""
    return example.prompt


def is_correct(example: Example, text: str) -> bool:
    """Whether a text is the right number, digit for digit; a full stop behind it does not matter."""
    return text.removesuffix(".").split() == example.answer.split()


def words() -> list[str]:
    """All words of rules, questions and answers, sorted."""
    return sorted({*DIGITS, "rule", ":", "a", "@@@", "b", "=", "+", "."})
