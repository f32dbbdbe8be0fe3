"""How alike two classifiers are: in what they say, and layer by layer inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdzoo import metrics
from kdzoo.cka import kernel_cka, linear_cka
from kdzoo.method import Metric
from kdzoo_vision.starts import batch_norms, pre_activations

if TYPE_CHECKING:
    from kdzoo.runs import Run

CKA_IMAGES = 1000  # the Gaussian kernel takes time and memory with the square


def closeness(student: Tensor, teacher: Tensor, place: str) -> dict[str, Metric]:
    """Agreement (a fraction) and KL(teacher || student) at temperature 1 (nats), averaged over items, not over batches.

    Args:
        student, teacher: (N, C) logits of the same images.
        place: what the names of the metrics begin with: "" for the split that is measured, or such as "train/".
    """
    agree = metrics.agreement(student, teacher, axis=1, reduction="none")
    apart = metrics.predictive_kl(student, teacher, axis=1, reduction="none")
    return {
        f"{place}agreement[teacher=own]": Metric(float(agree.mean()), len(agree), agree),
        f"{place}teacher_kl[teacher=own]": Metric(float(apart.mean()), len(apart), apart),
    }


@torch.no_grad()
def layer_likeness(run: Run, split: str, roles: tuple[str, str], kernel: str) -> dict[str, Metric]:
    """CKA of two models' pre-activations, averaged over positions, at every batch norm, and the mean over these layers.

    Nothing is measured where the architectures differ, or have no batch norm.

    Args:
        roles: the two models.
        kernel: "linear" or "gaussian".
    """
    data = run.data(split)
    models = [run.models[role] for role in roles]
    one, other = ([(name, n.num_features) for name, n in batch_norms(model).items()] for model in models)
    count = min(CKA_IMAGES, len(data))
    if one != other or not one or count < 2:
        return {}
    seen = []
    for model in models:
        with pre_activations(model) as layers:
            for rows in torch.arange(count).split(250):
                model(run.to_device(data.collate(data.items, rows, None)).views["image"])
        seen.append({name: torch.cat(parts) for name, parts in layers.items()})
    measure = linear_cka if kernel == "linear" else kernel_cka
    values = {name: float(measure(seen[0][name], seen[1][name])) for name in seen[0]}
    found = {f"cka[layer={name}]": Metric(value, count) for name, value in values.items()}
    return found | {"cka": Metric(sum(values.values()) / len(values), count)}
