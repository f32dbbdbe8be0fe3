"""Translations held against references: corpus scores by sacrebleu, and the sentence scores of Kim and Rush."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import exp, prod
from typing import Any


def corpus_scores(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU (13a tokens, 4-grams) and chrF of a corpus, in [0, 1], by sacrebleu's defaults."""
    import sacrebleu

    return {
        "bleu": sacrebleu.corpus_bleu(list(answers), [list(references)]).score / 100,
        "chrf": sacrebleu.corpus_chrf(list(answers), [list(references)]).score / 100,
    }


def sentence_bleu(candidate: Sequence[Any], reference: Sequence[Any], order: int = 4) -> float:
    """Smoothed sentence BLEU: what Seq-Inter chooses by.

    ``(prod_n c_n / t_n)^(1/4) exp(1 - max(1, |ref| / |cand|))`` over n = 1 .. order, c_n the clipped matches of the
    t_n n-grams of the candidate; the k-th order without a match counts 2^-k; orders longer than the candidate count 1.

    Args:
        candidate, reference: tokens or token ids; the candidate without its end.
        order: longest n-grams.

    Returns:
        In [0, 1]; 0 for an empty candidate.

    Source: harvardnlp/seq2seq-attn@2d36b43 s2sa/scorers/bleu.lua.
    """
    if not candidate:
        return 0.0
    shares, missed = [], 0
    for n in range(1, order + 1):
        ours, theirs = _ngrams(candidate, n), _ngrams(reference, n)
        total = ours.total()
        if not total:
            continue
        matched: float = (ours & theirs).total()
        if not matched:
            missed += 1
            matched = 2.0**-missed
        shares.append(matched / total)
    return float(prod(shares) ** (1 / order) * exp(1 - max(1.0, len(reference) / len(candidate))))


def sentence_gleu(candidate: Sequence[Any], reference: Sequence[Any], order: int = 4) -> float:
    """The smaller of precision and recall over the distinct n-grams of all orders 1 .. order.

    Returns:
        In [0, 1]; 0 where one side is empty.

    Source: harvardnlp/seq2seq-attn@2d36b43 s2sa/scorers/gleu.lua.
    """
    ours = {gram for n in range(1, order + 1) for gram in _ngrams(candidate, n)}
    theirs = {gram for n in range(1, order + 1) for gram in _ngrams(reference, n)}
    if not ours or not theirs:
        return 0.0
    return len(ours & theirs) / max(len(ours), len(theirs))


def _ngrams(tokens: Sequence[Any], n: int) -> Counter[tuple[Any, ...]]:
    return Counter(tuple(tokens[place : place + n]) for place in range(len(tokens) - n + 1))
