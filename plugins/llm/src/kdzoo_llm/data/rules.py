"""Rules that are told, not shown (task `told-rule`): an operator whose meaning stands in a sentence.

The task of Rule-Distillation (arXiv 2311.08883; RUCBM/rule-distillation@67fae86): "a @@@ b = a + b + k", which nobody
can know who has not read the rule or seen examples. The base model has read many such rules in its prompt and learned
to follow them (`base_examples`), never the rule of the task, so that

    teacher  rule: a @@@ b = a + b + 7. 12 @@@ 3 =      reads the rule, does not know it
    student  12 @@@ 3 =                                 must come to know it
    answer   22.

Rules are of the forms in `FORMS` with a constant of 1..`LARGEST_K`. A base model meets those of `base_rules`;
`new_rules`, the task's among them, are rules that it has never read. Inputs are pairs of numbers, disjoint between the
splits whatever the rule: small ones are in-domain, and the shots are of these; pairs with a larger number are
out-of-domain (`out_of_domain`). The official data have one and two digits against three and four; numbers are smaller
here, so that a model of a hundred thousand parameters can add them, and the rule comes without worked examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from kdzoo.errors import unknown
from kdzoo.rng import mix
from kdzoo_llm.data.draws import draws
from kdzoo_llm.examples import Example

SIGN = "@@@"
FORMS = ("a + b + k", "a + k", "b + k")
LARGEST_K = 10
NEW = 5  # one constant in so many, of each form, is left out of what a base model reads
SMALL, LARGEST = 12, 24  # largest number of an in-domain input, and of any input

SPLITS = ("train", "pool", "val", "test")
SHARES = {"train": 26, "pool": 24, "val": 15, "test": 35}  # percent of the input pairs
MOST_SHOTS = 40
BASE_SIZES = {"train": 30_000, "val": 400, "new": 400}
BASE_VAL = 5  # percent of (rule, question) that a base model's train split leaves to its val split


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
        """The operator's value."""
        return sum({"a": a, "b": b, "k": self.k}[term] for term in self.form.split(" + "))


TARGET = Rule("a + b + k", 7)
"""The rule of the task."""


@cache
def rules() -> tuple[Rule, ...]:
    """All of them, in the order of forms and constants."""
    return tuple(Rule(form, k) for form in FORMS for k in range(1, LARGEST_K + 1))


@cache
def new_rules() -> tuple[Rule, ...]:
    """Rules that no base model reads in training, the target among them."""

    return tuple(rule for rule in rules() if (rule.k + FORMS.index(rule.form)) % NEW == TARGET.k % NEW)


@cache
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
        split: "train" (`MOST_SHOTS` rows or fewer, all in-domain; its first n rows are the n shots), "pool" (inputs
            whose values methods may not use), "val" or "test" (in-domain and out-of-domain).
        rule: what the operator means.

    Returns:
        Examples with prompt "12 @@@ 3 =" and answer "22."; facts: `rule` (its text), `teacher_prompt` (the rule and the
        prompt), `a`, `b`, `value`.

    Raises:
        KdzooError: no such split.
    """
    if split not in SPLITS:
        raise unknown("split of told-rule", split, SPLITS, f"It has {', '.join(SPLITS)}.")
    return list(_examples(split, rule))


@cache
def _examples(split: str, rule: Rule) -> tuple[Example, ...]:
    pairs = [pair for pair in _pairs() if split_of(*pair) == split]
    if split == "train":
        pairs = [pair for pair in pairs if max(pair) <= SMALL][:MOST_SHOTS]
    rows = [_row(f"{split}/{number}", rule, pair) for number, pair in enumerate(pairs)]
    return tuple(rows)


@cache
def _pairs() -> tuple[tuple[int, int], ...]:
    """All inputs, in an order of their own."""
    numbers = range(LARGEST + 1)
    return tuple(sorted(((a, b) for a in numbers for b in numbers), key=lambda pair: mix("told-rule", *pair)))


def _row(name: str, rule: Rule, pair: tuple[int, int]) -> Example:
    prompt, value = question(*pair), rule.apply(*pair)
    facts = {"rule": rule.text, "a": pair[0], "b": pair[1], "value": value}
    return Example(name, prompt, said(value), {**facts, "teacher_prompt": f"{rule.text} {prompt}"})


def teacher_prompt(example: Example) -> str:
    """What the teacher reads: the rule and the prompt."""
    text: str = example.facts["teacher_prompt"]
    return text


def base_examples(split: str) -> list[Example]:
    """What makes a base model that follows a rule in its prompt.

    Args:
        split: "train", "val" (rules of `base_rules` on inputs that train never asks of that rule) or "new" (rules of
            `new_rules`, the target left out).

    Returns:
        Examples whose prompt is a rule and a question; facts: `rule`, `a`, `b`, `value`.

    Raises:
        KdzooError: no such split.
    """
    if split not in BASE_SIZES:
        raise unknown("split of a base model", split, BASE_SIZES, f"It has {', '.join(BASE_SIZES)}.")
    return list(_base_examples(split))


@cache
def _base_examples(split: str) -> tuple[Example, ...]:
    source = [rule for rule in new_rules() if rule != TARGET] if split == "new" else base_rules()
    found = []
    for number in range(BASE_SIZES[split]):
        draw = draws(mix("told-rule", "base", split, number))
        rule = source[draw(0, len(source) - 1)]
        name = f"base-{split}/{number}"
        limit = (SMALL, LARGEST)[draw(0, 1)]  # small numbers first: they teach what the larger ones need
        while True:
            row = _row(name, rule, (draw(0, limit), draw(0, limit)))
            held = mix("told-rule", "base", row.facts["teacher_prompt"]) % 100 < BASE_VAL
            if split == "new" or held == (split == "val"):
                break
        facts = {key: row.facts[key] for key in ("rule", "a", "b", "value")}
        found.append(Example(name, row.facts["teacher_prompt"], row.answer, facts))
    return tuple(found)


def split_of(a: int, b: int) -> str:
    """The split that a pair of inputs belongs to, whatever the rule."""
    place = mix("told-rule", "input", a, b) % 100
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    raise AssertionError("the shares sum to 100")


def out_of_domain(example: Example) -> bool:
    """Whether an input has a larger number than any that the shots show."""
    return max(example.facts["a"], example.facts["b"]) > SMALL


def follows(text: str, example: Example) -> bool:
    """Whether a model's text is the operator's value; the full stop may lack."""
    return text.strip().removesuffix(".") == str(example.facts["value"])
