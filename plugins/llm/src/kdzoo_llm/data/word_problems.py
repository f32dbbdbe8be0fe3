"""Arithmetic word problems in two or three steps (task `word-problems`), with a chain of thought for each.

A problem is a template, four numbers or fewer, two people and a thing. Its answer is computed by the template's steps,
so every question has one right number and everything that a model writes can be judged by computing.

    prompt   Anna has 12 apples. Ben gives Anna 5 more. Then Anna loses 4. How many apples does Anna have now?
    answer   12 + 5 = 17. 17 - 4 = 13. --> 13

The text "<rationale> --> <number>" is the form that Mentor-KD trains on (arXiv 2410.09037; 2hojae/mentor-kd@ec9ea11,
src/evaluator.py). A rationale comes in one of `STYLES` wordings, so several right ones exist for a question.

Splits never share a tuple of numbers, whatever the template. Templates in `UNSEEN` occur in val and test alone, made of
words that train knows: `unseen(example)` names that subset. A problem is a function of its split and number alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from kdzoo.errors import KdzooError, unknown
from kdzoo.rng import mix
from kdzoo_llm.data.draws import Draw, draws
from kdzoo_llm.data.word_problem_kinds import TEMPLATES, UNSEEN, Step, Template
from kdzoo_llm.examples import Example

SIZES = {"train": 600, "pool": 4000, "val": 400, "test": 600}
SPLITS = tuple(SIZES)
SHARES = {"train": 15, "pool": 60, "val": 10, "test": 15}  # percent of the number tuples
UNSEEN_SHARE = 20  # percent of val and test
LARGEST = 50  # of all numbers that occur
ARROW = "-->"
STYLES = ("bare", "ordered", "joined")

PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas", "Klara", "Leo")
THINGS = (
    "apples", "pears", "cards", "coins", "books", "stamps", "shells", "pens", "cakes", "eggs", "balls", "stones",
)  # fmt: skip


def examples(split: str) -> list[Example]:
    """The problems of one split.

    Args:
        split: "train", "pool" (questions whose answers methods may not use), "val" or "test".

    Returns:
        Examples whose answer is "<rationale> --> <number>". facts: `number` (the right number as text), `rationale`,
        `style` (one of `STYLES`), `template`, `numbers` (letter -> number), `steps` (how many), `who`, `other`,
        `thing`.

    Raises:
        KdzooError: no such split.
    """
    if split not in SPLITS:
        raise unknown("split of word-problems", split, SPLITS, f"It has {', '.join(SPLITS)}.")
    return list(_examples(split))


@cache
def _examples(split: str) -> tuple[Example, ...]:
    found: list[Example] = []
    prompts: set[str] = set()
    for problem in _problems(split):
        if problem.prompt not in prompts:
            prompts.add(problem.prompt)
            found.append(problem)
        if len(found) == SIZES[split]:
            break
    return tuple(found)


def _problems(split: str) -> Iterator[Example]:
    """Problems without end; numbers that belong to another split, or leave 1..`LARGEST`, are drawn again."""
    seen = [name for name in TEMPLATES if name not in UNSEEN]
    for number in range(1 << 30):
        draw = draws(mix("word-problems", split, number))
        # The kind is drawn before the numbers are judged, else the templates that fit most often would prevail.
        unseen_kind = split in ("val", "test") and draw(1, 100) <= UNSEEN_SHARE
        kinds = UNSEEN if unseen_kind else seen
        name = kinds[draw(0, len(kinds) - 1)]
        numbers = None
        while numbers is None:
            numbers = _numbers(TEMPLATES[name], draw)
            if numbers is not None and split_of(tuple(numbers.values())) != split:
                numbers = None
        first = draw(0, len(PEOPLE) - 1)
        second = (first + draw(1, len(PEOPLE) - 1)) % len(PEOPLE)
        words = {"who": PEOPLE[first], "other": PEOPLE[second], "thing": THINGS[draw(0, len(THINGS) - 1)]}
        style = STYLES[draw(0, len(STYLES) - 1)]
        reason = rationale(equations(name, numbers), style)
        answer = equations(name, numbers)[-1][3]
        yield Example(
            f"{split}/{number}",
            TEMPLATES[name].text.format(**words, **numbers),
            target(reason, str(answer)),
            {
                "number": str(answer),
                "rationale": reason,
                "style": style,
                "template": name,
                "numbers": numbers,
                "steps": len(TEMPLATES[name].steps),
                **words,
            },
        )


def split_of(numbers: Sequence[int]) -> str:
    """The split that a tuple of numbers belongs to, whatever the template."""
    place = mix("word-problems", "numbers", *numbers) % 100
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    raise AssertionError("the shares sum to 100")


def _numbers(template: Template, draw: Draw) -> dict[str, int] | None:
    """Numbers for a template, None where a step leaves 1..`LARGEST`."""
    numbers = {letter: draw(*limits) for letter, limits in template.ranges.items()}
    if template.whole is not None:
        letter, other, divisor = template.whole
        low, high = template.ranges[letter]
        fitting = [n for n in range(low, high + 1) if (n + numbers[other]) % numbers[divisor] == 0]
        numbers[letter] = fitting[draw(0, len(fitting) - 1)]
    results: list[int] = []
    for step in template.steps:
        result = _compute(step, numbers, results)[3]
        if not 1 <= result <= LARGEST:
            return None
        results.append(result)
    return numbers


def _compute(step: Step, numbers: Mapping[str, int], results: Sequence[int]) -> tuple[int, str, int, int]:
    left, right = (_value(term, numbers, results) for term in (step[0], step[2]))
    return left, step[1], right, calculate(left, step[1], right)


def _value(term: str, numbers: Mapping[str, int], results: Sequence[int]) -> int:
    if term.startswith("="):
        return int(term[1:])
    return results[int(term)] if term.isdigit() else numbers[term]


def calculate(left: int, sign: str, right: int) -> int:
    """One step; division is of multiples only."""
    if sign == "/":
        return left // right
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


Equation = tuple[int, str, int, int]
"""(left, sign, right, result)."""


def equations(template: str, numbers: Mapping[str, int]) -> list[Equation]:
    """The steps of a problem, computed."""
    found: list[Equation] = []
    for step in TEMPLATES[template].steps:
        found.append(_compute(step, numbers, [row[3] for row in found]))
    return found


def rationale(steps: Sequence[Equation], style: str) -> str:
    """A chain of thought in one of the wordings of `STYLES`.

    Raises:
        KdzooError: no such style.
    """
    if style not in STYLES:
        raise unknown("style of a rationale", style, STYLES, f"There are {', '.join(STYLES)}.")
    said = [f"{left} {sign} {right} = {result}" for left, sign, right, result in steps]
    if style == "bare":
        return ". ".join(said) + "."
    if style == "ordered":
        return " ".join(f"{'First' if k == 0 else 'Then'} {step}." for k, step in enumerate(said))
    return ", so ".join(said) + "."


def target(rationale: str, number: str) -> str:
    """What a student of chains of thought is to write; `number` alone where there is no rationale."""
    return f"{rationale} {ARROW} {number}" if rationale else number


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def answer_of(text: str) -> str:
    """The number that a model's text gives as its answer.

    Commas are taken out. Behind the first arrow and before the next one the first number counts; without an arrow the
    last number of the whole text. A text without numbers is its own answer, which is never right.

    Source: 2hojae/mentor-kd@ec9ea11 src/evaluator.py (Evaluator.cleanse_prediction, arrow form, numbers). Differs
    in one point: a full stop behind a number is no part of it.
    """
    parts = text.split(ARROW)
    said = parts[1] if len(parts) > 1 else text
    found = _NUMBER.findall(said.replace(",", ""))
    if not found:
        return said
    return found[0] if len(parts) > 1 else found[-1]


def is_correct(text: str, example: Example) -> bool:
    """Whether a model's text ends in the right number; 13.0 is 13."""
    try:
        return float(answer_of(text)) == float(example.facts["number"])
    except ValueError:
        return False


