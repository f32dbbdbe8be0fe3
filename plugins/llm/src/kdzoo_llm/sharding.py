"""Weights, gradients and optimiser state of what is trained, shared among the ranks: torch's FSDP2 under the engine.

The engine trains sharded twins of the trained roles, which stand in ``run.models`` meanwhile. The roles themselves stay
plain modules without storage. Where somebody looks at whole weights (a validation, a checkpoint, a method that lets
the student write) they are filled for as long as it takes, and they get the trained weights at the end; so nothing but
a step of training ever sees a twin. Each block of a transformers model is gathered when its turn comes; what is left
(embeddings, head, other trained roles) is whole throughout a forward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Never, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from kdzoo.errors import KdzooError
from kdzoo.fit import make_optimizer
from kdzoo.runs import Stopped
from kdzoo.weights import Weights

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from kdzoo.runs import Run

Root = TypeVar("Root", bound=nn.Module)


@contextmanager
def sharded(run: Run) -> Iterator[Shards]:
    """Inside, ``run.models`` has the twins and ``run.weights`` the shards; afterwards all is as before, and trained.

    After an error that is not `Stopped` the roles are left without weights: the other ranks may not have failed, so
    they cannot be asked for their parts, and the last checkpoint is what counts.

    Raises:
        KdzooError: something in the run could not be kept while its weights are shared.
    """
    before = run.weights
    shards = run.weights = Shards(run)
    run.make_optimizer = shards.make_optimizer
    together = False
    try:
        yield shards
        together = True
    except Stopped:
        together = True  # the ranks have agreed to stop
        raise
    finally:
        if together:
            shards.fill()
        run.models.update(shards.roles)
        run.weights, run.make_optimizer = before, None


class Shards(Weights):
    """Each rank holds its part of every trained role; a parameter is cut along its first axis.

    Attributes:
        roles: the trained roles as the run has built them; without storage while they are not `whole`.
        twins: their copies, whose parameters become parts when `root` is called.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.roles = {name: run.models[name] for name, role in run.roles.items() if role.kind == "train"}
        _refuse(run, self.roles)
        self._all = nn.ModuleDict(self.roles)  # one module, since roles may share parts
        self._twin = _twin(self._all)
        self.twins: dict[str, nn.Module] = {name: self._twin[name] for name in self.roles}
        self._depth = 0
        for name, twin in self.twins.items():
            twin.register_forward_pre_hook(_OnlyInAStep(name))
            for net in [part for part in twin.modules() if isinstance(part, PreTrainedModel)]:
                net.generate = _no_writing  # type: ignore[assignment]
        run.models.update(self.twins)

    def root(self, model: Root) -> Root:
        """The model whose forward pass is a step of training, sharded: it holds the twins. Ready for the Trainer."""
        mesh = init_device_mesh(self.run.device.type, (self.run.device_info.ranks,))
        for block in _blocks(self._twin):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        self._release()
        model._is_accelerate_prepared = True  # type: ignore[assignment]  # accelerate would wrap it in DDP
        return model

    def make_optimizer(self, run: Run) -> Optimizer:
        """Core's; but SGD steps without its fused kernel, which takes no parts. Between steps its groups say fused."""
        optimizer = make_optimizer(run)
        if isinstance(optimizer, torch.optim.SGD):
            optimizer.register_step_pre_hook(lambda *_: _fused(optimizer, False))
            optimizer.register_step_post_hook(lambda *_: _fused(optimizer, True))
        return optimizer

    @torch.no_grad()
    def fill(self) -> None:
        """Give the roles the whole weights; every rank must ask."""
        for name, parameter in self._all.named_parameters():
            part = self._twin.get_parameter(name)
            parameter.data = _whole(part)

    def _release(self) -> None:
        for parameter in self._all.parameters():
            parameter.data = parameter.data.new_empty(0)

    @contextmanager
    def whole(self) -> Iterator[None]:
        if not self._depth:
            self.fill()
            self.run.models.update(self.roles)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self.run.models.update(self.twins)
                self._release()

    def agreed(self, *wishes: bool) -> tuple[bool, ...]:
        """What any rank wishes: their clocks differ, and a signal reaches them at different steps."""
        asked = torch.tensor(wishes, dtype=torch.int32, device=self.run.device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        return tuple(bool(wish) for wish in asked.tolist())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state = optimizer.state_dict()
        parts: dict[Any, dict[str, Any]] = state["state"]
        return {
            **state,
            "state": {
                place: {name: self._gathered(value) for name, value in values.items()}
                for place, values in parts.items()
            },
        }

    def _gathered(self, value: Any) -> Any:
        """The whole value on rank 0's CPU, one at a time: moments are twice the weights, and no rank need hold them."""
        if not isinstance(value, DTensor):
            return value
        whole = _whole(value)
        return whole.cpu() if self.run.device_info.main else None

    def give_optimizer_state(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        places = [place for group in state["param_groups"] for place in group["params"]]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        cut = {
            place: {name: _part(value, parameter) for name, value in state["state"][place].items()}
            for place, parameter in zip(places, parameters, strict=True)
            if place in state["state"]
        }
        optimizer.load_state_dict({**state, "state": cut})


def _whole(part: Tensor) -> Tensor:
    """All ranks' parts in one tensor, without the padding behind it that parts of unequal size are gathered with."""
    if not isinstance(part, DTensor):
        return part.detach()
    with torch.no_grad():
        whole: Tensor = part.full_tensor()
    return whole.clone() if whole.untyped_storage().nbytes() > whole.nbytes else whole


def _fused(optimizer: Optimizer, fused: bool) -> None:
    for group in optimizer.param_groups:
        group["fused"] = fused


def _part(value: Any, parameter: Tensor) -> Any:
    """This rank's part of what an optimiser keeps in the shape of a parameter; other things as they are."""
    if not isinstance(value, Tensor) or not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    # Every rank has read the whole value, so none need be sent.
    return distribute_tensor(
        value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def _twin(module: nn.Module) -> nn.ModuleDict:
    """A copy that shares storage with the original until it is cut, and buffers for good."""
    shared: dict[int, Any] = {id(buffer): buffer for buffer in module.buffers()}
    for parameter in module.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    twin: nn.ModuleDict = copy.deepcopy(module, shared)  # type: ignore[assignment]
    return twin


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The layers of the transformers models in a module, by what transformers says must stay together."""
    nets = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    return [
        part
        for part in module.modules()
        if any(type(part).__name__ in (net._no_split_modules or ()) for net in nets)
    ]


def _refuse(run: Run, trained: dict[str, nn.Module]) -> None:
    """What would see parts of weights where it expects whole ones, or would be lost."""
    own = [name for name, role in run.roles.items() if role.kind == "own"]
    if own:
        raise KdzooError(
            f"shard = true, but the method moves the role {own[0]!r} itself, mostly along the student's weights: it "
            "would see this rank's part of them only. Set shard=false."
        )
    if run.make_optimizer is not None:
        raise KdzooError(
            "shard = true, but the task brings an optimiser of its own, whose state kdzoo does not know how to cut "
            "and gather: a checkpoint would hold a part of it. Set shard=false."
        )
    for role, module in trained.items():
        for name, parameter in module.named_parameters():
            if parameter._backward_hooks:
                raise KdzooError(
                    f"shard = true, but the gradient of {name} of role {role!r} is changed by a hook, as that of "
                    "pruned weights which stay zero: it would not reach the shared weights. Set shard=false."
                )


class _OnlyInAStep:
    """Before the forward pass of a twin: refuses one outside a step of training, where its weights are parts."""

    def __init__(self, role: str) -> None:
        self.role = role

    def __call__(self, module: nn.Module, args: Any) -> None:
        # Embeddings come first in a net and belong to the root, as all parameters of other modules do.
        if isinstance(next(module.parameters(), None), DTensor):
            raise KdzooError(
                f"shard = true, and the role {self.role!r} was called outside the loss: each rank holds a part of its "
                "weights there. Call it inside 'with run.weights.whole():', where every rank comes by, or set "
                "shard=false."
            )


def _no_writing(*args: Any, **options: Any) -> Never:
    raise KdzooError(
        "shard = true, and a model that is trained was asked to write: each rank holds a part of its weights. Let "
        "run.models[...] write inside 'with run.weights.whole():', where every rank comes by, or set shard=false."
    )
