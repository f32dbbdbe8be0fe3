"""Symbolic knowledge distillation, against peterwestai2/symbolic-knowledge-distillation."""

from __future__ import annotations

import torch
from parity.harness import Case, parity
from torch import Tensor

from kdzoo_llm.critic import recall_cutoff


@parity("symbolic-kd", "recall_cutoff")
def cutoffs(case: Case) -> dict[str, Tensor]:
    given, levels = case.inputs, case.args["recalls"]
    sides = {
        split: [recall_cutoff(given[f"{split}_preds"], given[f"{split}_labels"], level) for level in levels]
        for split in ("val", "test")
    }
    means = torch.tensor(sides["val"]).add(torch.tensor(sides["test"])) / 2
    kept = [given["val_preds"] >= cut for cut in sides["val"]]
    return {
        "cutoffs": means,
        "val_precision": torch.stack([given["val_labels"][rows].mean() for rows in kept]),
        "kept_test": torch.stack([given["test_preds"] > mean for mean in means]),
    }
