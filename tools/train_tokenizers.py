"""Train the byte-level tokenizers that kdzoo_llm ships for its real texts.

    python tools/train_tokenizers.py

Each is trained on the training split of its texts alone. Written to kdzoo_llm/data/files: `tokenizer-<name>.json`
(Hugging Face tokenizers) and `text-vocabularies-manifest.json` (what they were made of, sizes, sha256).

    verses-en-2k      byte-pair encoding, 2,000 tokens, English verses
    verses-en-1k      unigram model, 1,000 tokens, the same text cut differently: a student's vocabulary where the
                      teacher's is another one
    verses-en-es-2k   byte-pair encoding, 2,000 tokens, English and Spanish verses
    lint-fixes-1k     byte-pair encoding, 1,000 tokens, code and messages; spaces at the beginning of a line count

All of them have <pad>, <bos>, <eos>, <sep> as numbers 0 to 3 and all 256 bytes, so no text is unknown. Those of the
verses put a space before the text, so that a word has the same tokens at the beginning as elsewhere, and take it away
when they decode. The same texts and version of `tokenizers` give the same bytes, on one thread or many.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tokenizers import Regex, Tokenizer, __version__, decoders, models, normalizers, pre_tokenizers, trainers

from kdzoo_llm.data import lint_fixes, verses

FILES = Path(__file__).parents[1] / "plugins/llm/src/kdzoo_llm/data/files"
SPECIAL = ["<pad>", "<bos>", "<eos>", "<sep>"]
SURPLUS = 3


def pairs(texts: list[str], size: int, space: bool = True) -> Tokenizer:
    """Byte-pair encoding."""
    tokenizer = Tokenizer(models.BPE())
    cut(tokenizer, space)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def pieces(texts: list[str], size: int) -> Tokenizer:
    """A unigram model: the likeliest of all ways to cut a word into pieces.

    `tokenizers`' own trainer gives other scores in each process. So the candidates are those of a byte-pair encoding
    with `SURPLUS` times as many tokens; in each round the texts are cut, a piece's probability becomes its share of
    what was cut, and the rarest of the surplus go, half of it at a time.
    """
    letters = set(pre_tokenizers.ByteLevel.alphabet())
    start = pairs(texts, SURPLUS * size)
    tokens = [token for token in start.get_vocab() if token not in SPECIAL]
    counts = Counter(token for row in start.encode_batch(texts) for token in row.tokens)
    surplus = len(tokens) + len(SPECIAL) - size
    while True:
        whole = sum(counts[token] + 0.5 for token in tokens)
        scores = {token: round(math.log((counts[token] + 0.5) / whole), 4) for token in tokens}
        order = sorted(tokens, key=lambda token: (-scores[token], token))
        tokenizer = Tokenizer(
            models.Unigram([*((token, 0.0) for token in SPECIAL), *((t, scores[t]) for t in order)])
        )
        # Characters composed, and white space one blank: as in SentencePiece's models.
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " ")]
        )
        cut(tokenizer, space=True)
        if surplus == 0 and len(tokens) + len(SPECIAL) == size:
            tokenizer.add_special_tokens(SPECIAL)
            return tokenizer
        counts = Counter(token for row in tokenizer.encode_batch(texts) for token in row.tokens)
        surplus //= 2
        rare = sorted(
            (token for token in tokens if token not in letters), key=lambda token: (-counts[token], token)
        )
        tokens = sorted(letters | set(rare[: size + surplus - len(SPECIAL) - len(letters)]))


def cut(tokenizer: Tokenizer, space: bool) -> None:
    """Words as bytes; a space before the text where asked for, which decoding takes away."""
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    decode = decoders.ByteLevel()
    tokenizer.decoder = decoders.Sequence([decode, decoders.Strip(" ", 1, 0)]) if space else decode


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=FILES)
    out = parser.parse_args().out
    train = verses.verses("train")
    english, spanish = [verse.english for verse in train], [verse.spanish for verse in train]
    code = [text for row in lint_fixes.examples("train") for text in (row.prompt, row.answer)]
    plan: dict[str, tuple[Callable[[], Tokenizer], list[str], str]] = {
        "verses-en-2k": (lambda: pairs(english, 2000), english, "English verses of train"),
        "verses-en-1k": (lambda: pieces(english, 1000), english, "English verses of train"),
        "verses-en-es-2k": (
            lambda: pairs(english + spanish, 2000), english + spanish, "English and Spanish verses of train",
        ),
        "lint-fixes-1k": (lambda: pairs(code, 1000, space=False), code, "prompts and answers of train"),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    entries = {}
    for name, (make, texts, source) in plan.items():
        tokenizer, path = make(), out / f"tokenizer-{name}.json"
        path.write_text(tokenizer.to_str(pretty=False) + "\n", encoding="utf-8")
        entries[path.name] = {
            "made_of": source,
            "text_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
            "size": tokenizer.get_vocab_size(),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        print(f"{path.name}: {tokenizer.get_vocab_size()} tokens, {path.stat().st_size:,} bytes")
    manifest = {
        "command": "python tools/train_tokenizers.py",
        "tokenizers": __version__,
        "files": entries,
        "sha256": {name: entry["sha256"] for name, entry in entries.items()},
    }
    (out / "text-vocabularies-manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
