"""Rules that are told, not shown (task `told-rule`): an operator whose meaning stands in a sentence.

The task of Rule-Distillation (arXiv 2311.08883; RUCBM/rule-distillation@67fae86): "a @@@ b = a + b + k", which nobody
can know who has not read the rule or seen examples. The base model has read many such rules in its prompt and learned
to follow them (`base_examples`), never the rule of the task, so that

    teacher  rule: a @@@ b = a + b + 7. 12 @@@ 30 =      reads the rule, does not know it
    student  12 @@@ 30 =                                 must come to know it
    answer   49.

Rules are of the forms in `FORMS` with a constant k of 1..`LARGEST_K`; a base model meets those of `base_rules`, and
`new_rules` are for val and test of "can it follow a rule that it has never read". Inputs of one or two digits are
in-domain, of three digits out-of-domain (`out_of_domain`): the base model has seen both, the shots are in-domain.
Inputs (pairs a, b) are disjoint between the splits whatever the rule. All of it is a function of split and number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from kdzoo.errors import KdzooError, unknown
from kdzoo.rng import mix
from kdzoo_llm.data.word_problems import Draw, draws
from kdzoo_llm.examples import Example

SIGN = "@@@"
FORMS = ("a + b + k", "a + k", "b + k")
LARGEST_K = 20
NEW_SHARE = 25  # percent of the rules that no base model reads
SMALL, LARGE = (0, 29), (0, 99)  # numbers of the in-domain inputs, and of all inputs

SIZES = {"train": 64, "pool": 1000, "val": 200, "test": 400}
SPLITS = tuple(SIZES)
BASE_SIZES = {"train": 60_000, "val": 500, "new": 500}
MOST_SHOWN = 1  # worked examples behind a rule in a base model's prompt
SHARES = {"train": 10, "pool": 60, "val": 10, "test": 20}  # percent of the input pairs


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """What the operator means: one of `FORMS` with its constant."""

    form: str
    k: int

    @property
    def text(self) -> str:
        """The sentence that says it."""
        return f"rule: a {SIGN} b = {self.form.replace('k', str(self.k))}."

    def apply(self, a: int, b: int) -> int:
        """The operator's value; may be negative."""
        total = sum({"a": a, "b": b}.get(term, 0) for term in self.form.split())
        return total + (self.k if f"+ {'k'}" in self.form else -self.k)


TARGET = Rule("a + b + k", 7)
"""The rule of the task."""


@cache
def rules() -> tuple[Rule, ...]:
    """All of them, in the order of forms and constants."""
    return tuple(Rule(form, k) for form in FORMS for k in range(1, LARGEST_K + 1))


@cache
def new_rules() -> tuple[Rule, ...]:
    """Rules that no base model reads in training, the target among them."""
    return tuple(
        rule
        for rule in rules()
        if rule == TARGET or mix("told-rule", "new", rule.form, rule.k) % 100 < NEW_SHARE
    )


def base_rules() -> tuple[Rule, ...]:
    """Rules that a base model learns to follow."""
    return tuple(rule for rule in rules() if rule not in new_rules())


def question(a: int, b: int) -> str:
    return f"{a} {SIGN} {b} ="


def said(value: int) -> str:
    """An answer: the number with a full stop, as in the official data."""
    return f"{value}."


def examples(split: str, rule: Rule = TARGET) -> list[Example]:
    """Inputs of the operator and its values under one rule; prompts never hold the rule.

    Args:
        split: "train" (its first n rows are the n shots, all in-domain), "pool" (inputs whose values methods may not
            use, half of them out-of-domain), "val" or "test" (half of them out-of-domain).
        rule: what the operator means.

    Returns:
        Examples with prompt "12 @@@ 30 =" and answer "49."; facts: `rule` (its text), `teacher_prompt` (the rule, the
        separator and the prompt), `a`, `b`, `value`, `digits` (of the longer number).

    Raises:
        KdzooError: no such split.
    """
    if split not in SPLITS:
        raise unknown("split of told-rule", split, SPLITS, f"It has {', '.join(SPLITS)}.")
    return list(_examples(split, rule))


