"""Train the tokenizers that ship with kdzoo-llm, on training splits alone.

    python tools/train_tokenizers.py            # all of them
    python tools/train_tokenizers.py verses-1k  # one

Byte pair encoding by Hugging Face's tokenizers, whose trainer gives equal results in every run (its Unigram trainer
does not). <pad> = 0, <bos> = 1, <eos> = 2, <unk> = 3.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from kdzoo_llm.data import lint_fixes, relations, verses
from kdzoo_llm.vocabularies import SPECIALS

FILES = Path(__file__).parents[1] / "plugins/llm/src/kdzoo_llm/data/files"


def phrase_texts() -> Iterable[str]:
    for row in verses.phrases("train"):
        yield row.prompt
        yield row.answer


def lint_texts() -> Iterable[str]:
    for row in lint_fixes.load("train"):
        yield row.prompt
        yield row.answer


CODE = {"lint-1k"}  # blanks and ends of lines are text of their own there, not what separates words
CODE_PIECES = r"\n| {2,}| ?[^ \n]+| "  # an end of line, an indentation, a word with the blank before it

TOKENIZERS: dict[str, tuple[Callable[[], Iterable[str]], int]] = {
    "verses-1k": (verses.texts, 1000),
    "verses-2k": (verses.texts, 2000),
    "phrases-2k": (phrase_texts, 2000),
    "lint-1k": (lint_texts, 1000),
    "relations-2k": (relations.texts, 2000),
}
# One token each; the blanks around them are a part of them.
MARKS = {"relations-2k": ("<head>", "</head>", "<relation>", "</relation>", "[GEN]", "[SEP]")}


def main() -> None:
    for name in sys.argv[1:] or TOKENIZERS:
        texts, size = TOKENIZERS[name]
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        code = name in CODE
        tokenizer.pre_tokenizer = (
            pre_tokenizers.Split(Regex(CODE_PIECES), "isolated") if code else pre_tokenizers.Metaspace()
        )
        tokenizer.decoder = decoders.Fuse() if code else decoders.Metaspace()
        marks = [AddedToken(mark, lstrip=True, rstrip=True) for mark in MARKS.get(name, ())]
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=[*SPECIALS, *marks], show_progress=False
        )
        tokenizer.train_from_iterator(texts(), trainer)
        path = FILES / f"tokenizer-{name}.json"
        compact = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
        path.write_text(compact + "\n", encoding="utf-8")
        print(path.name, tokenizer.get_vocab_size(), "pieces,", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
