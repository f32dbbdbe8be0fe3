"""TransKD (Liu et al., IEEE T-ITS 2024, arXiv:2202.13393); card: transkd.

A hierarchical transformer without pretraining learns a larger one's stage maps and patch embeddings.

Here: cross selective fusion of the stages (C1) under the hierarchical context loss (C2), with stage-wise projections
and the losses mse, cwd and pixel-kl in their places; alignment of patch embeddings (C3); the global-local mixer on the
last embedding (C4, TransKD-GL); the embedding assistant (C5, TransKD-EA); their total (C6). All modules are trained
beside the student and left behind: the plain student ships. Not here: PVTv2 and LVT.

Shapes: B images; stage i has C_i channels in the student and D_i in the teacher on a grid of h_i x w_i, N_i = h_i w_i.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.losses.features import hint_regression
from kdzoo.losses.maps import channel_wise_divergence, hierarchical_context_loss
from kdzoo.method import Batch, Role, Stage, Term, fit_stage
from kdzoo.runs import as_output
from kdzoo_segmentation.fusion import CrossSelectiveFusion, StageProjections

if TYPE_CHECKING:
    from kdzoo.runs import Run
    from kdzoo.settings import Settings

PROBE = 64  # pixels a side of the image that shows how wide the stages are


def tokens(map_: Tensor) -> Tensor:
    """A map (B, C, h, w) as a sequence (B, h w, C), row by row."""
    return map_.flatten(2).transpose(1, 2)


class EmbeddingAlignment(nn.Module):
    """C3: a linear layer for each stage, from the student's patch embedding to the teacher's width.

    Args:
        inner: C_1 ... C_K.
        outer: D_1 ... D_K.

    Source: RuipingL/TransKD@39ab795 train/CSF.py:SKF (embed1_linearproject and the others).
    """

    def __init__(self, inner: Sequence[int], outer: Sequence[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Linear(mine, theirs) for mine, theirs in zip(inner, outer, strict=True)
        )

    def forward(self, embedded: Sequence[Tensor]) -> list[Tensor]:
        """(B, N_i, D_i) each, of sequences (B, N_i, C_i)."""
        return [stage(part) for stage, part in zip(self.stages, embedded, strict=True)]


class Mixer(nn.Module):
    """C4: the last embedding as its neighbours and as all other places see it.

    ``e' = w_a Attention(e) + w_c conv(e) sigmoid(gate(e)) (+ e)``: attention with several heads over all positions;
    conv and gate are convolutions of three neighbours along the sequence, which runs row by row.

    Args:
        width: C.
        heads: of the attention; a divisor of C.
        residual: add e.

    Raises:
        KdzooError: heads that do not share the channels equally.

    Source: RuipingL/TransKD@39ab795 train/CSF_GLMixer.py:SKF, Attention. w_a and w_c start at 1; there they are
    uninitialised memory.
    """

    def __init__(self, width: int, heads: int, *, residual: bool) -> None:
        super().__init__()
        if width % heads:
            raise KdzooError(
                f"mixer_heads = {heads}, but the student's last embedding has {width} channels: heads of equal width "
                f"expected. Set mixer_heads to a divisor of {width}."
            )
        self.heads, self.residual = heads, residual
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.conv, self.gate = nn.Conv1d(width, width, 3, padding=1), nn.Conv1d(width, width, 3, padding=1)
        self.attention_weight, self.local_weight = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, embedded: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        query, key, value = self.qkv(embedded).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        along = embedded.transpose(1, 2)
        local = (self.conv(along) * self.gate(along).sigmoid()).transpose(1, 2)
        mixed: Tensor = self.attention_weight * self.out(seen) + self.local_weight * local
        return mixed + embedded if self.residual else mixed


class PatchEmbedding(nn.Module):
    """An overlapped patch embedding: a strided convolution, then LayerNorm over channels.

    Source: RuipingL/TransKD@39ab795 train/CSF_EA.py:OverlapPatchEmbed, its first weights too.
    """

    def __init__(self, inner: int, outer: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inner, outer, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(outer)
        nn.init.normal_(self.proj.weight, 0.0, math.sqrt(2.0 / (kernel * kernel * outer)))
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)

    def forward(self, map_: Tensor) -> Tensor:
        """(B, C, h, w) to (B, N, D)."""
        embedded: Tensor = self.norm(tokens(self.proj(map_)))
        return embedded


class EmbeddingAssistant(nn.Module):
    """C5: patch embeddings of the teacher's width from the image and the student's maps, mixed with the aligned ones.

    ``p_i = a_i linear(e_i) + b_i E_i(F_(i-1))``, F_0 the image; a_i starts at 0.1 i, b_i at 0.1 (i + K).

    Args:
        channels: of the image.
        inner: C_1 ... C_K.
        outer: D_1 ... D_K.

    Source: RuipingL/TransKD@39ab795 train/CSF_EA.py:SKF.
    """

    def __init__(self, channels: int, inner: Sequence[int], outer: Sequence[int]) -> None:
        super().__init__()
        below = [channels, *inner[:-1]]
        self.stages = nn.ModuleList(
            PatchEmbedding(mine, theirs, *((7, 4) if place == 0 else (3, 2)))
            for place, (mine, theirs) in enumerate(zip(below, outer, strict=True))
        )
        count = len(outer)
        self.own = nn.Parameter(0.1 * torch.arange(1, count + 1))
        self.assisted = nn.Parameter(0.1 * torch.arange(count + 1, 2 * count + 1))

    def forward(self, aligned: Sequence[Tensor], image: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
        """(B, N_i, D_i) each, of aligned embeddings (B, N_i, D_i), the image and F_1 ... F_(K-1)."""
        parts = zip(self.stages, aligned, (image, *maps), self.own, self.assisted, strict=True)
        return [own * mine + assisted * stage(below) for stage, mine, below, own, assisted in parts]


def feature_loss(student: Tensor, teacher: Tensor, *, kind: str, temperature: float) -> Tensor:
    """C2: how far a fused map is from the teacher's, by one of four measures.

    "hcl": `hierarchical_context_loss`. "mse": mean squared difference. "cwd": T^2 KL over the positions of a channel,
    mean over channels. "pixel-kl": T^2 KL over the channels of a position, mean over positions.

    Args:
        student: (B, D, h, w).
        teacher: the same shape, detached.
        kind: one of these.
        temperature: T > 0, of the last two.

    Returns:
        (B,), >= 0; squared features, or nats.

    Raises:
        ValueError: shapes differ, unknown kind.

    Source: RuipingL/TransKD@39ab795 train/train_TransKDBase.py (hcl, CWloss, KL), train/CSF.py:CriterionCWD.
    """
    if kind == "hcl":
        return hierarchical_context_loss(student, teacher, reduction="none")
    if kind == "mse":
        return hint_regression(student, teacher, reduction="none")
    if kind == "cwd":
        values = channel_wise_divergence(student, teacher, temperature=temperature, reduction="none")
        return temperature**2 * values.mean(1)
    if kind == "pixel-kl":
        values = kl_divergence(student, teacher, temperature=temperature, axis=1, reduction="none")
        return temperature**2 * values.mean((1, 2))
    raise ValueError(f"kind: got {kind!r}, expected 'hcl', 'mse', 'cwd' or 'pixel-kl'")


def embedding_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """C3: ``sum_i w_i mean (p_i - e_i)^2``.

    Args:
        student: p_i, (B, N_i, D_i) each.
        teacher: e_i, the same shapes, detached.
        weights: w_i.

    Returns:
        (B,), >= 0; squared embeddings.

    Source: RuipingL/TransKD@39ab795 train/train_TransKDBase.py:train.
    """
    parts = zip(weights, student, teacher, strict=True)
    return torch.stack(
        [w * hint_regression(mine, theirs, reduction="none") for w, mine, theirs in parts]
    ).sum(0)


def plan(cfg: Settings) -> list[Stage]:
    """One fit, with the modules that this arm trains beside the student.

    Raises:
        KdzooError: lists of layers and weights that do not belong together.
    """
    stages, embeddings, weights = list(cfg.stages), list(cfg.embeddings), list(cfg.stage_weights)
    if len(weights) != len(embeddings):
        raise KdzooError(
            f"stage_weights has {len(weights)} numbers and embeddings {len(embeddings)} layers: one weight a layer "
            "expected, or some would not be compared. Give both the same length."
        )
    if cfg.assistant and len(stages) != len(embeddings):
        raise KdzooError(
            f"assistant = true with {len(stages)} stages and {len(embeddings)} embeddings: each embedding is made from "
            "the stage before it, so equal numbers expected. Name the stages from the first, one an embedding."
        )
    names = []
    if cfg.feature_weight:
        names.append("csf" if cfg.fusion else "projection")
    if cfg.embedding_weight:
        names.append("pea")
        names += [name for name in ("mixer", "assistant") if cfg[name]]
    roles = (Role("student"), Role("teacher", "frozen", "task"), *map(Role, names))
    return [fit_stage(roles=roles)]


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """The modules beside the student, as wide as the two nets' stages."""
    if role not in ("csf", "projection", "pea", "mixer", "assistant"):
        return None
    cfg = run.cfg
    if role in ("csf", "projection"):
        inner, outer = (widths(run, side, cfg.stages) for side in ("student", "teacher"))
        if role == "csf":
            return CrossSelectiveFusion(inner, outer, int(cfg.middle))
        return StageProjections(inner, outer)
    inner, outer = (widths(run, side, cfg.embeddings) for side in ("student", "teacher"))
    if role == "pea":
        return EmbeddingAlignment(inner, outer)
    if role == "mixer":
        return Mixer(inner[-1], int(cfg.mixer_heads), residual=bool(cfg.mixer_residual))
    return EmbeddingAssistant(run.task.sizes["channels"], widths(run, "student", cfg.stages), outer)


