"""One optimiser over two models that each train as their own kind does: schedules, clipping, a frozen last layer.

A convolution net is trained by SGD with a constant weight decay, a ViT by AdamW with a growing one. Neither model's
loss reaches the other's weights, so one backward pass of the summed loss and one step of this optimiser do what the
official code does with two of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdzoo_vision.ssl.schedules import cosine

if TYPE_CHECKING:
    from kdzoo.runs import Run

Schedules = Callable[[dict[str, Any]], tuple[float, float]]


class PerModel(torch.optim.Optimizer):
    """Optimisers of several models, stepped together; groups carry ``lr`` and ``weight_decay`` of the step.

    Args:
        parts: one torch optimiser a model.
        now: group -> (learning rate, weight decay) of the current step.
        last_layers: parameters that stay as they are while `frozen` says so.
        frozen: whether the last layers are frozen at the current step.
        clip: largest gradient norm of each single parameter; 0 for no clipping.
    """

    def __init__(
        self,
        parts: list[torch.optim.Optimizer],
        now: Schedules,
        last_layers: list[nn.Parameter],
        frozen: Callable[[], bool],
        clip: float,
    ) -> None:
        self.parts, self.now, self.last_layers, self.frozen, self.clip = parts, now, last_layers, frozen, clip
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if self.frozen():
            for parameter in self.last_layers:
                parameter.grad = None
        for group in self.param_groups:
            group["lr"], decay = self.now(group)
            if group["decays"]:
                group["weight_decay"] = decay
            if self.clip:
                clip_each(group["params"], self.clip)
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, values in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(values)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def clip_each(parameters: list[nn.Parameter], most: float) -> None:
    """Scale the gradient of every parameter whose own norm is above `most` down to it.

    Source: skyoux/mokd@f7b1386 utils/utils.py clip_gradients: parameter by parameter, not over the model.
    """
    gradients: list[Tensor] = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    # A gradient that is not finite makes its own factor NaN and so stays visible in the weights.
    norms = torch._foreach_norm(gradients)
    torch._foreach_mul_(gradients, [(most / (norm + 1e-6)).clamp_max(1.0) for norm in norms])


def make_optimizer(run: Run) -> PerModel:
    """The optimiser of the roles ``cnn...`` and ``vit...``, by the settings ``cnn_lr``, ``vit_weight_decay`` and so on.

    Biases and norms are not decayed. A T-Head of the convolution net follows the learning rate and the decay of the
    ViT, in its own model's optimiser, and is decayed whole.

    Source: skyoux/mokd@f7b1386 main_mokd.py, utils/utils.py get_params_groups, get_params_groups2.
    """
    cfg = run.cfg
    parts = []
    for model in ("cnn", "vit"):
        groups: list[dict[str, Any]] = []
        for name, role in run.roles.items():
            if role.kind != "train" or not (name == model or name.startswith(f"{model}-")):
                continue
            follows = "vit" if name.endswith("thead") else model
            whole = follows != model
            learned = [(key, p) for key, p in run.models[name].named_parameters() if p.requires_grad]
            plain = [p for key, p in learned if not whole and (key.endswith("bias") or p.dim() == 1)]
            decayed = [p for key, p in learned if whole or not (key.endswith("bias") or p.dim() == 1)]
            for decays, parameters in ((True, decayed), (False, plain)):
                if parameters:
                    groups.append(
                        {"params": parameters, "follows": follows, "decays": decays, "weight_decay": 0.0}
                    )
        if cfg[f"{model}_optimizer"] == "sgd":
            part: torch.optim.Optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9, fused=True)
            for group in part.param_groups:  # last layers get their first gradient late: see kdzoo.fit
                for parameter in group["params"]:
                    part.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        else:
            part = torch.optim.AdamW(groups, lr=0.0, fused=True)
        parts.append(part)

    def now(group: dict[str, Any]) -> tuple[float, float]:
        of, step, steps = group["follows"], run.step, run.steps
        rate = cosine(float(cfg[f"{of}_lr"]), float(cfg[f"{of}_lr_end"]), step, steps, int(cfg.warmup))
        decay = cosine(float(cfg[f"{of}_weight_decay"]), float(cfg[f"{of}_weight_decay_end"]), step, steps)
        return rate, decay

    last_layers = [
        p
        for name, role in run.roles.items()
        if role.kind == "train"
        for key, p in run.models[name].named_parameters()
        if key.startswith("last_layer.")
    ]
    until = float(cfg.freeze_share) * run.steps
    optimizer = PerModel(parts, now, last_layers, lambda: run.step < until, float(cfg.clip_each))
    if run.restored is not None and run.restored["optimizer"] is not None:
        optimizer.load_state_dict(run.restored["optimizer"])
    run.rate = lambda step: 0.0  # the rates are set by `PerModel.step`, for each group its own
    return optimizer
