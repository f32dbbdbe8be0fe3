"""The verses: what ships, whether the languages fit, whether the splits keep apart, how damage is reported."""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from kdzoo.errors import KdzooError
from kdzoo_llm.data import verses

PAIRS = [(a, b) for k, a in enumerate(verses.SPLITS) for b in verses.SPLITS[k + 1 :]]


def manifest() -> dict:
    return json.loads((verses.FILES / "verses-manifest.json").read_text())


def chapter(reference: str) -> tuple[str, int]:
    book, _, place = reference.rpartition(" ")
    return book, int(place.split(":")[0])


def plain(text: str) -> str:
    return " ".join(re.findall(r"[^\W\d_]+", text.lower()))


def test_manifest_is_that_of_the_files() -> None:
    """A file rebuilt without its manifest, or with another liblzma and other lines, would go unseen."""
    said, packed = manifest(), (verses.FILES / "verses.tsv.xz").read_bytes()
    assert hashlib.sha256(packed).hexdigest() == said["sha256"]["verses.tsv.xz"]
    assert hashlib.sha256(lzma.decompress(packed)).hexdigest() == said["sha256_of_lines"]
    assert {split: len(verses.verses(split)) for split in verses.SPLITS} == said["verses"]
    assert len(packed) < 2_000_000


def test_known_verses_are_side_by_side() -> None:
    """A text off by one verse would still load, and every translation would be wrong."""
    by_reference = {verse.reference: verse for split in verses.SPLITS for verse in verses.verses(split)}
    start = by_reference["Genesis 1:1"]
    assert start.english == "In the beginning, God created the heavens and the earth."
    assert start.spanish == "En el principio crió Dios los cielos y la tierra."
    wept = by_reference["John 11:35"]
    assert (wept.english, wept.spanish) == ("Jesus wept.", "Y lloró Jesús.")
    # A name on one side is on the other.
    names = {
        "Jerusalem": "Jerusalem",
        "Egypt": "Egipto",
        "Moses": "Moisés",
        "Israel": "Israel",
        "Peter": "Pedro",
    }
    for english, spanish in names.items():
        said = [v.spanish for v in by_reference.values() if re.search(rf"\b{english}\b", v.english)]
        assert sum(spanish in text for text in said) > 0.9 * len(said) > 100, english


def test_texts_hold_no_markup_and_no_glued_words() -> None:
    """A footnote's remains, or "onlySon" where one stood, would be learnt as language."""
    wrong = re.compile(r"[<>\[\]{}¶*_/|]|[a-zñáéíóú][,.;:!?]?[A-ZÑ]| [,.;:!?]|[,;][^\W\d_]|\s\s|^\s|\s$")
    for split in verses.SPLITS:
        for verse in verses.verses(split)[::2]:
            for text in (verse.english, verse.spanish):
                assert not wrong.search(text), verse


def test_openings_of_chapters_have_ordinary_capitals() -> None:
    """The Spanish edition prints "EN el principio": such words would be others for a tokenizer than "En"."""
    for split in verses.SPLITS:
        for verse in verses.verses(split):
            if verse.reference.endswith(":1"):
                assert not re.search(r"\b[^\W\d_a-z]{3,}\b", verse.spanish), verse


def test_splits_are_blocks_of_chapters() -> None:
    """Single verses drawn at random would leave a verse's neighbour, often its second half, in training."""
    split_of: dict[tuple[str, int], set[str]] = {}
    for split in verses.SPLITS:
        for verse in verses.verses(split):
            split_of.setdefault(chapter(verse.reference), set()).add(split)
    assert all(len(splits) == 1 for splits in split_of.values())
    block = manifest()["block"]
    for (book, number), splits in split_of.items():
        first = (number - 1) // block * block + 1
        assert all(split_of.get((book, other), splits) == splits for other in range(first, first + block))


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_no_text_is_in_two_splits(first: str, second: str) -> None:
    """Kings and Chronicles, the gospels and the psalms repeat each other: answers would be recalled, not found."""
    for language in ("english", "spanish"):
        a, b = ({plain(getattr(v, language)) for v in verses.verses(split)} for split in (first, second))
        assert not a & b


