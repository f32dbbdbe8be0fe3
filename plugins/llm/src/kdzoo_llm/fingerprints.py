"""Names for what decides the ids of a text: equal only where the ids are."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from transformers import PreTrainedTokenizerFast


def vocabulary_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 over all tokens and their ids: equal where ids mean the same."""
    return _sha256(sorted(tokenizer.get_vocab().items(), key=lambda pair: (pair[1], pair[0])))


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 over vocabulary, merges, normaliser and special tokens: equal where texts become the same ids."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for passing in ("truncation", "padding"):  # left over from the last call
        content.pop(passing, None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return _sha256([content, sorted(special.items())])


def template_hash(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """sha256 of the chat template, or None."""
    return _sha256(tokenizer.chat_template) if tokenizer.chat_template else None


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
