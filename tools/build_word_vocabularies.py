"""Rebuild the small tokenizers that kdzoo_llm ships for its computed tasks.

    python tools/build_word_vocabularies.py

Each is made of the training texts of its task alone. Written to kdzoo_llm/data/files: `tokenizer-<task>.json`
(Hugging Face tokenizers) and `word-vocabularies-manifest.json` (what they were made of, sizes, sha256).

`word-problems`, `told-rule`, `handbook`: a token is a word, a number or a sign; a space before it belongs to it. Whole
numbers are tokens because a small model learns to add them far sooner than digits. `word-relations`: byte-pair pieces
of words, since the heads of val and test are words that training never shows.

All of them have <pad>, <bos>, <eos>, <sep>, <unk> as numbers 0 to 4, and give back any text they know unchanged.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from kdzoo_llm.data import handbook, relations, rules, word_problems
from kdzoo_llm.examples import Example

FILES = Path(__file__).parents[1] / "plugins/llm/src/kdzoo_llm/data/files"
SPECIAL = ("<pad>", "<bos>", "<eos>", "<sep>", "<unk>")
SPACE = "▁"  # stands for a space, as in SentencePiece
PIECES = f"{SPACE}?-->|{SPACE}?@@@|{SPACE}?[A-Za-z]+|{SPACE}?[0-9]+|{SPACE}?[^\\sA-Za-z0-9{SPACE}]|{SPACE}"
NUMBERS = PIECES.replace("[0-9]|", "[0-9]+|")
NUMBERS = " ".join(map(str, range(100)))  # a problem's mistaken steps may reach any of them
BPE_SIZE = 4000


def words(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer whose tokens are the pieces of these texts, in the order of the alphabet."""
    cut = pre_tokenizers.Sequence([_spaces(), pre_tokenizers.Split(Regex(PIECES), "isolated")])
    found = {piece for text in texts for piece, _ in cut.pre_tokenize_str(text)}
    vocabulary = {token: k for k, token in enumerate((*SPECIAL, *sorted(found)))}
    return _finished(Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")), cut)


def pieces(texts: Iterable[str]) -> Tokenizer:
    """A byte-pair tokenizer of `BPE_SIZE` tokens over the letters of these texts."""
    cut = pre_tokenizers.Sequence([_spaces(), pre_tokenizers.Split(Regex(PIECES), "isolated")])
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = cut
    trainer = trainers.BpeTrainer(vocab_size=BPE_SIZE, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return _finished(tokenizer, cut)


def _spaces() -> pre_tokenizers.PreTokenizer:
    # "always": an answer that is encoded by itself has the same tokens as behind its prompt.
    return pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")


def _finished(tokenizer: Tokenizer, cut: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    return tokenizer


def texts(rows: Iterable[Example]) -> list[str]:
    return [text for row in rows for text in (row.prompt, row.answer)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=FILES)
    out = parser.parse_args().out
    sources = {
        "word-problems": (words, [*texts(word_problems.examples("train")), NUMBERS], "train split, 0 to 99"),
        "told-rule": (words, texts(rules.base_examples("train")), "train split of the base model"),
        "handbook": (words, texts(handbook.base_examples("train")), "train split of the base model"),
        "word-relations": (pieces, texts(relations.examples("train")), "train split"),
    }
    out.mkdir(parents=True, exist_ok=True)
    manifest = {}
    for name, (make, content, source) in sources.items():
        path = out / f"tokenizer-{name}.json"
        tokenizer = make(content)
        path.write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
        manifest[path.name] = {
            "made_of": source,
            "text_sha256": hashlib.sha256("\n".join(content).encode()).hexdigest(),
            "size": tokenizer.get_vocab_size(),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        print(f"{path.name}: {tokenizer.get_vocab_size()} tokens, {path.stat().st_size} bytes")
    whole = {
        "command": "python tools/build_word_vocabularies.py",
        "files": manifest,
        "sha256": {name: entry["sha256"] for name, entry in manifest.items()},
    }
    (out / "word-vocabularies-manifest.json").write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
