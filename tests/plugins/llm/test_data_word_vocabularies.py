"""Tokenizers of the computed tasks: nothing they should read is unknown to them, and text comes back unchanged."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from tokenizers import Tokenizer

from kdzoo_llm.data import handbook, relations, rules, word_problems
from kdzoo_llm.examples import Example

FILES = relations.FILES
SPECIAL = ("<pad>", "<bos>", "<eos>", "<sep>", "<unk>")
TASKS = ("handbook", "told-rule", "word-problems", "word-relations")


def tokenizer(name: str) -> Tokenizer:
    return Tokenizer.from_file(str(FILES / f"tokenizer-{name}.json"))


def texts(name: str) -> list[str]:
    """All that a model of this task may have to read or write."""
    rows: list[Example]
    if name == "handbook":
        rows = [e for s in handbook.SPLITS for e in handbook.examples(s)] + handbook.base_examples("val")
    elif name == "told-rule":
        rows = [e for s in rules.SPLITS for e in rules.examples(s)] + rules.base_examples("new")
    elif name == "word-problems":
        rows = [e for s in word_problems.SPLITS for e in word_problems.examples(s)[:600]]
    else:
        rows = [e for s in relations.SPLITS for e in relations.examples(s)[:600]]
    found = [text for row in rows for text in (row.prompt, row.answer)]
    found += [row.facts["teacher_prompt"] for row in rows if "teacher_prompt" in row.facts]
    if name == "word-problems":
        found += [word_problems.speak(row, sample, 0.7) for row in rows for sample in range(3)]
    if name == "word-relations":
        found += list(relations.read().words)
    return found


@pytest.mark.parametrize("name", TASKS)
def test_every_text_is_known_and_comes_back(name: str) -> None:
    """An unknown word of val or test reads as any other; a lost space or digit makes a right answer wrong."""
    ours = tokenizer(name)
    for text in texts(name):
        ids = ours.encode(text, add_special_tokens=False).ids
        assert min(ids) >= len(SPECIAL), text
        assert ours.decode(ids) == text


@pytest.mark.parametrize("name", TASKS)
def test_special_tokens_and_hash(name: str) -> None:
    """Models pad with 0 and stop at 2; a vocabulary of another build would shift every id."""
    ours = tokenizer(name)
    assert [ours.token_to_id(token) for token in SPECIAL] == [0, 1, 2, 3, 4]
    manifest = json.loads((FILES / "word-vocabularies-manifest.json").read_text())
    entry = manifest["files"][f"tokenizer-{name}.json"]
    content = (FILES / f"tokenizer-{name}.json").read_bytes()
    assert (
        hashlib.sha256(content).hexdigest() == entry["sha256"] == manifest["sha256"][f"tokenizer-{name}.json"]
    )
    assert ours.get_vocab_size() == entry["size"] <= 4096


@pytest.mark.parametrize("name", TASKS)
def test_an_answer_alone_has_the_tokens_it_has_behind_its_prompt(name: str) -> None:
    """Training writes prompt and answer apart, generation goes on from the prompt: both must mean the same text."""
    ours = tokenizer(name)
    for prompt, answer in (("What colour is Velm?", "red"), ("12 @@@ 3 =", "22."), ("dog", "animal")):
        apart = [ours.encode(text, add_special_tokens=False).tokens for text in (prompt, answer)]
        assert ours.encode(f"{prompt} {answer}", add_special_tokens=False).tokens == apart[0] + apart[1]


def test_vocabularies_are_of_the_training_texts() -> None:
    """A vocabulary of a changed task would know words that nobody says, and lack others."""
    manifest = json.loads((FILES / "word-vocabularies-manifest.json").read_text())["files"]
    made = {
        "handbook": handbook.base_examples("train"),
        "told-rule": rules.base_examples("train"),
        "word-problems": word_problems.examples("train"),
        "word-relations": relations.examples("train"),
    }
    for name, rows in made.items():
        content = [text for row in rows for text in (row.prompt, row.answer)]
        if name == "word-problems":
            content.append(" ".join(map(str, range(100))))
        digest = hashlib.sha256("\n".join(content).encode()).hexdigest()
        assert digest == manifest[f"tokenizer-{name}.json"]["text_sha256"], name


def test_numbers_are_whole_tokens() -> None:
    """Digit by digit a model of this size did not learn to add in the time of a bench."""
    for name in ("told-rule", "word-problems"):
        assert all(len(tokenizer(name).encode(str(n)).ids) == 1 for n in range(1, 51))
    words = [token for token in tokenizer("word-relations").get_vocab() if re.search(r"\d", token)]
    assert not words
