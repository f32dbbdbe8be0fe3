"""Generated statements on their way: what is kept of what a teacher wrote, who may learn from it, files between stages.

A question is what is asked ("dog (member genus canis) is a kind of"), a tail is the answer, a triple is both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from kdzoo.artefacts import write_atomic
from kdzoo.errors import KdzooError
from kdzoo.rng import mix
from kdzoo.speakers.speech import Generation

SHARES = {"train": 80, "val": 10, "test": 10}
"""Percent of the heads, so that no head of the critic's and the student's training is one that is measured on."""
SHORTEST = 3
"""Characters of a tail; the official code drops those of one and two."""


class Triple(msgspec.Struct, frozen=True):
    """A generated statement.

    Attributes:
        question, tail: what was asked, what was written.
        facts: of the question, as the task reads them; `head` decides the split.
        logprob: log-probability of the tail under the teacher, its end included, nats.
        split: train, val or test, by head.
    """

    question: str
    tail: str
    facts: dict[str, Any]
    logprob: float
    split: str


def kept_questions(
    written: Iterable[Generation],
    parse: Callable[[str], Mapping[str, Any] | None],
    *,
    drop: float,
    reserved: frozenset[str] = frozenset(),
) -> dict[str, dict[str, Any]]:
    """Questions worth asking, the most probable first, with their facts.

    Unfinished texts are dropped, of equal ones the last is kept, then the share `drop` that is least probable goes, and
    then what is no question: what `parse` cannot read, or what is about a reserved head.

    Args:
        written: with `logprobs`.
        parse: facts of a question, `head` among them, or None.
        drop: share in [0, 1); 0.2 in the official code.
        reserved: heads that are tested on.

    Source: peterwestai2/symbolic-knowledge-distillation@7fa8cbf generate_events.ipynb.
    """
    totals: dict[str, float] = {}
    for sample in written:
        text = sample.text.strip()
        if text and sample.finish == "stop":
            totals[text] = sum(sample.logprobs or ())
    ranked = sorted(totals, key=lambda text: -totals[text])
    found = {}
    for text in ranked[: len(ranked) - int(drop * len(ranked))]:
        facts = parse(text)
        if facts is not None and facts["head"] not in reserved:
            found[text] = dict(facts)
    return found


def kept_tails(samples: Iterable[Generation]) -> dict[str, float]:
    """Distinct tails of one question, in the order in which they came, with their log-probabilities.

    Blanks around, a full stop at the end and unfinished or very short texts are dropped.

    Source: peterwestai2/symbolic-knowledge-distillation@7fa8cbf generate_inferences.ipynb.
    """
    found: dict[str, float] = {}
    for sample in samples:
        tail = sample.text.strip().removesuffix(".").rstrip()
        if len(tail) >= SHORTEST and sample.finish == "stop":
            found.setdefault(tail, sum(sample.logprobs or ()))
    return found


def split_of(head: str) -> str:
    """The part of the corpus that a head belongs to, with all that is said about it."""
    place = mix("triples", "split", head) % 100
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    raise AssertionError("the shares sum to 100")


def sample(triples: list[Triple], count: int) -> list[int]:
    """Places of `count` triples (or of all) to be shown to people: a choice that does not depend on the others."""
    ranked = sorted(
        range(len(triples)),
        key=lambda place: mix("triples", "sample", triples[place].question, triples[place].tail),
    )
    return sorted(ranked[:count])


def exchanged(triples: list[Triple]) -> list[Triple]:
    """The control: every question with the tail that was written for another one, half of the list away."""
    half = len(triples) // 2
    moved = triples[half:] + triples[:half]
    return [msgspec.structs.replace(one, tail=other.tail) for one, other in zip(triples, moved, strict=True)]


def write(path: Path, content: Any) -> None:
    """A file between two stages: whole, or not there."""
    write_atomic(path, msgspec.json.encode(content) + b"\n")


def read(path: Path, kind: Any) -> Any:
    """What `write` has written.

    Raises:
        KdzooError: it is missing or damaged.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise KdzooError(
            f"{path} cannot be read ({error}). Make the stage again that wrote it: run the same command with --fresh."
        ) from error
