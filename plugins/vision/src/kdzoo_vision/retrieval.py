"""What all metric-learning tasks share: embedding models by name, triplet loss, Recall@k among unseen classes.

A task's module imports these hooks and adds `data`. Shapes: B rows, N images of a split, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdzoo.cards import Side, TaskCard
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.contrastive import all_triples, distance_weighted_triples, semi_hard_triples, triplet_loss
from kdzoo.method import Batch, Metric, Term
from kdzoo.metrics import recall_at_k
from kdzoo_vision import pairs
from kdzoo_vision.models import build, wants_pretrained

if TYPE_CHECKING:
    from kdzoo.runs import Run

KS = (1, 2, 4, 8)


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """Student and teacher by the names in the settings; each has its own embedding width and normalisation."""
    if role not in ("student", "teacher"):
        return None
    return build(run.cfg[role], pretrained=wants_pretrained(run, role), **_shape(run.task, run.cfg, role))


def _shape(task: TaskCard, cfg: Mapping[str, Any], role: str) -> dict[str, Any]:
    return {
        "num_classes": None,
        "embedding_dim": int(cfg["embedding_dim" if role == "student" else "teacher_dim"]),
        "normalize": bool(cfg[f"{role}_normalize"]),
        "in_channels": task.sizes["channels"],
        "image_size": int(cfg.get("image_size", task.sizes["side"])),
    }


def check_pair(task: TaskCard, cfg: Mapping[str, Any]) -> dict[str, Side]:
    """Layers of both nets."""
    return {role: pairs.side(cfg[role], **_shape(task, cfg, role)) for role in ("student", "teacher")}


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """Triplet margin loss of the labelled rows (mean over the chosen triples), in the unit of the embeddings."""
    embeddings, labels = run.out("student").embedding, batch.labels
    assert embeddings is not None
    if batch.counts["label"] < len(labels):
        embeddings, labels = embeddings[labels >= 0], labels[labels >= 0]
    chooser = run.cfg.triples
    if chooser == "distance-weighted":
        generator = run.rng("triples", device=embeddings.device)
        triples = distance_weighted_triples(embeddings.detach(), labels, generator=generator)
    elif chooser == "semi-hard":
        triples = semi_hard_triples(embeddings.detach(), labels)
    else:
        triples = all_triples(labels)
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


def nearest(embeddings: Tensor, chunk: int = 1024) -> Tensor:
    """(N,) the row number of each row's Euclidean nearest other row; (N, D) in, chunk x N numbers at a time.

    Products of centered rows in float64, as in `kdzoo.metrics.recall_at_k`: all distances of the 60,502 test images
    of Stanford Online Products at once would take 29 GB.
    """
    with torch.no_grad():
        rows = embeddings.double()
        rows = rows - rows.mean(0)
        norms = rows.square().sum(1)
        found = []
        for first in range(0, len(rows), chunk):
            some = rows[first : first + chunk]
            # Without the query's own norm, which moves all of its distances alike.
            squared = torch.addmm(norms, some, rows.T, alpha=-2.0)
            own = torch.arange(len(some), device=rows.device)
            squared[own, own + first] = torch.inf
            found.append(squared.argmin(1))
        return torch.cat(found)
