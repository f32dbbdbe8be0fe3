"""One recording: what it depends on, how its shards are laid out, how rows are read.

Columns of a shard are dense, (n, ...), or ragged: flat values and, beside them, where each row ends. Shards are mapped
into memory, not read: rows that nobody asks for cost nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kdzoo.artefacts import key_of
from kdzoo.errors import KdzooError

ENDS = ".ends"  # where each row of the ragged column of this name ends
IDS = "ids"

Kind = Literal["logits", "features", "embedding", "top-k", "text", "scores"]
Columns = dict[str, Tensor]


class Identity(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a recording depends on; two that differ in any field are two recordings.

    Attributes:
        kind: what the columns mean.
        part: which part of the teacher's `Output`: "logits", "embedding", "features/stage2"; free for text and
        scores. role: the role that spoke.
        teacher: sha256 of the teacher's weights, or the name and version of a model behind an interface.
        answers: sha256 of what this teacher says about the first samples, here and now: equal weights in other code,
        with
            another normalisation or on other hardware, are another teacher.
        task, task_version, split: where the samples are from.
        data: sha256 of the split.
        ids: sha256 of the sample ids in their order.
        view: the name of the view, for example "image".
        deterministic: whether a sample's view is the same each time; core records no others.
        tokenizer, template: sha256 of the tokenizer and of the chat template, or None.
        dtype: of the values, for example "float32".
        k: how many logits are kept; 0 for all.
        device, precision, threads, torch: where and how it was computed; results depend on it in the last digits.
    """

    kind: Kind
    part: str
    role: str
    teacher: str
    answers: str = ""
    task: str
    task_version: int = 1
    split: str
    data: str
    ids: str
    view: str = ""
    deterministic: bool = True
    tokenizer: str | None = None
    template: str | None = None
    dtype: str
    k: int = 0
    device: str = "cpu"
    precision: str = "float32"
    threads: int = 1
    torch: str = ".".join(torch.__version__.split(".")[:2])

    @property
    def key(self) -> str:
        return key_of(msgspec.to_builtins(self))


def hash_ids(ids: Sequence[str]) -> str:
    """sha256 over ids in their order."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()


def ragged(name: str, rows: Sequence[Tensor]) -> Columns:
    """A column of rows (n_i,) of unequal length."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    flat = torch.cat([torch.empty(0, dtype=rows[0].dtype), *rows]) if rows else torch.empty(0)
    return {name: flat, name + ENDS: lengths.cumsum(0)}


def ragged_bytes(name: str, rows: Sequence[bytes]) -> Columns:
    """A column of byte strings."""
    return ragged(
        name, [torch.frombuffer(bytearray(row), dtype=torch.uint8) if row else _NO_BYTES for row in rows]
    )


_NO_BYTES = torch.empty(0, dtype=torch.uint8)


class Recording:
    """A whole recording, open for reading; rows are numbered in the order of its ids.

    Attributes:
        folder, manifest: where it lies, what it says of itself.
        identity: the part of the manifest that its key is made of.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.identity = msgspec.convert(manifest["identity"], Identity)
        self.facts: dict[str, Any] = manifest["facts"]
        self._starts = [0]
        for shard in manifest["shards"]:
            self._starts.append(self._starts[-1] + shard["rows"])
        self._columns: dict[str, list[Tensor]] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def key(self) -> str:
        return self.folder.name

    def column(self, name: str) -> list[Tensor]:
        """A column, shard by shard, mapped into memory."""
        if name not in self._columns:
            found = []
            for shard in self.manifest["shards"]:
                path = self.folder / shard["file"]
                try:
                    with safe_open(path, "pt") as file:
                        found.append(file.get_tensor(name))
                except (OSError, SafetensorError) as error:
                    raise KdzooError(
                        f"{path}: the column {name!r} cannot be read ({error}). Run 'kdzoo cache verify', then "
                        "'kdzoo cache prune': what is broken is removed and made again."
                    ) from error
            self._columns[name] = found
        return self._columns[name]

    def take(self, rows: Tensor, column: str = "values") -> Tensor:
        """(B, ...) a dense column at the rows (B,) int64, copied."""
        shards = self.column(column)
        if len(shards) == 1:
            return shards[0].index_select(0, rows)
        out = shards[0].new_empty((len(rows), *shards[0].shape[1:]))
        for start, shard in zip(self._starts, shards, strict=False):
            here = ((rows >= start) & (rows < start + len(shard))).nonzero().squeeze(1)
            if len(here):
                out[here] = shard.index_select(0, rows[here] - start)
        return out

    def row(self, row: int, column: str) -> Tensor:
        """(n,) one row of a ragged column."""
        shard = next(k for k in range(len(self._starts) - 1) if row < self._starts[k + 1])
        at, ends = row - self._starts[shard], self.column(column + ENDS)[shard]
        return self.column(column)[shard][int(ends[at - 1]) if at else 0 : int(ends[at])]

    @cached_property
    def ids(self) -> list[str]:
        """All sample ids, in row order."""
        return [
            name
            for flat, ends in zip(self.column(IDS), self.column(IDS + ENDS), strict=True)
            for name in _split(flat, ends)
        ]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids)}

    def rows_of(self, ids: Sequence[str]) -> Tensor:
        """(B,) the rows of sample ids.

        Raises:
            KdzooError: an id that was not recorded.
        """
        try:
            return torch.tensor([self._places[name] for name in ids], dtype=torch.int64)
        except KeyError as error:
            raise KdzooError(
                f"recording {self.key[:8]} ({self.identity.part} of {self.identity.split}, {len(self):,} samples) "
                f"has nothing about the sample {error.args[0]!r}: it was made for other data. Record these samples "
                "first."
            ) from None

    @property
    def bytes(self) -> int:
        return sum(int(shard["bytes"]) for shard in self.manifest["shards"])


def _split(flat: Tensor, ends: Tensor) -> Iterator[str]:
    content, first = flat.numpy().tobytes(), 0
    for end in ends.tolist():
        yield content[first:end].decode()
        first = end


def require(recording: Recording, need: Identity) -> None:
    """Refuse a recording that is of something else.

    Raises:
        KdzooError: with what the manifest says and what is needed, field by field.
    """
    said, needed = (msgspec.to_builtins(identity) for identity in (recording.identity, need))
    different = [
        f"{name}: recorded {said[name]!r}, needed {needed[name]!r}"
        for name in needed
        if said[name] != needed[name]
    ]
    if different:
        raise KdzooError(
            f"the recording {recording.folder} does not fit this run: {'; '.join(different)}. Training on it would "
            "teach another teacher's answers, or those about other samples. Remove it with 'kdzoo cache prune', or "
            "use --signals live."
        )
