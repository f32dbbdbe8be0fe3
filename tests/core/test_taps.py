"""Taps: the right layer, nothing left behind, wrappers looked through."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from kdzoo.errors import KdzooError
from kdzoo.taps import Taps, unwrap


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)))


def test_output_and_input_are_those_of_the_named_module() -> None:
    """A tap that reads a neighbour's value would distil the wrong layer."""
    model, x = net(), torch.randn(5, 2)
    with Taps(model, {"hidden": "1", "before": "2.1:input"}) as taps:
        model(x)
        found = taps.take()
    assert torch.equal(found["hidden"], model[1](model[0](x)))
    assert torch.equal(found["before"], model[2][0](model[1](model[0](x))))


def test_gradient_flows_through_a_tap() -> None:
    """A detached tap trains nothing."""
    model = net()
    with Taps(model, ["0"]) as taps:
        model(torch.randn(3, 2))
        taps.take()["0"].sum().backward()
    assert model[0].weight.grad is not None
    assert model[2][0].weight.grad is None


def test_take_forgets_and_release_removes() -> None:
    """Kept activations are a memory leak, kept hooks slow every later pass."""
    model = net()
    taps = Taps(model, ["0"])
    model(torch.randn(3, 2))
    value = taps.take()["0"]
    gone = weakref.ref(value)
    del value
    gc.collect()
    assert gone() is None
    taps.release()
    assert not model[0]._forward_hooks
    model(torch.randn(3, 2))
    with pytest.raises(KdzooError, match="saw nothing"):
        taps.take()


def test_hooks_go_even_when_the_block_fails() -> None:
    """An exception must not leave hooks behind."""
    model = net()
    with pytest.raises(ZeroDivisionError), Taps(model, ["0", "1:input"]):
        raise ZeroDivisionError
    assert not model[0]._forward_hooks
    assert not model[1]._forward_pre_hooks


def test_unknown_path_suggests_and_attaches_nothing() -> None:
    """A typo must not be a silent None; the good path beside it must not stay attached."""
    model = net()
    with pytest.raises(KdzooError, match=r"unknown module path '2\.7'.*Did you mean"):
        Taps(model, ["0", "2.7"])
    assert not model[0]._forward_hooks
    with pytest.raises(KdzooError, match="expected nothing or 'input'"):
        Taps(model, ["0:output"])


def test_a_module_that_runs_twice_is_refused() -> None:
    """Of two values one would be lost without a word."""
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu)
    with Taps(model, ["1"]), pytest.raises(KdzooError, match="ran twice"):
        model(torch.randn(1, 2))


def test_a_module_without_tensors_is_refused() -> None:
    """A layer that returns a dict has no tensor to read."""

    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x": x}

    model = nn.Sequential(Odd())
    with Taps(model, ["0"]), pytest.raises(KdzooError, match="gives dict"):
        model(torch.randn(1, 2))


def test_torch_compile_keeps_paths_and_values() -> None:
    """Under torch.compile the paths are the plain model's and the values equal."""
    model, x = net(), torch.randn(5, 2)
    expected = model[1](model[0](x))
    with Taps(model, ["1"]) as taps:
        compiled = torch.compile(model, backend="eager")
        assert unwrap(compiled) is model
        compiled(x)
        assert torch.allclose(taps.take()["1"], expected)
        compiled(x + 1)
        assert not torch.allclose(taps.take()["1"], expected)
    with Taps(compiled, ["1"]) as taps:
        compiled(x)
        assert torch.allclose(taps.take()["1"], expected)


def test_ddp_keeps_paths(tmp_path: object) -> None:
    """Under DistributedDataParallel the paths are the plain model's."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = net()
        wrapped = nn.parallel.DistributedDataParallel(model)
        with Taps(wrapped, ["2.0"]) as taps:
            wrapped(torch.randn(3, 2))
            assert taps.take()["2.0"].shape == (3, 4)
    finally:
        torch.distributed.destroy_process_group()
