"""The cut-off by recall of symbolic knowledge distillation, against peterwestai2/symbolic-knowledge-distillation."""

from __future__ import annotations

import torch
from parity.harness import Case, parity
from torch import Tensor

from kdzoo_llm.triples import cutoff, recall_cutoff


@parity("symbolic-kd", "recall_cutoff")
def recall(case: Case) -> dict[str, Tensor]:
    given = case.inputs
    parts = [(given[f"{part}_preds"], given[f"{part}_labels"]) for part in ("val", "test")]
    means, precisions, kept = [], [], []
    for level in case.args["recalls"]:
        means.append(cutoff(parts, level))
        scores, labels = parts[0]
        precisions.append(labels[scores >= recall_cutoff(scores, labels, level)].mean())
        kept.append(parts[1][0] > means[-1])
    return {
        "cutoffs": torch.tensor(means),
        "val_precision": torch.stack(precisions),
        "kept_test": torch.stack(kept),
    }
