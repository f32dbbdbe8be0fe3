"""A scripted teacher: it knows most of the world of `kdzoo_llm.data.relations`, and believes some wrong things.

It reads few-shot prompts, as a large language model would, and answers their last, open line. Of each head and
relation it holds up to five beliefs, stronger and weaker ones; a belief is a true tail with the probability of its
place in `TRUE`, else one that is true of other heads, frequent ones preferred. So what it says more readily is true
more often, and it says the same wrong thing each time: a filter by its own likelihood helps a little, asking more often
does not help.
"""

from __future__ import annotations

import math
import re
from bisect import bisect
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

from kdzoo.errors import KdzooError
from kdzoo.speakers.scripted import Asked, ScriptedSpeaker
from kdzoo.speakers.speech import Generation
from kdzoo_llm.data import relations
from kdzoo_llm.data.draws import Draws
from kdzoo_llm.data.examples import Example

SAID = (0.34, 0.26, 0.18, 0.13, 0.09)  # how readily a belief is said
TRUE = (0.85, 0.81, 0.77, 0.73, 0.69)
# Ours: 75 % of what it says is true, in the paper 73 % of what GPT-3 said.
GARBLED = 0.04  # of the heads it writes
HEADER = {
    "kind-of": "What kind of thing is it?",
    "has-part": "What are its parts?",
    "part-of": "What is it a part of?",
    "made-of": "What is it made of?",
    "field": "In which field is the word used?",
}
THINGS = "A list of things, each named by two words."
OPEN_HEAD = re.compile(r"\d+\. Thing:$")
OPEN_TAIL = re.compile(r"\d+\. (?P<head>.+) (?P<phrase>" + "|".join(
    re.escape(ways[0]) for ways in relations.PHRASES.values()
) + r"):$")  # fmt: skip


def head_prompt(seeds: Sequence[str]) -> str:
    """A numbered list of heads, its last number open (C1)."""
    listed = [f"{number}. Thing: {seed}" for number, seed in enumerate(seeds, 1)]
    return "\n".join([THINGS, *listed, f"{len(seeds) + 1}. Thing:"])


def tail_prompt(head: str, relation: str, shown: Sequence[Example]) -> str:
    """A question, worked examples of one relation, and the same line begun for `head` (C2)."""
    phrase = relations.phrase(relation)
    lines = [
        f"{number}. {relations.asked(example.prompt)[0]} {phrase}: {example.answer}"
        for number, example in enumerate(shown, 1)
    ]
    return "\n".join([HEADER[relation], *lines, f"{len(shown) + 1}. {head} {phrase}:"])


@lru_cache(maxsize=50_000)
def beliefs(head: str, relation: str) -> tuple[tuple[str, float], ...]:
    """(tail, probability of saying it), in the order of the places; a tail is in it once.

    Where all true tails are taken, or a false one comes again, the place stays empty: added up, the probability of a
    tail would give away that it is true.
    """
    draws = Draws("relations", "belief", head, relation)
    known = relations.world().get((head, relation))
    left = [synonyms[0] for synonyms in known.tails] if known else []
    found: dict[str, float] = {}
    for said, share in zip(SAID, TRUE, strict=True):
        if draws.chance(share):
            place = 0
            while place < len(left) - 1 and not draws.chance(0.6):
                place += 1
            tail = left.pop(place) if left else ""
        else:
            tail = relations.plausible_false(head, relation, draws)
        if tail:
            found.setdefault(tail, said)
    if not found:
        found = {relations.plausible_false(head, relation, draws): 1.0}
    mass = sum(found.values())
    return tuple((tail, said / mass) for tail, said in found.items())


@lru_cache(maxsize=1)
def thought_of() -> tuple[list[str], list[float]]:
    """The heads that it thinks of (those of the pool), and the running sum of how readily: 1 / (100 + rank)."""
    heads = sorted(relations.heads("pool"), key=lambda head: Draws("relations", "rank", head).below(1 << 62))
    return heads, list(accumulate(1 / (100 + rank) for rank in range(len(heads))))


def script(asked: Asked) -> Generation:
    """One sample: a head, or a tail; with its log-probability as if it were one token.

    Raises:
        KdzooError: the prompt is neither of the two.
    """
    lines = asked.prompt.splitlines() if isinstance(asked.prompt, str) else []
    last = lines[-1] if lines else ""
    chance, garbled = (float(draw) for draw in asked.uniforms(2))
    if OPEN_HEAD.fullmatch(last):
        return _head(chance, garbled)
    if match := OPEN_TAIL.fullmatch(last):
        relation = next(name for name, ways in relations.PHRASES.items() if ways[0] == match["phrase"])
        return _tail(beliefs(match["head"], relation), chance, asked.request.top_p)
    raise KdzooError(
        f"request {asked.request.id!r}: the prompt is no open list of heads or tails, so the scripted speaker does not "
        "know what is asked. Make it with head_prompt or tail_prompt of kdzoo_llm.data.relation_speaker."
    )


def _head(chance: float, garbled: float) -> Generation:
    heads, sums = thought_of()
    place = min(bisect(sums, chance * sums[-1]), len(heads) - 1)
    said = math.log((sums[place] - (sums[place - 1] if place else 0.0)) / sums[-1])
    if garbled < GARBLED:
        return Generation(f" {heads[place]} #{place}\n", finish="stop", logprobs=[said + math.log(GARBLED)])
    return Generation(f" {heads[place]}", finish="stop", logprobs=[said])


def _tail(held: Sequence[tuple[str, float]], chance: float, top_p: float) -> Generation:
    """A belief, drawn from the smallest set of the strongest that holds `top_p` of the probability."""
    ranked = sorted(held, key=lambda belief: -belief[1])
    kept, mass = [], 0.0
    for belief in ranked:
        if mass < top_p - 1e-9:
            kept.append(belief)
            mass += belief[1]
    sums = list(accumulate(said for _, said in kept))
    tail, said = kept[min(bisect(sums, chance * sums[-1]), len(kept) - 1)]
    return Generation(f" {tail}.", finish="stop", logprobs=[math.log(said)])


def speaker() -> ScriptedSpeaker:
    """The teacher."""
    return ScriptedSpeaker(script, "relations", version=1)
