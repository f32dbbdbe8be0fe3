"""The verses: real text, cut without leaks."""

from __future__ import annotations

import json

import pytest

from kdzoo.errors import KdzooError
from kdzoo_llm.data import verses
from kdzoo_llm.vocabularies import FILES, open_vocabulary


def test_the_file_is_the_one_of_the_manifest() -> None:
    """Other text under the same name would change every result; loading compares the hash."""
    said = json.loads((FILES / "verses-manifest.json").read_bytes())
    assert len(verses.whole()) == said["verses"] == 31_077


def test_a_verse_is_read_as_it_is_printed() -> None:
    """Marks and notes of the source must be gone, and the two languages must belong together."""
    (verse,) = [v for v in verses.whole() if (v.book, v.chapter, v.number) == ("John", 11, 35)]
    assert verse.english == "Jesus wept."
    assert verse.spanish == "Y lloró Jesús."
    assert not [v for v in verses.whole() if "<" in v.english + v.spanish]


def test_no_chapter_is_in_two_splits() -> None:
    """Neighbouring verses share names and phrases: across a split they would be a leak."""
    chapters = {split: {(v.book, v.chapter) for v in verses.verses(split)} for split in verses.SHARES}
    assert sum(map(len, chapters.values())) == len(set.union(*chapters.values())) == 1189


def test_phrases_of_the_test_were_not_in_training() -> None:
    """The same pair is often printed twice."""
    learnt = {(row.prompt, row.answer) for row in verses.phrases("train")}
    for split in ("pool", "val", "test"):
        assert not learnt & {(row.prompt, row.answer) for row in verses.phrases(split)}


def test_phrases_are_pieces_of_equally_cut_verses() -> None:
    """By hand: a verse of three pieces on both sides, and one whose pieces do not match."""
    assert verses.pieces("God said, “Let there be light,” and there was light.") == [
        "god said",
        "let there be light",
        "and there was light",
    ]
    assert verses.pieces("Y dijo Dios: Sea la luz: y fué la luz.") == [
        "y dijo dios",
        "sea la luz",
        "y fué la luz",
    ]


def test_endings_go_on_where_the_prompt_stops() -> None:
    """Nothing may be lost or doubled between them."""
    whole = {row.id: row.answer for row in verses.plain("val")}
    for row in verses.endings("val"):
        assert whole[row.id].startswith(f"{row.prompt} {row.answer}")


def test_unknown_splits_are_named() -> None:
    """A typing error must not look like an empty split."""
    with pytest.raises(KdzooError, match="train, pool, val, test"):
        verses.verses("tset")


@pytest.mark.parametrize("name", ["verses-1k", "verses-2k", "phrases-2k"])
def test_tokenizers_give_text_back(name: str) -> None:
    """What is lost on the way through ids cannot be learnt."""
    vocabulary = open_vocabulary(f"file:{name}")
    assert (vocabulary.pad, vocabulary.bos, vocabulary.eos) == (0, 1, 2)
    rows = verses.phrases("val") if name.startswith("phrases") else verses.plain("val")
    texts = [row.answer for row in rows[:200]]
    unknown = vocabulary.tokenizer.unk_token_id
    whole = [text for text in texts if unknown not in vocabulary.encode(text)]
    assert len(whole) >= 198
    assert [vocabulary.decode(vocabulary.encode(text)) for text in whole] == whole
