"""The critic's head and the cut-off by recall."""

from __future__ import annotations

import math

import pytest
import torch

from kdzoo.errors import KdzooError
from kdzoo_llm import models, vocabularies
from kdzoo_llm.critic import Critic, recall_cutoff
from kdzoo_llm.sequences import padded, written

TOKENIZER = vocabularies.load("word-relations")


def small(prior: float = 0.77) -> Critic:
    torch.manual_seed(0)
    return Critic(models.build("llama-xs", TOKENIZER), 48, 8, 0.1, prior)


def slow_cutoff(scores: list[float], valid: list[bool], recall: float) -> float:
    for threshold in sorted(scores):
        hits = sum(good and score >= threshold for score, good in zip(scores, valid, strict=True))
        if hits / sum(valid) <= recall:
            return threshold
    return max(scores)


def test_by_hand() -> None:
    """A threshold whose recall is above the level keeps more than was asked for."""
    scores, valid = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]), torch.tensor([1, 0, 1, 1, 1])
    assert recall_cutoff(scores, valid, 0.5) == pytest.approx(0.7)  # 2 of 4 are at or above it
    assert recall_cutoff(scores, valid, 0.49) == pytest.approx(0.8)
    assert recall_cutoff(scores, valid, 0.2) == pytest.approx(
        0.9
    )  # none reaches the level: the highest score


def test_against_a_slow_search() -> None:
    """Ties and items that are not valid must not count towards recall."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        scores = torch.randint(0, 12, (20,), generator=generator).double() / 12
        valid = torch.rand(20, generator=generator) < 0.6
        for level in (0.1, 0.5, 0.8, 0.95):
            assert recall_cutoff(scores, valid, level) == slow_cutoff(scores.tolist(), valid.tolist(), level)


def test_labels_of_no_use_are_refused() -> None:
    """Without a valid item every threshold has recall 0 / 0."""
    with pytest.raises(KdzooError, match="none of 3 labelled items is valid"):
        recall_cutoff(torch.rand(3), torch.zeros(3), 0.5)
    with pytest.raises(KdzooError, match="expected \\(N,\\) twice"):
        recall_cutoff(torch.rand(3), torch.zeros(2), 0.5)


def test_begins_at_the_prior() -> None:
    """A bias of 0 spends the first steps of a short training on the share of valid items."""
    critic = small().eval()
    torch.nn.init.zeros_(critic.head[-1].weight)
    view = padded(written(TOKENIZER, ["dog is a kind of"], ["animal"]), TOKENIZER.pad_token_id)
    assert float(critic(view).logits.detach().sigmoid()) == pytest.approx(0.77)
    assert math.isclose(float(critic.head[-1].bias.detach()), math.log(0.77 / 0.23), rel_tol=1e-6)
    for prior in (0.0, 1.0):
        with pytest.raises(KdzooError, match="log-odds are infinite"):
            small(prior)


def test_reads_the_whole_statement_and_no_padding() -> None:
    """A state before the last token has not read the tail; one after it is padding's."""
    critic = small().eval()
    rows = written(
        TOKENIZER,
        ["dog is a kind of", "dog is a kind of", "the long dog is a kind of"],
        ["animal", "act", "hard work"],
    )
    with torch.no_grad():
        alone = [float(critic(padded([row], TOKENIZER.pad_token_id)).logits) for row in rows]
        together = critic(padded(rows, TOKENIZER.pad_token_id)).logits[:, 0].tolist()
    assert together == pytest.approx(alone, abs=1e-5)
    assert abs(alone[0] - alone[1]) > 1e-4


def test_gradient_reaches_the_net() -> None:
    """A head on a frozen net is another, weaker critic."""
    critic = small()
    view = padded(written(TOKENIZER, ["dog is a kind of"], ["animal"]), TOKENIZER.pad_token_id)
    with torch.autocast("cpu", torch.bfloat16):
        critic(view).logits.float().sum().backward()
    grads = [p.grad for p in critic.net.net.model.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in grads)
    assert any(float(g.abs().max()) > 0 for g in grads if g is not None)
