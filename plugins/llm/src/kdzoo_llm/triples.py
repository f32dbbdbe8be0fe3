"""Triples that a teacher wrote: cleaned, judged by persons, mismatched, cut off by a recall; for symbolic-kd.

What is done here needs no model. Sources are of peterwestai2/symbolic-knowledge-distillation@7fa8cbf, unless they are
called ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import msgspec
from torch import Tensor

from kdzoo.errors import KdzooError
from kdzoo.rng import mix
from kdzoo.speakers.corpus import Corpus
from kdzoo.speakers.speech import Generation
from kdzoo_llm.data.draws import Draws

PARTS = {
    "train": 0.6,
    "val": 0.2,
    "test": 0.2,
}  # of the judged heads, ours; 80/10/10 of all heads in the code
SIMPLE = re.compile(r"[A-Za-z0-9 ,.'!?-]+")
SHORTEST = 3  # characters of a tail; official code


class Triple(msgspec.Struct, frozen=True):
    """What the teacher wrote: `said` is the log-probability of the tail (nats), or None where it gave none."""

    head: str
    relation: str
    tail: str
    said: float | None

    @property
    def id(self) -> str:
        return f"{self.head}/{self.relation}/{self.tail}"


def clean_heads(samples: Sequence[Generation], dropped: float) -> list[str]:
    """C1: each text once, without the least probable share, without odd characters.

    Args:
        samples: with log-probabilities where `dropped` is above 0; of equal texts the first counts.
        dropped: share that is left out, 0.2 in the official code.

    Returns:
        The texts, the most probable first where a share is dropped, else in the order of the samples.
    """
    found: dict[str, Generation] = {}
    for sample in samples:
        found.setdefault(sample.text.strip(), sample)
    texts = [text for text in found if text]
    if dropped:
        chances = {text: log_probability(found[text]) for text in texts}
        if any(chance is None for chance in chances.values()):
            raise KdzooError(
                "the speaker gives no log-probabilities, so the least probable heads cannot be told: those that a "
                "model hardly means would stay. Use an endpoint that gives them, or set dropped = 0."
            )
        texts.sort(key=lambda text: -(chances[text] or 0.0))
        texts = texts[: len(texts) - int(len(texts) * dropped)]
    return [text for text in texts if SIMPLE.fullmatch(text)]


def log_probability(sample: Generation) -> float | None:
    """Of a whole sample, nats; None where the speaker gave none."""
    return sum(sample.logprobs) if sample.logprobs is not None else None


def clean_tail(text: str) -> str:
    """C2: without the blank before it and the stop behind it; "" where fewer than three characters are left."""
    kept = text.strip().removesuffix(".").strip()
    return kept if len(kept) >= SHORTEST else ""


def first_sentence(text: str) -> str:
    """What is before the first stop or line end, without blanks around it."""
    return text.strip().partition("\n")[0].partition(".")[0].strip()


@lru_cache(maxsize=4)
def corpus_of(folder: Path, plain: Callable[[str], str] = str) -> list[Triple]:
    """All triples of the stage `tails`, each once, in the order in which they were written. Do not change the list.

    Args:
        folder: of the stage.
        plain: what is done to each text first, such as names turned back into persons; equal functions are equal.
    """
    found: dict[str, Triple] = {}
    for reply in Corpus(folder):
        head, _, relation = reply.id.rpartition("/")
        for sample in reply.samples:
            if tail := clean_tail(plain(sample.text)):
                triple = Triple(head, relation, tail, log_probability(sample))
                found.setdefault(triple.id, triple)
    if not found:
        raise KdzooError(
            "every tail that the teacher wrote is empty or shorter than three characters: there is nothing to learn "
            "from. Look at the answers of the stage 'tails'."
        )
    return list(found.values())


def drawn(corpus: Sequence[Triple], number: int) -> dict[str, list[Triple]]:
    """The triples that persons judge, one of each of `number` drawn heads, cut by head into train, val and test."""
    by_head: dict[str, list[Triple]] = {}
    for triple in corpus:
        by_head.setdefault(triple.head, []).append(triple)
    heads = sorted(by_head, key=lambda head: mix("symbolic-kd", "judged", head))[:number]
    chosen = [Draws("symbolic-kd", "triple", head).one(by_head[head]) for head in heads]
    found, first, share = {}, 0, 0.0
    for part, width in PARTS.items():
        share += width
        last = round(share * len(chosen))
        found[part], first = chosen[first:last], last
    return found


def mismatched(triples: Sequence[Triple]) -> list[Triple]:
    """To each triple one that the teacher did not write: the tail is another head's, in the same relation."""
    tails: dict[str, list[str]] = {}
    own: dict[tuple[str, str], set[str]] = {}
    for triple in triples:
        tails.setdefault(triple.relation, []).append(triple.tail)
        own.setdefault((triple.head, triple.relation), set()).add(triple.tail)
    found = []
    for triple in triples:
        draws, others = Draws("symbolic-kd", "mismatched", triple.id), tails[triple.relation]
        for _ in range(50):
            tail = draws.one(others)
            if tail not in own[triple.head, triple.relation]:
                found.append(Triple(triple.head, triple.relation, tail, None))
                break
    return found


def recall_cutoff(scores: Tensor, labels: Tensor, recall: float) -> float:
    """The smallest score whose recall of valid items, counted with >=, does not exceed `recall`.

    Args:
        scores: (N,), higher = more likely valid.
        labels: (N,) 1 valid, 0 not; at least one valid.
        recall: in (0, 1).

    Raises:
        KdzooError: no item is valid, or equal scores leave no such threshold.

    Source: peterwestai2/symbolic-knowledge-distillation@7fa8cbf purification_code/predict.py.
    """
    valid = labels > 0
    if not bool(valid.any()):
        raise KdzooError(
            f"none of {len(labels)} held-out triples is valid: a recall of valid ones has no meaning. Raise judged."
        )
    for threshold in scores.unique().tolist():
        if float((scores[valid] >= threshold).double().mean()) <= recall:
            return float(threshold)
    share = float((scores[valid] == scores.max()).double().mean())
    raise KdzooError(
        f"no threshold leaves a recall of {recall:g} or less: {share:.0%} of the valid triples share the best score, "
        "so what filters cannot tell them apart. Train the critic longer, or raise recall."
    )


def cutoff(parts: Sequence[tuple[Tensor, Tensor]], recall: float) -> float:
    """C4: the mean of the cut-offs of val and test; what is above it is kept."""
    found = [recall_cutoff(scores, labels, recall) for scores, labels in parts]
    return sum(found) / len(found)
