"""Numbers computed by official implementations, and ours beside them.

A golden case is two files, ``<slug>/<target>-<letter>.json`` (what it is, tolerances) and ``.safetensors``
beside it (inputs, params, expected outputs and gradients), made by running the authors' code. An adapter is a
function that feeds such a case to our code and returns what came out under the names that the case expects:

    @parity("rkd", "angle")
    def angle(case: Case) -> dict[str, Tensor]:
        loss = rkd_angle(case.leaf("student"), case.inputs["teacher"], reduction="mean")
        return case.with_gradients(loss=loss)

Adapters live in ``adapters/<slug>.py``, one module per slug, with hyphens as underscores. A target of such a
slug that has no adapter fails, unless `UNTESTED` says why it has none.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"

# (slug, target): why our code has no such function. Checked for staleness.
UNTESTED: dict[tuple[str, str], str] = {}

REQUIRED = ("slug", "target", "official", "inputs", "params", "args", "outputs", "grads", "rtol", "atol")


class ParityError(AssertionError):
    """Our numbers are not the official ones, or a case cannot be compared."""


@dataclass
class Case:
    """One golden case. Tensors are read when they are first asked for.

    Attributes:
        meta: the JSON file, e.g. ``meta["quirk"]``.
        inputs, params, args: what the official function was given; tensors, tensors, plain values.
        expected: name -> tensor, the outputs and gradients to be met.
    """

    path: Path
    meta: dict[str, Any]
    _leaves: dict[str, Tensor] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        return self.meta["slug"], self.meta["target"]

    @property
    def name(self) -> str:
        return f"{self.meta['slug']}/{self.path.stem}"

    @property
    def args(self) -> dict[str, Any]:
        return dict(self.meta["args"])

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        stored = self.path.with_suffix(".safetensors")
        try:
            tensors = load_file(stored)
        except (OSError, SafetensorError) as error:
            raise ParityError(f"{self.name}: cannot read {stored.name}: {error}") from error
        named = {*self.meta["inputs"], *self.meta["params"], *self.meta["outputs"], *self.meta["grads"]}
        if named != set(tensors):
            raise ParityError(
                f"{self.name}: {self.path.name} names {sorted(named)}, {stored.name} holds "
                f"{sorted(tensors)}; what is missing would not be compared"
            )
        return tensors

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {name: self.tensors[name] for name in self.meta["inputs"]}

    @property
    def params(self) -> dict[str, Tensor]:
        return {name: self.tensors[name] for name in self.meta["params"]}

    @property
    def expected(self) -> dict[str, Tensor]:
        return {name: self.tensors[name] for name in (*self.meta["outputs"], *self.meta["grads"])}

    def leaf(self, name: str) -> Tensor:
        """An input or param that requires grad; the same tensor each time, so that gradients meet there."""
        if name not in self._leaves:
            self._leaves[name] = {**self.inputs, **self.params}[name].clone().requires_grad_()
        return self._leaves[name]

    def with_gradients(self, **outputs: Tensor) -> dict[str, Tensor]:
        """The outputs and every ``grad_<name>`` that the case asks for, of ``outputs["loss"]``.

        A leaf that the loss does not reach has gradient 0, as the official code's has.
        """
        names = [grad.removeprefix("grad_") for grad in self.meta["grads"]]
        gradients = torch.autograd.grad(outputs["loss"], [self.leaf(n) for n in names], allow_unused=True)
        found = {
            f"grad_{name}": torch.zeros_like(self.leaf(name)) if gradient is None else gradient
            for name, gradient in zip(names, gradients, strict=True)
        }
        return {name: value.detach() for name, value in {**outputs, **found}.items()}


Adapter = Callable[[Case], Mapping[str, Tensor]]
Adapters = dict[tuple[str, str], Adapter]
ADAPTERS: Adapters = {}


def parity(slug: str, target: str) -> Callable[[Adapter], Adapter]:
    """Register the decorated function as the adapter of all cases of one golden target."""

    def register(adapter: Adapter) -> Adapter:
        if (slug, target) in ADAPTERS:
            raise ValueError(f"parity({slug!r}, {target!r}): registered twice; one of them would never run")
        ADAPTERS[slug, target] = adapter
        return adapter

    return register


def load_adapters(folder: Path) -> Adapters:
    """Import every module of `folder` and return what they registered; an import that fails is an error.

    By path, under a name of our own: the tests are not a package, and with --import-mode=importlib their
    folder is not on sys.path.
    """
    for path in sorted(folder.glob("*.py")):
        name = f"kdzoo_parity_adapters.{path.stem}"
        if name in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return ADAPTERS


def find_cases(folder: Path) -> list[Case]:
    """All cases below ``folder/<slug>/``, in name order.

    Raises:
        ParityError: no such folder, no case in it, or a file that is not a case: else nothing would be
            compared and everything would pass.
    """
    if not folder.is_dir():
        raise ParityError(f"golden folder: {folder} does not exist; unset KDZOO_GOLDEN or point it at one")
    cases = [_read(path) for path in sorted(folder.glob("*/*.json"))]
    if not cases:
        raise ParityError(
            f"golden folder: {folder} holds no <slug>/<target>-<letter>.json; nothing would be compared"
        )
    return cases


def _read(path: Path) -> Case:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ParityError(f"{path}: not JSON: {error}") from error
    missing = [key for key in REQUIRED if key not in meta]
    if missing:
        raise ParityError(f"{path}: lacks {missing}, expected all of {list(REQUIRED)}")
    place = (path.parent.name, path.stem.rpartition("-")[0])
    if place != (meta["slug"], meta["target"]):
        raise ParityError(
            f"{path}: says {meta['slug']}/{meta['target']}, lies in the place of {'/'.join(place)}"
        )
    return Case(path, meta)


def why_skipped(case: Case, *, adapters: Adapters, shipped: bool) -> str | None:
    """Why a case is not compared, or None if it must pass.

    Only a foreign golden folder may hold methods that we do not have; a shipped case was put there to be
    compared.
    """
    if case.key in UNTESTED:
        return UNTESTED[case.key]
    if not shipped and all(slug != case.key[0] for slug, _ in adapters):
        return f"no adapter for any target of {case.key[0]!r}"
    return None


def check(case: Case, *, adapters: Adapters) -> None:
    """Run the case's adapter and compare all its outputs and gradients.

    Raises:
        ParityError: no adapter; a name missing or unknown; another shape, kind of number, or value.
    """
    adapter = adapters.get(case.key)
    if adapter is None:
        raise ParityError(
            f"{case.name}: no adapter. Write one, @parity{case.key!r} in "
            f"adapters/{case.key[0].replace('-', '_')}.py, or say in harness.UNTESTED why there is none"
        )
    results = adapter(case)
    expected = case.expected
    if set(results) != set(expected):
        raise ParityError(
            f"{case.name}: the adapter returns {sorted(results)}, the case expects {sorted(expected)}"
        )
    wrong = [
        f"  {name}: {problem}"
        for name in expected
        for problem in differences(
            results[name], expected[name], rtol=case.meta["rtol"], atol=case.meta["atol"]
        )
    ]
    if wrong:
        raise ParityError("\n".join([f"{case.name} differs from {case.meta['official']}:", *wrong]))


def differences(got: Tensor, expected: Tensor, *, rtol: float, atol: float) -> Iterator[str]:
    """What is wrong with `got`, in words; nothing if it is right. Integers and booleans must be equal."""
    if got.shape != expected.shape:
        yield f"got shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
        return
    if got.is_floating_point() != expected.is_floating_point():
        yield f"got dtype {got.dtype}, expected {expected.dtype}"
        return
    if not expected.is_floating_point():
        if not torch.equal(got.long(), expected.long()):
            yield f"got {got.tolist()}, expected {expected.tolist()}"
        return
    # float64, so that comparing adds no error of its own.
    mine, theirs = got.detach().double(), expected.double()
    close = torch.isclose(mine, theirs, rtol=rtol, atol=atol, equal_nan=True)
    if not bool(close.all()):
        far = (mine - theirs).abs().masked_fill(close, 0.0).nan_to_num(nan=torch.inf).flatten().argmax()
        yield (
            f"{int((~close).sum())} of {close.numel()} values beyond rtol {rtol:g}, atol {atol:g}; worst: "
            f"got {mine.flatten()[far].item():.9g}, expected {theirs.flatten()[far].item():.9g}"
        )
