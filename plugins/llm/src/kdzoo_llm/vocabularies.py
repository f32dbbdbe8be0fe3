"""Vocabularies: what turns text into token ids and back, each known by a hash of all that decides the ids.

A vocabulary is a tokenizer of transformers behind five methods. Own ones have <pad>=0, <bos>=1, <eos>=2, <unk>=3.
`open_vocabulary` takes

* ``words:MODULE``: the closed list of words that a data module of this package can write, one token a word;
* ``file:NAME``: a tokenizer that ships in the package, ``data/files/tokenizer-NAME.json``;
* ``smollm2``: that of `kdzoo_llm.smollm2`;
* anything else: a folder, or a name on the Hugging Face hub, as ``AutoTokenizer`` takes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kdzoo.errors import KdzooError
from kdzoo_llm import smollm2

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
FILES = Path(__file__).parent / "data" / "files"


class Vocabulary:
    """Text to ids and back.

    Attributes:
        name: as it was asked for.
        tokenizer: of transformers.
        size: number of ids, V.
        pad, bos, eos: special ids; `bos` is `eos` where a tokenizer has none.
        hash: sha256 over the tokenizer's definition and its chat template: equal hash, equal ids.
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerFast) -> None:
        self.name, self.tokenizer = name, tokenizer
        self.size = len(tokenizer)
        if tokenizer.eos_token_id is None:
            raise KdzooError(
                f"the tokenizer {name!r} has no end-of-text token: nothing that is written with it would ever end. "
                "Set eos_token in its tokenizer_config.json, or choose another tokenizer."
            )
        self.eos = int(tokenizer.eos_token_id)
        self.pad = int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else self.eos
        self.bos = int(tokenizer.bos_token_id) if tokenizer.bos_token_id is not None else self.eos
        definition = [tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template or ""]
        self.hash = hashlib.sha256(json.dumps(definition).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids without special tokens around them."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts, in one call."""
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text up to the first end token; special tokens are left out."""
        kept = list(ids)
        if self.eos in kept:
            kept = kept[: kept.index(self.eos)]
        return str(self.tokenizer.decode(kept, skip_special_tokens=True))

    def chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """The ids of a conversation, ready for the assistant's turn, by the tokenizer's own template.

        Raises:
            KdzooError: it has no template, or the template fails on these messages.
        """
        if not self.tokenizer.chat_template:
            raise KdzooError(
                f"the tokenizer {self.name!r} has no chat template, so a conversation cannot be turned into a prompt: "
                "a made-up form would be one that its model never saw. Give plain text, or use an instruct model."
            )
        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            found = self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:  # jinja's own classes, and whatever a template raises
            raise KdzooError(
                f"the chat template of {self.name!r} does not take these messages ({error}): its fields are not those "
                f"that were given (roles {', '.join(role for role, _ in messages)}). Use the roles that it knows."
            ) from error
        return list(found)


@lru_cache(maxsize=32)
def open_vocabulary(name: str) -> Vocabulary:
    """The vocabulary of a name; see the module.

    Raises:
        KdzooError: it does not exist, or has no end token.
    """
    kind, _, rest = name.partition(":")
    if kind == "words":
        return word_level(name, _words(rest))
    if kind == "file":
        path = FILES / f"tokenizer-{rest}.json"
        if not path.exists():
            known = sorted(p.stem.removeprefix("tokenizer-") for p in FILES.glob("tokenizer-*.json"))
            raise KdzooError(f"no tokenizer {rest!r} ships with kdzoo-llm; there are {', '.join(known)}.")
        return Vocabulary(name, fast(Tokenizer.from_str(path.read_text(encoding="utf-8"))))
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(**smollm2.options(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise KdzooError(
            f"the tokenizer {name!r} cannot be had ({str(error).splitlines()[0]}). Give the folder of a downloaded "
            "model, a name on the Hugging Face hub, file:NAME or words:MODULE."
        ) from error
    return Vocabulary(name, tokenizer)


def _words(module: str) -> list[str]:
    """The words of a data module that has a closed list of them."""
    try:
        words: list[str] = import_module(f"kdzoo_llm.data.{module}").words()
    except (ModuleNotFoundError, AttributeError) as error:
        raise KdzooError(
            f"vocabulary words:{module}: kdzoo_llm.data has no module {module!r} with a closed list of words. Those "
            "that have one are facts, operators, reasoning and relations."
        ) from error
    return words


def word_level(name: str, words: Sequence[str]) -> Vocabulary:
    """One token for each of the words; text is words between blanks."""
    ids = {token: place for place, token in enumerate(dict.fromkeys((*SPECIALS, *words)))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    made = fast(tokenizer)
    return WordVocabulary(name, made)


class WordVocabulary(Vocabulary):
    """A vocabulary of whole words, which are joined by blanks."""

    def decode(self, ids: Sequence[int]) -> str:
        kept = list(ids)
        if self.eos in kept:
            kept = kept[: kept.index(self.eos)]
        words = self.tokenizer.convert_ids_to_tokens([i for i in kept if i >= len(SPECIALS)])
        return " ".join(words)


def fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer of the package as one of transformers."""
    pad, bos, eos, unk = SPECIALS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unk
    )