@cache
def _examples(split: str, rule: Rule) -> tuple[Example, ...]:
    found = []
    for number, (a, b) in enumerate(_inputs(split, SIZES[split])):
        prompt, value = question(a, b), rule.apply(a, b)
        facts = {
            "rule": rule.text,
            "teacher_prompt": f"{rule.text} {prompt}",
            "a": a,
            "b": b,
            "value": value,
        }
        found.append(Example(f"{split}/{number}", prompt, said(value), facts))
    return tuple(found)


def teacher_prompt(example: Example, shots: Sequence[Example] = ()) -> str:
    """What the teacher reads: the rule, worked examples if there are any, the separator and the prompt.

    Raises:
        KdzooError: more worked examples than a base model has seen in a prompt.
    """
    if len(shots) > MOST_SHOWN:
        raise KdzooError(
            f"{len(shots)} worked examples in a prompt, and base models have been trained with at most {MOST_SHOWN}: "
            f"longer prompts would leave what they have seen. Give {MOST_SHOWN} or fewer."
        )
    shown = [f"{shot.prompt} {shot.answer}" for shot in shots]
    return " ".join([example.facts["rule"], *shown, example.prompt])


def base_examples(split: str) -> list[Example]:
    """What makes a base model that follows a rule in its prompt.

    Args:
        split: "train", "val" (rules of `base_rules`, inputs of the val split) or "new" (rules of `new_rules` but the
            target, inputs of the val split).

    Returns:
        Examples whose prompt holds a rule, up to `MOST_SHOWN` worked examples, the separator and a question.

    Raises:
        KdzooError: no such split.
    """
    if split not in BASE_SIZES:
        raise unknown("split of a base model", split, BASE_SIZES, f"It has {', '.join(BASE_SIZES)}.")
    return list(_base_examples(split))


@cache
def _base_examples(split: str) -> tuple[Example, ...]:
    source = [rule for rule in new_rules() if rule != TARGET] if split == "new" else base_rules()
    inputs = "pool" if split == "train" else "val"
    found = []
    for number in range(BASE_SIZES[split]):
        draw = draws(mix("told-rule", "base", split, number))
        rule = source[draw(0, len(source) - 1)]
        pairs = [_pair(draw, inputs, large=draw(0, 1) == 1) for _ in range(1 + draw(0, MOST_SHOWN))]
        rows = [
            Example("", question(a, b), said(rule.apply(a, b)), {"rule": rule.text, "a": a, "b": b, "value": rule.apply(a, b)})
            for a, b in pairs
        ]
        last, shots = rows[-1], rows[:-1]
        facts = {**last.facts, "shown": len(shots)}
        found.append(Example(f"base-{split}/{number}", teacher_prompt(last, shots), last.answer, facts))
    return tuple(found)


def _inputs(split: str, count: int) -> Iterator[tuple[int, int]]:
    """Different pairs, every second one out-of-domain unless they are shots."""
    made: set[tuple[int, int]] = set()
    place = 0
    while len(made) < count:
        draw = draws(mix("told-rule", split, place))
        place += 1
        pair = _pair(draw, split, large=split != "train" and len(made) % 2 == 1)
        if pair not in made:
            made.add(pair)
            yield pair


def _pair(draw: Draw, split: str, large: bool) -> tuple[int, int]:
    """Two numbers of a split, at least one of them above `SMALL` if they are to be large."""
    while True:
        a, b = (draw(*(LARGE if large else SMALL)) for _ in range(2))
        if split_of(a, b) == split and (max(a, b) > SMALL[1]) == large:
            return a, b


def split_of(a: int, b: int) -> str:
    """The split that a pair of inputs belongs to, whatever the rule."""
    place = mix("told-rule", "input", a, b) % 100
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    raise AssertionError("the shares sum to 100")


def out_of_domain(example: Example) -> bool:
    """Whether an input is longer than those that the shots show."""
    return max(example.facts["a"], example.facts["b"]) > SMALL[1]


def follows(text: str, example: Example) -> bool:
    """Whether a model's text is the operator's value; the full stop may lack."""
    return text.strip().removesuffix(".") == str(example.facts["value"])
