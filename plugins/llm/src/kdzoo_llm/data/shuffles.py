"""Questions of the kind "tracking shuffled objects": three people swap what they hold (BIG-bench's names).

A state is written in the order of PEOPLE, so that each holder's object has its place in the chain of thought, and so
is a pair that swaps: no two questions differ in nothing but that order.
"""

from __future__ import annotations

from kdzoo_llm.data.draws import Draws
from kdzoo_llm.data.mistakes import Mistake

PEOPLE = ("alice", "bob", "claire")  # google/BIG-bench, task tracking_shuffled_objects with three objects
OBJECTS = ("ball", "book", "cup", "hat", "key")  # three of them: 4,860 different questions with three swaps
PAIRS = tuple((a, b) for a in PEOPLE for b in PEOPLE if a < b)


def draw(draws: Draws, swaps: tuple[int, int]) -> str:
    """A question with a number of swaps in this range, both ends included."""
    held = draws.some(OBJECTS, len(PEOPLE))
    start = " , ".join(f"{person} has the {thing}" for person, thing in zip(PEOPLE, held, strict=True))
    pairs = [draws.one(PAIRS) for _ in range(draws.between(*swaps))]
    moves = " ".join(f"{a} and {b} swap ." for a, b in pairs)
    return f"{start} . {moves} what does {draws.one(PEOPLE)} have ?"


def chain(question: str, mistake: Mistake | None = None) -> tuple[str, str]:
    """What everybody holds after each swap, and the object that is asked for.

    A line has three words a person: who, whose object of the line before, and that object. Each word then follows
    from a look at one place, which a model of one layer can learn.

    Returns:
        (chain of thought, answer); with a mistake, both as they follow from it.

    Raises:
        ValueError: the question is not of this kind.
    """
    held, pairs, asked = _read(question)
    wrong_at = int(mistake.place * len(pairs)) if mistake else None
    lines = []
    for number, pair in enumerate(pairs):
        gives, after = _givers(pair), _swap(held, pair)
        if mistake and number == wrong_at:
            wrong = _wrong(pair, mistake.choice)
            gives = _givers(wrong)
            after = _swap(held, wrong) if mistake.carried or number == len(pairs) - 1 else after
        lines.append(" ".join(f"{person} {gives[person]} {held[gives[person]]}" for person in PEOPLE))
        held = after
    return " ; ".join([*lines, f"so {asked} {held[asked]}"]), held[asked]


def words() -> list[str]:
    """All words that questions and chains can have, sorted."""
    fixed = ["has", "the", "and", "swap", "what", "does", "have", "so", ".", ",", "?", ";"]
    return sorted({*PEOPLE, *OBJECTS, *fixed})


def _read(question: str) -> tuple[dict[str, str], list[tuple[str, str]], str]:
    """Who holds what at first, the swaps, and who is asked for."""
    try:
        start, *moves, ask = question.split(" . ")
        held = {part.split()[0]: part.split()[3] for part in start.split(" , ")}
        pairs = [(move.split()[0], move.split()[2]) for move in moves]
        asked = ask.split()[2]
        known = {asked, *held, *(person for pair in pairs for person in pair)} == set(PEOPLE)
    except (ValueError, IndexError):
        known = False
    if not known:
        raise ValueError(f"{question!r} is no question about shuffled objects")
    return held, pairs, asked


def _givers(pair: tuple[str, ...]) -> dict[str, str]:
    """Whose object each person has after a swap; an empty pair: nobody swaps."""
    return {person: person for person in PEOPLE} | dict(zip(pair, reversed(pair), strict=True))


def _swap(held: dict[str, str], pair: tuple[str, ...]) -> dict[str, str]:
    return {person: held[giver] for person, giver in _givers(pair).items()}


def _wrong(pair: tuple[str, str], choice: float) -> tuple[str, ...]:
    """No swap at all, or that of another pair."""
    return [(), *(other for other in PAIRS if set(other) != set(pair))][int(choice * 3)]
