"""Why a table of a card does not fit its type: every fault with its place in the file and the nearest known key.

msgspec stops at the first fault and names a place inside a table of tables only as ``[...]``; a card's author needs
the name. This runs only when a card does not fit.
"""

from __future__ import annotations

import typing
from typing import Any

import msgspec

from kdzoo.errors import did_you_mean


def faults(raw: Any, kind: Any, place: str = "") -> list[str]:
    """All that keeps `raw` from being a `kind`, one line each; empty if it fits.

    Args:
        raw: what the TOML reader gave.
        kind: the type as annotated: a struct, or a dict, list or optional of structs, or a plain type.
        place: dotted path of `raw` in the file.
    """
    try:
        msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        return _parts(raw, kind, place) or [f"{place or 'the file'}: {_plain(str(error))}"]
    return []


def _parts(raw: Any, kind: Any, place: str) -> list[str]:
    """The faults of what `raw` holds; empty where the fault is `raw` itself."""
    options = [kind, *typing.get_args(kind)]
    struct = next((o for o in options if isinstance(o, type) and issubclass(o, msgspec.Struct)), None)
    container = typing.get_origin(kind)
    found: list[str] = []
    if container is dict and isinstance(raw, dict):
        for key, value in raw.items():
            found += faults(value, typing.get_args(kind)[1], _join(place, key))
    elif container in (list, tuple) and isinstance(raw, list):
        for number, value in enumerate(raw):
            found += faults(value, typing.get_args(kind)[0], f"{place}[{number}]")
    elif struct is not None and isinstance(raw, dict):
        found += _fields(raw, struct, place)
    return found


def _fields(raw: dict[str, Any], struct: type[msgspec.Struct], place: str) -> list[str]:
    types = typing.get_type_hints(struct)
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    found: list[str] = []
    for key, value in raw.items():
        if key in fields:
            found += faults(value, types[fields[key].name], _join(place, key))
            continue
        near = did_you_mean(key, fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"
        found.append(f"{'in ' + place + ': ' if place else ''}unknown key {key!r}; {hint}")
    missing = [name for name, field in fields.items() if field.required and name not in raw]
    return found + [f"{_join(place, name)} is missing" for name in missing]


def _join(place: str, key: str) -> str:
    key = key if key.replace("-", "").replace("_", "").isalnum() else f'"{key}"'
    return f"{place}.{key}" if place else key


def _plain(message: str) -> str:
    """msgspec's words without its own path: ``Expected `int`, got `str` - at `$[0]``` -> ``expected int, got str``."""
    said = message.partition(" - at ")[0].replace("`", "")
    return said[0].lower() + said[1:]
