"""How good frozen features are: a vote of the nearest labelled ones, and a linear classifier on them.

Shapes: N labelled and M measured samples, D width of the features, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 4096  # samples at a time: 4096 x 1.28 million similarities take 21 GB


def neighbour_votes(
    bank: Tensor,
    labels: Tensor,
    features: Tensor,
    *,
    classes: int,
    k: int,
    temperature: float,
    chunk: int = CHUNK,
) -> Tensor:
    """Votes of the k nearest labelled samples, by cosine similarity, each weighing exp(similarity / temperature).

    Args:
        bank: (N, D), any length.
        labels: (N,) int64, 0 to C - 1.
        features: (M, D).
        k: voters; all of the bank where it holds fewer.
        temperature: above 0; small: the nearest ones decide.

    Returns:
        (M, C), not negative; the largest is the prediction.

    Raises:
        ValueError: widths that differ, an empty bank, k or temperature out of range.

    Source: Wu et al. 2018, arXiv 1805.01978, section 3.4; k = 20, temperature 0.07 of Caron et al. 2021,
    arXiv 2104.14294, appendix F. Weights are relative to the nearest voter's, which changes no prediction.

    Example:
        >>> bank, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
        >>> neighbour_votes(bank, labels, torch.tensor([[3.0, 1.0]]), classes=2, k=1, temperature=0.07).tolist()
        [[1.0, 0.0]]
    """
    if bank.dim() != 2 or features.dim() != 2 or bank.shape[1] != features.shape[1] or not len(bank):
        raise ValueError(
            f"bank, features: got {tuple(bank.shape)} and {tuple(features.shape)}, expected (N, D) and (M, D), N > 0"
        )
    if labels.shape != bank.shape[:1] or k < 1 or not temperature > 0:
        raise ValueError(
            f"labels {tuple(labels.shape)}, k = {k}, temperature = {temperature}: expected ({len(bank)},), at least 1 "
            "and above 0"
        )
    bank, features = F.normalize(bank, dim=1), F.normalize(features, dim=1)
    votes = []
    for some in features.split(chunk):
        near, rows = (some @ bank.T).topk(min(k, len(bank)), dim=1)
        weights = torch.exp((near - near[:, :1]) / temperature)
        votes.append(weights.new_zeros(len(some), classes).scatter_add_(1, labels[rows], weights))
    return torch.cat(votes)


def linear_probe(
    bank: Tensor,
    labels: Tensor,
    features: Tensor,
    *,
    classes: int,
    decay: float,
    steps: int = 200,
    chunk: int = 65_536,
) -> Tensor:
    """Logits of a linear classifier trained on the labelled features.

    Multinomial logistic regression: the mean cross-entropy (nats) plus decay / 2 |W|^2, minimised by full-batch
    L-BFGS from zero; features are standardised by the labelled ones, the bias is not decayed. Convex, so the result
    depends on nothing that was drawn.

    Args:
        bank: (N, D).
        labels: (N,) int64.
        features: (M, D).
        decay: above 0, or the weights of separable classes would grow without end.
        steps: of L-BFGS, at most.
        chunk: labelled samples at a time.

    Returns:
        (M, C) logits, float32.
    """
    if not decay > 0:
        raise ValueError(
            f"decay: got {decay}, expected above 0; separable classes would send the weights to infinity"
        )
    mean, spread = bank.mean(0), bank.std(0).clamp_min(1e-6)
    weights = torch.zeros(bank.shape[1] + 1, classes, device=bank.device, requires_grad=True)
    parts = list(zip(((bank - mean) / spread).split(chunk), labels.split(chunk), strict=True))
    solver = torch.optim.LBFGS([weights], max_iter=steps, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        total = torch.zeros((), device=bank.device)
        for some, truth in parts:
            logits = torch.addmm(weights[-1], some, weights[:-1])
            loss = F.cross_entropy(logits, truth, reduction="sum") / len(bank)
            loss.backward()
            total += loss.detach()
        penalty = 0.5 * decay * weights[:-1].square().sum()
        penalty.backward()
        return total + penalty.detach()

    with torch.enable_grad():
        solver.step(closure)
    trained = weights.detach()
    return torch.addmm(trained[-1], (features - mean) / spread, trained[:-1])
