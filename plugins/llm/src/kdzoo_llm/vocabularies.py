"""The tokenizers that ship in the package, by name, and those of folders and of the hub."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kdzoo.errors import KdzooError, unknown
from kdzoo.shipped import Shipped
from kdzoo_llm.fingerprints import vocabulary_hash

__all__ = ["FILES", "load", "names", "vocabulary_hash"]

FILES = Path(__file__).parent / "data" / "files"
SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "sep_token": "<sep>"}
MANIFESTS = {
    "word-vocabularies-manifest.json": Shipped("vocabularies", "build_word_vocabularies.py", "kdzoo-llm"),
    "text-vocabularies-manifest.json": Shipped("vocabularies", "train_tokenizers.py", "kdzoo-llm"),
}
"""Manifest with the hashes of tokenizers -> who made them."""


@cache
def _shipped() -> dict[str, tuple[Shipped, str]]:
    """Name -> who made it, and its hash."""
    found = {}
    for manifest, shipped in MANIFESTS.items():
        hashes = shipped.parsed(FILES / manifest, shipped.content(FILES / manifest), ("sha256",))["sha256"]
        for file, digest in hashes.items():
            if file.startswith("tokenizer-"):
                found[file.removeprefix("tokenizer-").removesuffix(".json")] = (shipped, digest)
    return found


def names() -> list[str]:
    """All that ship."""
    return sorted(_shipped())


@cache
def load(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer.

    Args:
        name: one of `names`, or a folder or hub name (with a slash in it) that transformers can load.

    Raises:
        KdzooError: no such name, or a file that is not the one in its manifest.
    """
    if "/" in name:
        return _loaded(name)
    if name not in _shipped():
        raise unknown("vocabulary", name, names(), "Or give a folder, or a hub name with a slash in it.")
    shipped, digest = _shipped()[name]
    content = shipped.content(FILES / f"tokenizer-{name}.json", digest)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(content.decode()), **SPECIAL)


def _loaded(name: str) -> PreTrainedTokenizerFast:
    try:
        found = AutoTokenizer.from_pretrained(name, use_fast=True)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise KdzooError(
            f"cannot load the tokenizer {name!r}: {str(error).splitlines()[0]} Give a folder with tokenizer.json, or a "
            "name on the hub."
        ) from error
    if found.pad_token_id is None:
        found.pad_token = found.eos_token
    assert isinstance(found, PreTrainedTokenizerFast)
    return found