def widths(run: Run, role: str, layers: Sequence[str]) -> list[int]:
    """Channels of a model's layers, as one image shows them; draws nothing and moves no statistics."""
    model = run.models[role]
    training = model.training
    image = torch.zeros(1, run.task.sizes["channels"], PROBE, PROBE, device=run.device)
    with torch.no_grad():
        features = as_output(model.eval()(image)).features
    model.train(training)
    if lost := [layer for layer in layers if layer not in features]:
        raise KdzooError(
            f"the {role} has no layer {lost[0]!r}, but {', '.join(features)}; patch embeddings are those of a Mix "
            "Transformer: there would be nothing to compare. Set student and teacher to SegFormers, or name layers "
            "that both have."
        )
    return [features[layer].shape[1] for layer in layers]


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """C6: stage maps and patch embeddings, each a sum over images of a sum over stages."""
    cfg = run.cfg
    terms: dict[str, Term] = {}
    if not (cfg.feature_weight or cfg.embedding_weight):
        return terms
    student, teacher = run.out("student").features, run.signal("teacher").features
    maps = [student[name] for name in cfg.stages]
    if cfg.feature_weight:
        fused = run.models["csf" if cfg.fusion else "projection"](maps)
        pairs = zip(fused, (teacher[name] for name in cfg.stages), strict=True)
        kind, temperature = str(cfg.feature_loss), float(cfg.temperature)
        total = torch.stack(
            [feature_loss(mine, theirs, kind=kind, temperature=temperature).sum() for mine, theirs in pairs]
        )
        weight = {"cwd": cfg.cwd_weight, "pixel-kl": cfg.kl_weight}.get(kind, 1.0)
        terms["features"] = Term(total.sum(), cfg.feature_weight * weight, per="item")
    if cfg.embedding_weight:
        embedded = [tokens(student[name]) for name in cfg.embeddings]
        if cfg.mixer:
            embedded[-1] = run.models["mixer"](embedded[-1])
        aligned = run.models["pea"](embedded)
        if cfg.assistant:
            aligned = run.models["assistant"](aligned, batch.views["image"], maps[:-1])
        values = embedding_loss(
            aligned, [tokens(teacher[name]) for name in cfg.embeddings], cfg.stage_weights
        )
        terms["embeddings"] = Term(values.sum(), cfg.embedding_weight, per="item")
    return terms
