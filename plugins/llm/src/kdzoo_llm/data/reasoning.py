"""Multi-step questions with a scripted teacher that explains its answers and is sometimes wrong.

Two kinds of questions of "Mentor-KD: Making Small Language Models Better Multi-step Reasoners" (2024,
https://arxiv.org/abs/2410.09037; card mentor-kd): tracking shuffled objects (`kdzoo_llm.data.shuffles`) and
arithmetic word problems (`kdzoo_llm.data.sums`), in turns. The teacher is a script in the place of a large model: of
its chains of thought a fifth holds a mistake, most of which lead to a wrong answer.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from kdzoo.errors import KdzooError, unknown
from kdzoo_llm.data import shuffles, sums
from kdzoo_llm.data.digits import DIGITS, read
from kdzoo_llm.data.draws import Draws
from kdzoo_llm.data.examples import Example
from kdzoo_llm.data.mistakes import Mistake

if TYPE_CHECKING:
    from kdzoo.speakers.scripted import Asked

ARROW = "-->"  # 2hojae/mentor-kd@ec9ea11 src/evaluator.py, task type ft_cot_token
SIZES = {"train": 300, "pool": 1500, "val": 400, "test": 800}
KINDS = ("swaps", "sums")
SWAPS = (3, 3)  # card mentor-kd, "Small-scale bench"
CORRUPTED = 0.2  # card mentor-kd, "Small-scale bench"
CARRIED = 0.75  # of the mistakes; the others are not gone on from


@lru_cache(maxsize=16)
def load(split: str, swaps: tuple[int, int] = SWAPS, ranges: sums.Ranges | None = None) -> list[Example]:
    """Questions of both kinds in turns, with their right answers only.

    Args:
        split: "train": the teacher explains these; "pool": questions without explanations; "val"; "test".
        swaps: fewest and most swaps of a question about objects.
        ranges: how hard the arithmetic problems are; None: `sums.Ranges()`.

    Returns:
        Examples with ids ``<split>/<kind>/<number>``; no question is in two splits. Do not change the list.

    Raises:
        KdzooError: no such split.
    """
    if split not in SIZES:
        raise unknown("split of the reasoning questions", split, SIZES, f"It has {', '.join(SIZES)}.")
    return _all(swaps, ranges or sums.Ranges())[split]


@lru_cache(maxsize=4)
def _all(swaps: tuple[int, int], ranges: sums.Ranges) -> dict[str, list[Example]]:
    """All splits: what an earlier one has is drawn anew."""
    splits: dict[str, list[Example]] = {split: [] for split in SIZES}
    seen: set[str] = set()
    for split, size in SIZES.items():
        for number in range(size):
            question = _new(seen, split, number, swaps, ranges)
            seen.add(question)
            answer = _chain(question)[1]
            splits[split].append(Example(f"{split}/{KINDS[number % 2]}/{number}", question, answer))
    return splits


def _new(seen: set[str], split: str, number: int, swaps: tuple[int, int], ranges: sums.Ranges) -> str:
    """A question that is not in `seen`."""
    for attempt in range(1000):
        draws = Draws("reasoning", split, number, attempt)
        question = sums.draw(draws, ranges) if number % 2 else shuffles.draw(draws, swaps)
        if question not in seen:
            return question
    raise KdzooError(
        f"no new question for {split}/{number} in 1,000 attempts with {swaps} swaps and {ranges}: there are too few "
        "different ones. Widen the ranges."
    )


def rationale(example: Example) -> str:
    """The right chain of thought of a question, without arrow and answer."""
    return _chain(example.prompt)[0]


def target(rationale: str, answer: str) -> str:
    """What a student is to write (card C2)."""
    return f"{rationale} {ARROW} {answer}"


def answer_of(text: str) -> str | None:
    """The answer in what somebody wrote: an object, or a number as single digits (card C7).

    The first candidate behind the last arrow; without an arrow, the last candidate of the text. (The official code
    looks behind the first arrow; the two differ where a model goes on after its answer.)
    """
    _, arrow, after = text.rpartition(ARROW)
    found = _candidates(after)
    if not found:
        return None
    return found[0] if arrow else found[-1]


def is_correct(example: Example, text: str) -> bool:
    """Whether the answer in a text is the right one; zeros in front of a number do not matter."""
    found = answer_of(text)
    if found is None or (found[0] in DIGITS) != (example.answer[0] in DIGITS):
        return False
    return found == example.answer or (found[0] in DIGITS and read(found) == read(example.answer))


def script(asked: Asked) -> str:
    """What the teacher writes about a question: "<chain of thought> --> <answer>"; for a `ScriptedSpeaker`.

    Another sample of the same question may be wrong where this one is right.

    Raises:
        KdzooError: the prompt is not one of the questions.
    """
    corrupted, place, choice, carried = (float(draw) for draw in asked.uniforms(4))
    mistake = Mistake(place, choice, carried < CARRIED) if corrupted < CORRUPTED else None
    if not isinstance(asked.prompt, str):
        raise KdzooError(
            f"request {asked.request.id!r}: this script reads plain text, not {type(asked.prompt)}."
        )
    try:
        return target(*_chain(asked.prompt, mistake))
    except ValueError as error:
        raise KdzooError(
            f"request {asked.request.id!r}: {error}. This script answers the questions of "
            "kdzoo_llm.data.reasoning only, word for word."
        ) from error


def words() -> list[str]:
    """All words of questions, chains of thought and answers, sorted."""
    return sorted({*shuffles.words(), *sums.words(), ARROW})


def _chain(question: str, mistake: Mistake | None = None) -> tuple[str, str]:
    kind = shuffles if question.partition(" ")[0] in shuffles.PEOPLE else sums
    return kind.chain(question, mistake)


def _candidates(text: str) -> list[str]:
    """Objects, and numbers as unbroken runs of digits, in reading order."""
    found: list[str] = []
    in_number = False
    for word in text.split():
        if word in DIGITS and in_number:
            found[-1] += f" {word}"
        elif word in DIGITS or word in shuffles.OBJECTS:
            found.append(word)
        in_number = word in DIGITS
    return found
