"""The tokenizers of the real texts: what ships, what they give back, how far they differ, how damage is reported."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from kdzoo.errors import KdzooError
from kdzoo_llm import vocabularies
from kdzoo_llm.data import lint_fixes, verses

VERSES = ("verses-en-2k", "verses-en-1k", "verses-en-es-2k")
ALL = (*VERSES, "lint-fixes-1k")
ODD = ["ñandú “ß”—漢字 🙂", "a\u0000b", "Yahweh", "x" * 300, "1 + 1 = 2?", "<sep"]


def ids(name: str, text: str) -> list[int]:
    return vocabularies.load(name)(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ALL)
def test_manifest_is_that_of_the_files(name: str) -> None:
    """A tokenizer made of other texts than those that ship, or changed by hand, would go unseen."""
    said = json.loads((vocabularies.FILES / "text-vocabularies-manifest.json").read_text())
    file = f"tokenizer-{name}.json"
    assert hashlib.sha256((vocabularies.FILES / file).read_bytes()).hexdigest() == said["sha256"][file]
    train = verses.verses("train")
    english, spanish = [verse.english for verse in train], [verse.spanish for verse in train]
    code = [text for row in lint_fixes.examples("train") for text in (row.prompt, row.answer)]
    texts = {"verses-en-es-2k": english + spanish, "lint-fixes-1k": code}.get(name, english)
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest() == said["files"][file]["text_sha256"]
    assert len(vocabularies.load(name)) == said["files"][file]["size"] == (2000 if "2k" in name else 1000)


@pytest.mark.parametrize("name", ALL)
def test_special_tokens_have_the_same_numbers(name: str) -> None:
    """Padding with the number of a word would be read as that word."""
    tokenizer = vocabularies.load(name)
    special = (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.sep_token)
    assert special == ("<pad>", "<bos>", "<eos>", "<sep>")
    assert tokenizer.convert_tokens_to_ids(list(special)) == [0, 1, 2, 3]
    assert tokenizer("the", add_special_tokens=True)["input_ids"] == ids(name, "the"), (
        "none may be added unasked"
    )


@pytest.mark.parametrize("name", ALL)
def test_round_trip(name: str) -> None:
    """What a model writes is judged as text: a token that is lost, or a space too many, would count as its mistake."""
    if name == "lint-fixes-1k":
        texts = [row.answer for row in lint_fixes.examples("test")] + ["    indented\n\tand = 'tabs'\n\n"]
    else:
        some = verses.verses("test")[::10]
        texts = [verse.english for verse in some] + [verse.spanish for verse in some]
    tokenizer = vocabularies.load(name)
    rows = tokenizer(texts + ODD, add_special_tokens=False)["input_ids"]
    assert tokenizer.batch_decode(rows) == texts + ODD


def test_every_byte_has_a_token() -> None:
    """A byte without one would vanish silently from text that training never showed."""
    for name in ALL:
        tokenizer = vocabularies.load(name)
        text = "".join(map(chr, range(1, 0x250)))
        if name == "verses-en-1k":  # joins white space and composes letters, and nothing else
            text = "".join(char for char in text if not char.isspace())
        assert tokenizer.decode(ids(name, text)) == text


def test_a_word_is_the_same_tokens_at_the_beginning() -> None:
    """Answers are encoded by themselves: there "God" must be the tokens that it is behind a prompt."""
    for name in VERSES:
        assert ids(name, "And God said") == ids(name, "And") + ids(name, "God said")


def test_white_space_counts_in_code_only() -> None:
    """Lost indentation would make every answer invalid Python; in verses the 1k normaliser joins blanks."""
    assert ids("lint-fixes-1k", "    x") != ids("lint-fixes-1k", "x")
    assert ids("verses-en-1k", "the  \n earth") == ids("verses-en-1k", "the earth")
    assert ids("verses-en-1k", "cafe\u0301") == ids("verses-en-1k", "caf\u00e9")
    assert ids("verses-en-2k", "cafe\u0301") != ids("verses-en-2k", "caf\u00e9")


def test_student_and_teacher_cut_verses_differently() -> None:
    """Distillation across tokenizers would show nothing if both gave the same sequences."""
    rows = verses.continuations("val")
    lengths = {name: [len(ids(name, row.answer)) for row in rows[:300]] for name in VERSES[:2]}
    large, small = lengths["verses-en-2k"], lengths["verses-en-1k"]
    assert sum(a != b for a, b in zip(large, small, strict=True)) > 150
    assert sum(small) > 1.1 * sum(large)
    hashes = {vocabularies.vocabulary_hash(vocabularies.load(name)) for name in ALL}
    assert len(hashes) == len(ALL)


@pytest.mark.parametrize("name", VERSES[:2])
def test_continuations_fit_into_64_tokens(name: str) -> None:
    """A verse longer than the context would be refused in the middle of a training."""
    for split in ("train", "pool", "val", "test"):
        # The longest of each split; all were measured when the limit was chosen.
        rows = sorted(verses.continuations(split), key=lambda row: -len(row.prompt + row.answer))[:400]
        tokenizer = vocabularies.load(name)
        texts = [text for row in rows for text in (row.prompt, row.answer)]
        lengths = [len(row) for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        assert max(a + b for a, b in zip(lengths[::2], lengths[1::2], strict=True)) + 3 <= 64


def test_unknown_and_damaged_vocabularies_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another tokenizer under the same name gives the same numbers another meaning."""
    with pytest.raises(KdzooError, match=r"unknown vocabulary 'verses-en'.*Did you mean"):
        vocabularies.load("verses-en")
    for path in vocabularies.FILES.glob("*.json"):
        if path.name.startswith("tokenizer-") or path.name in vocabularies.MANIFESTS:
            shutil.copy(path, tmp_path / path.name)
    path = tmp_path / "tokenizer-verses-en-1k.json"
    path.write_text(path.read_text().replace('"ĠGod"', '"ĠGid"'))
    monkeypatch.setattr(vocabularies, "FILES", tmp_path)
    for kept in (vocabularies.load, vocabularies._shipped):
        kept.cache_clear()
    try:
        assert len(vocabularies.load("verses-en-2k")) == 2000
        with pytest.raises(
            KdzooError, match=r"tokenizer-verses-en-1k\.json has sha256 .*tools/train_tokenizers.py"
        ):
            vocabularies.load("verses-en-1k")
    finally:
        for kept in (vocabularies.load, vocabularies._shipped):
            kept.cache_clear()
