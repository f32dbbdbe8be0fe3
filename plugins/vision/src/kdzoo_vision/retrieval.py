"""What all metric-learning tasks share: embedding models by name, triplet loss, Recall@k among unseen classes.

A task's module imports these hooks and adds `data`. Shapes: B rows, N images of a split, D embedding width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdzoo.hookspecs import hookimpl
from kdzoo.losses.contrastive import all_triples, distance_weighted_triples, semi_hard_triples, triplet_loss
from kdzoo.losses.distances import pairwise_distances
from kdzoo.method import Batch, Metric, Term
from kdzoo.metrics import recall_at_k
from kdzoo_vision.models import build

if TYPE_CHECKING:
    from kdzoo.runs import Run

KS = (1, 2, 4, 8)


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """Student and teacher by the names in the settings; each has its own embedding width and normalisation."""
    if role not in ("student", "teacher"):
        return None
    cfg = run.cfg
    return build(
        cfg[role],
        num_classes=None,
        embedding_dim=int(cfg.embedding_dim if role == "student" else cfg.teacher_dim),
        normalize=bool(cfg.student_normalize if role == "student" else cfg.teacher_normalize),
        in_channels=run.task.sizes["channels"],
        image_size=int(cfg.get("image_size", run.task.sizes["side"])),
        pretrained=bool(cfg.get("pretrained", False)),
    )


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """Triplet margin loss (mean over the chosen triples), in the unit of the embeddings."""
    embeddings = run.out("student").embedding
    assert embeddings is not None
    chooser = run.cfg.triples
    if chooser == "distance-weighted":
        generator = run.rng("triples", device=embeddings.device)
        triples = distance_weighted_triples(embeddings.detach(), batch.labels, generator=generator)
    elif chooser == "semi-hard":
        triples = semi_hard_triples(embeddings.detach(), batch.labels)
    else:
        triples = all_triples(batch.labels)
    loss = triplet_loss(embeddings, triples, margin=float(run.cfg.margin), reduction="sum")
    return {"task": Term(loss / max(1, len(triples.anchor)), per="step")}


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """Recall@1, 2, 4, 8 by Euclidean neighbours inside the split; and how often the nearest one is the teacher's."""
    found: dict[str, Metric] = {}
    for role, suffix in run.shipped():
        said = run.predict(role, split)
        assert said.embedding is not None
        hits = recall_at_k(said.embedding, said.labels, ks=KS, reduction="none")
        for k, row in zip(KS, hits, strict=True):
            found[f"recall@{k}{suffix}"] = Metric(float(row.mean()), row.numel(), row)
        if run.stage == "evaluate" and "teacher" in run.models:
            taught = run.predict("teacher", split).embedding
            assert taught is not None
            same = (nearest(said.embedding) == nearest(taught)).float()
            found[f"neighbour_agreement{suffix}"] = Metric(float(same.mean()), len(same), same)
    return found


def nearest(embeddings: Tensor) -> Tensor:
    """(N,) the row number of each row's Euclidean nearest other row; (N, D) in, N^2 numbers at once."""
    with torch.no_grad():
        distances = pairwise_distances(embeddings.double())
        return distances.fill_diagonal_(torch.inf).argmin(1)
