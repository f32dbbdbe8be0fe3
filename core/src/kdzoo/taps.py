"""Taps: read inner layers of any model by module path, without touching its code.

A place is a path as ``named_modules`` spells it, for the module's output, or ``path:input`` for its first argument.
Wrappers are looked through: under DistributedDataParallel (``module.``) and torch.compile (``_orig_mod.``) the paths
stay those of the plain model. Taps work under torch.compile if they are attached before the first compiled call;
attached later, dynamo notices the new hooks and compiles again. They do not work where a model is exported or
scripted, or where a layer is fused away (``F.scaled_dot_product_attention`` has no module to tap): that is an error
when the tap is attached or read, not a silent None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from kdzoo.errors import KdzooError, unknown


def unwrap(module: nn.Module) -> nn.Module:
    """The plain model inside DistributedDataParallel and torch.compile."""
    while isinstance(module, nn.parallel.DistributedDataParallel) or hasattr(module, "_orig_mod"):
        inner = getattr(module, "_orig_mod", None)
        module = module.module if inner is None else inner  # type: ignore[assignment]
    return module


class Taps:
    """Hooks on named places of a model; a context manager that removes them in the end.

    Args:
        model: any module.
        places: paths, or name -> path for shorter names.

    Raises:
        KdzooError: a path that the model does not have, with the nearest ones.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> with Taps(net, {"hidden": "1", "pixels": "0:input"}) as taps:
        ...     _ = net(torch.ones(4, 2))
        ...     found = taps.take()
        >>> found["hidden"].shape, found["pixels"].shape
        (torch.Size([4, 3]), torch.Size([4, 2]))
    """

    def __init__(self, model: nn.Module, places: Iterable[str] | Mapping[str, str]) -> None:
        self._places = dict(places) if isinstance(places, Mapping) else {place: place for place in places}
        self._seen: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        modules = dict(unwrap(model).named_modules())
        try:
            for name, place in self._places.items():
                path, _, side = place.partition(":")
                if path not in modules or not path:
                    known = [key for key in modules if key]
                    raise unknown("module path", path, known, f"The model has {len(known)} modules.")
                if side not in ("", "input"):
                    raise KdzooError(
                        f"tap {place!r}: got {side!r} after the colon, expected nothing or 'input'"
                    )
                self._handles.append(self._attach(modules[path], name, side))
        except KdzooError:
            self.release()
            raise

    def _attach(self, module: nn.Module, name: str, side: str) -> Any:
        def keep(value: Any) -> None:
            while isinstance(value, tuple | list) and value:
                value = value[0]
            if not isinstance(value, Tensor):
                raise KdzooError(
                    f"tap {self._places[name]!r}: the module gives {type(value).__name__}, not a tensor"
                )
            if name in self._seen:
                raise KdzooError(
                    f"tap {self._places[name]!r}: the module ran twice before take(); one of the two values would be "
                    "lost. Call take() after each forward pass, or tap a module that runs once a pass."
                )
            self._seen[name] = value

        if side == "input":
            return module.register_forward_pre_hook(lambda _, inputs: keep(inputs))
        return module.register_forward_hook(lambda _, inputs, output: keep(output))

    def take(self) -> dict[str, Tensor]:
        """What the last forward pass left, by name; the taps keep no reference to it.

        Raises:
            KdzooError: a tapped module did not run.
        """
        if missing := [self._places[name] for name in self._places if name not in self._seen]:
            raise KdzooError(
                f"taps {', '.join(missing)} saw nothing: these modules did not run in the last forward pass. "
                "Call the model first; a fused or skipped layer cannot be tapped."
            )
        seen, self._seen = self._seen, {}
        return seen

    def release(self) -> None:
        """Remove the hooks and forget what they saw."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen = {}

    def __enter__(self) -> Taps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.release()
