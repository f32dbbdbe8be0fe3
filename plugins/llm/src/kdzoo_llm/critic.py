"""A critic: a language model that reads a statement and says how probable it is that people accept it.

Shapes: B statements, T tokens of a statement's end (its answer), D width, N scored items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdzoo.errors import KdzooError
from kdzoo.method import Output
from kdzoo_llm.models import LanguageModel


class Critic(nn.Module):
    """One logit a statement: the state after its last token, dropout, a layer with GELU, dropout, a linear unit.

    Args:
        net: reads the statement as prompt and answer; trained along.
        width: D of its last hidden state.
        hidden: units of the layer between.
        dropout: share of units that are dropped in training, at both places.
        prior: share of statements that hold, in (0, 1): the last bias begins at its log-odds, so that the first loss
            is that of a constant guess.

    Raises:
        KdzooError: a prior of 0 or 1, whose log-odds are infinite.

    Source: peterwestai2/symbolic-knowledge-distillation@7fa8cbf purification_code/classify.py, with an encoder there.
    """

    def __init__(self, net: LanguageModel, width: int, hidden: int, dropout: float, prior: float) -> None:
        if not 0 < prior < 1:
            raise KdzooError(
                f"the critic's prior is {prior:g}, expected a share between 0 and 1: its log-odds are infinite, and "
                "nothing could be learned. Label statements of both kinds."
            )
        super().__init__()
        self.net = net
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, 1),
        )
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.constant_(last.bias, math.log(prior / (1 - prior)))

    def forward(self, view: Mapping[str, Tensor]) -> Output:
        """Logits (B, 1) for the statements of a view of `kdzoo_llm.sequences`."""
        said = self.net(view)
        state = said.features[f"layer{len(said.features) - 1}"]
        last = view["answer_mask"].sum(1) - 1  # its state has read the whole answer, and says that it ends
        return Output(logits=self.head(state[torch.arange(len(last)), last]))


def recall_cutoff(scores: Tensor, valid: Tensor, recall: float) -> float:
    """The smallest score c of an item such that at most `recall` of the valid items have a score >= c.

    Args:
        scores: (N,) higher for items that are to be kept.
        valid: (N,) bool or 0/1, at least one of them valid.
        recall: level in (0, 1).

    Returns:
        A score; the highest one where even its recall is above the level.

    Raises:
        KdzooError: no valid item, or shapes that differ.

    Source: peterwestai2/symbolic-knowledge-distillation@7fa8cbf purification_code/predict.py, which goes on to an
    infinite threshold (and fails) where ours takes the highest score.
    """
    if scores.shape != valid.shape or scores.dim() != 1:
        raise KdzooError(
            f"scores are {tuple(scores.shape)} and labels {tuple(valid.shape)}, expected (N,) twice"
        )
    valid = valid.bool()
    if not valid.any():
        raise KdzooError(
            f"none of {len(valid)} labelled items is valid, so no threshold has a recall. Label more items."
        )
    thresholds = scores.unique()  # ascending
    good = scores[valid].sort().values
    kept = len(good) - torch.searchsorted(good, thresholds)  # valid items with a score >= threshold
    low_enough = kept.double() / len(good) <= recall
    return float(thresholds[low_enough][0] if low_enough.any() else thresholds[-1])
