"""How alike two sentences are, token by token: the smoothed sentence BLEU and the GLEU of harvardnlp/seq2seq-attn.

Tokens may be words or ids. Used to choose, of a teacher's list of translations, the one nearest to the reference.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

Tokens = Sequence[Hashable]


def sentence_bleu(candidate: Tokens, reference: Tokens, order: int = 4) -> float:
    """Smoothed BLEU of one sentence, in 0 ... 1.

    Formula: (prod_n c_n / t_n)^(1 / order) * exp(1 - max(1, |reference| / |candidate|)), with t_n n-grams in the
    candidate, c_n of them in the reference (clipped). For the k-th order without a match c_n = 2^-k; orders that the
    candidate is too short for are skipped (factor 1).

    Returns:
        0 for an empty candidate.

    Source: harvardnlp/seq2seq-attn@2d36b43 s2sa/scorers/bleu.lua:get_bleu; Kim and Rush 2016, section 3.3.
    """
    if not candidate:
        return 0.0
    product, empty = 1.0, 0
    for n in range(1, order + 1):
        had, wanted = ngrams(candidate, n), ngrams(reference, n)
        total = sum(had.values())
        if not total:
            continue
        matches = float(sum((had & wanted).values()))
        if not matches:
            empty += 1
            matches = 2.0**-empty
        product *= matches / total
    return product ** (1 / order) * math.exp(1 - max(1.0, len(reference) / len(candidate)))


def sentence_gleu(candidate: Tokens, reference: Tokens, order: int = 4) -> float:
    """The smaller of n-gram precision and recall, over all orders together and different n-grams, in 0 ... 1.

    Source: harvardnlp/seq2seq-attn@2d36b43 s2sa/scorers/gleu.lua:get_gleu.
    """
    had: set[tuple[Hashable, ...]] = set()
    wanted: set[tuple[Hashable, ...]] = set()
    for n in range(1, order + 1):
        had |= set(ngrams(candidate, n))
        wanted |= set(ngrams(reference, n))
    if not had or not wanted:
        return 0.0
    return len(had & wanted) / max(len(had), len(wanted))


def ngrams(tokens: Tokens, n: int) -> Counter[tuple[Hashable, ...]]:
    """How often each run of n tokens occurs."""
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
