"""Which parameters share an optimiser's settings: papers give heads a higher rate, and spare norms the weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def parameter_groups(cfg: Mapping[str, Any], role: str, model: nn.Module) -> list[dict[str, Any]]:
    """The trained parameters of a role, as groups for an optimiser: one, unless settings set some of them apart.

    Args:
        cfg: `lr_scale` multiplies the learning rate (`min_lr` too) of parameters whose name holds one of the words
            `lr_scale_of`; those whose name holds one of the words `no_decay_of`, and with `no_decay_vectors` all of
            one dimension or none (biases, norms), are not decayed. Each may be missing.
        role: its name, kept in the groups.
        model: the role's module.

    Returns:
        Groups with "params" and "role"; "lr_scale" and "weight_decay" only where they are set apart.
    """
    fast, bare = tuple(cfg.get("lr_scale_of", ())), tuple(cfg.get("no_decay_of", ()))
    vectors = bool(cfg.get("no_decay_vectors", False))
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_fast = any(word in name for word in fast)
        is_bare = any(word in name for word in bare) or (vectors and parameter.dim() <= 1)
        group = groups.setdefault((is_fast, is_bare), {"params": [], "role": role})
        group["params"].append(parameter)
        if is_fast:
            group["lr_scale"] = float(cfg.get("lr_scale", 1.0))
        if is_bare:
            group["weight_decay"] = 0.0
    return list(groups.values())