def test_nearly_equal_verses_of_test_are_not_in_train() -> None:
    """Parallel passages differ by a word or two; here the slow way, for some verses of test against all of train."""

    def pairs(text: str) -> Counter[tuple[str, str]]:
        words = ["<", *re.findall(r"[^\W\d_]+(?:’[^\W\d_]+)?", text.lower()), ">"]
        return Counter(dict.fromkeys(pairwise(words), 1))

    train = [pairs(verse.english) for verse in verses.verses("train")[::3]]
    for verse in verses.verses("test")[7::400]:
        mine = pairs(verse.english)
        for other in train:
            assert 2 * (mine & other).total() < 0.5 * (mine.total() + other.total())


@pytest.mark.parametrize("split", verses.SPLITS)
def test_continuations_are_halves_of_verses(split: str) -> None:
    """A prompt that holds its answer, or an empty half, would make the task trivial or impossible."""
    whole = {f"{split}/{verse.reference}": verse.english for verse in verses.verses(split)}
    rows = verses.continuations(split)
    assert len({row.id for row in rows}) == len(rows) > 1500
    for row in rows:
        assert f"{row.prompt} {row.answer}" == whole[row.id]
        assert len(whole[row.id]) <= verses.CONTINUED
        assert 0 <= len(row.answer.split()) - len(row.prompt.split()) <= 1
        assert len(row.prompt.split()) >= verses.SHORTEST // 2


@pytest.mark.parametrize("split", verses.SPLITS)
def test_translations_are_short_on_both_sides(split: str) -> None:
    """A long Spanish side behind a short English one would not fit the model."""
    rows = verses.translations(split)
    assert len({row.id for row in rows}) == len(rows) > 600
    assert all(max(len(row.prompt.split()), len(row.answer.split())) <= verses.TRANSLATED for row in rows)
    assert {row.facts["reference"] for row in rows} == {row.id.partition("/")[2] for row in rows}
    assert len(verses.translations(split, 8)) < len(rows) < len(verses.translations(split, 40))


def test_phrases_are_in_one_split_and_once() -> None:
    """ "The king said," is in every book: as a test it would measure what was seen in training."""
    rows = [row for split in verses.SPLITS for row in verses.phrases(split)]
    for part in ("prompt", "answer"):
        assert len({plain(getattr(row, part)) for row in rows}) == len(rows)
    assert [len(verses.phrases(split)) > 1500 for split in verses.SPLITS] == [True] * 4
    least, most = verses.PHRASE
    assert all(least <= len(row.prompt.split()) <= most >= len(row.answer.split()) for row in rows)


def test_phrases_are_cut_at_the_stops_of_both_languages() -> None:
    """Parts of verses that are cut differently would be translations of something else."""
    verse = verses.Verse("train", "X 1:1", "He said, “Go to the sea!” They went; all of them.", "")
    same = verses.Verse("train", "X 1:1", verse.english, "Y dijo: Ve á la mar. ¡Y fueron; todos ellos!")
    assert verses._parts(same) == [
        ("He said,", "Y dijo:"),
        ("Go to the sea!", "Ve á la mar."),
        ("They went;", "Y fueron;"),
        ("all of them.", "todos ellos!"),
    ]
    for other in (
        "Y dijo: Ve á la mar. Y fueron todos.",
        "Y dijo: Ve. Y fueron y vieron muy grandes cosas; todos.",
    ):
        assert verses._parts(verses.Verse("train", "X 1:1", verse.english, other)) == []


def test_bad_input_is_named() -> None:
    """A misspelt split or a limit without examples would end in an empty training set."""
    with pytest.raises(KdzooError, match=r"unknown split of the verses 'tests'.*Did you mean test"):
        verses.verses("tests")
    with pytest.raises(KdzooError, match=r"at most 20 characters.*expected 60 or more"):
        verses.continuations("val", 20)
    with pytest.raises(KdzooError, match="unknown split of the verses 'dev'"):
        verses.phrases("dev")
    with pytest.raises(KdzooError, match="no verse of val has at most 1 words"):
        verses.translations("val", 1)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """Other text under the same name would give records that cannot be compared."""
    for name in ("verses.tsv.xz", "verses-manifest.json"):
        shutil.copy(verses.FILES / name, tmp_path / name)
    path = tmp_path / "verses.tsv.xz"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(KdzooError, match=r"has sha256 .* its manifest expects .*tools/build_verses.py"):
        verses.verses("val", tmp_path)
    path.unlink()
    with pytest.raises(KdzooError, match="cannot be read"):
        verses.verses("val", tmp_path)
    (tmp_path / "verses-manifest.json").write_text('{"sha256": {}}')
    with pytest.raises(KdzooError, match=r"lacks the sha256 of verses\.tsv\.xz"):
        verses.verses("val", tmp_path)