def rationale_of(text: str) -> str:
    """What a model's text says before its arrow, without blanks around it."""
    return text.split(ARROW)[0].strip()


def unseen(example: Example) -> bool:
    """Whether a problem is of a template that train and pool never show."""
    return example.facts["template"] in UNSEEN


def speak(example: Example, sample: int, error_rate: float) -> str:
    """What a scripted teacher says to a problem: a chain of thought and a number, wrong at a known rate.

    An error is one of four kinds, equally often: a step's result is off, and the rest follows from it; a sign is mixed
    up, and the rest follows; the last step is forgotten; a step is off but the last result is right, so that a filter
    that compares answers keeps it.

    Args:
        example: a problem of this module.
        sample: which of the teacher's answers to this question; each has its own wording and errors.
        error_rate: share of wrong chains of thought, in [0, 1].

    Raises:
        KdzooError: an error rate outside [0, 1].
    """
    if not 0 <= error_rate <= 1:
        raise KdzooError(
            f"error_rate {error_rate} is no share: 0.2 means that one chain of thought in five is wrong. "
            "Give a number from 0 to 1."
        )
    draw = draws(mix("word-problems", "speak", example.id, sample))
    style = STYLES[draw(0, len(STYLES) - 1)]
    wrong = draw(0, (1 << 20) - 1) < error_rate * (1 << 20)
    steps = equations(example.facts["template"], example.facts["numbers"])
    if wrong:
        steps = _mistaken(example, draw)
    return target(rationale(steps, style), str(steps[-1][3]))


def _mistaken(example: Example, draw: Draw) -> list[Equation]:
    template, numbers = TEMPLATES[example.facts["template"]], example.facts["numbers"]
    right = equations(example.facts["template"], numbers)
    kind, where = draw(0, 3), draw(0, len(right) - 1)
    if kind == 2:
        return right[:-1]
    if kind == 3:  # one step before the last one is off, and nothing follows from it
        row = right[draw(0, len(right) - 2)]
        spoilt = (*row[:3], _off(row[3], draw))
        return [spoilt if found is row else found for found in right]
    found: list[Equation] = []
    for place, step in enumerate(template.steps):
        left, sign, second, result = _compute(step, numbers, [row[3] for row in found])
        if place == where and kind == 1:
            sign = "-" if sign in "+*" else "+"
        if sign == "-":  # a mistaken step may make the next one negative
            left, second = max(left, second), min(left, second)
        result = calculate(left, sign, second)
        if place == where and kind == 0:
            result = _off(result, draw)
        found.append((left, sign, second, result))
    return found


def _off(result: int, draw: Draw) -> int:
    """Another number nearby, never negative."""
    shift = (1, 2, 10)[draw(0, 2)]
    return result - shift if draw(0, 1) and result > shift else result + shift
