"""WordNet's relations: triples whose truth anybody can say, heads that splits do not share, damage that is reported."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from kdzoo.errors import KdzooError
from kdzoo_llm.data import relations


@pytest.mark.parametrize(
    ("head", "relation", "tail"),
    [
        ("dog", "hypernym", "animal"),
        ("tree", "hypernym", "plant"),
        ("walk", "hypernym", "move"),
        ("whisper", "hypernym", "talk"),
        ("finger", "part_of", "hand"),
        ("finger", "part_of", "arm"),  # through the hand
        ("hand", "has_part", "finger"),
        ("buy", "entails", "pay"),
        ("kill", "causes", "die"),
        ("big", "similar", "huge"),
        ("hot", "antonym", "cold"),
        ("cold", "antonym", "hot"),
        ("heavy", "attribute", "weight"),
        ("weight", "attribute", "heavy"),
    ],
)
def test_true_triples_are_true(head: str, relation: str, tail: str) -> None:
    """A misread pointer, or one step where there should be all, would judge every corpus wrongly."""
    assert relations.is_true(head, relation, tail)
    assert relations.is_true(head, relation, f" {tail} ")


@pytest.mark.parametrize(
    ("head", "relation", "tail"),
    [
        ("animal", "hypernym", "dog"),
        ("dog", "hypernym", "cat"),
        ("dog", "hypernym", "dog"),
        ("hand", "part_of", "finger"),
        ("die", "causes", "kill"),
        ("pay", "entails", "buy"),
        ("hot", "antonym", "huge"),
        ("dog", "hypernym", "animal animal"),
        ("dog", "hypernym", ""),
        ("dog", "hypernym", "xyzzy"),
        ("xyzzy", "hypernym", "animal"),
        ("xyzzy", "hypernym", "xyzzy"),
    ],
)
def test_false_triples_are_false(head: str, relation: str, tail: str) -> None:
    """The other direction, a sibling, the word itself, several words, no word: none of them may be accepted."""
    assert not relations.is_true(head, relation, tail)


def test_truth_of_kinds_goes_on_through_steps_and_has_no_circle() -> None:
    """Direct links that the closure lacks, or a relation that holds both ways, would be a broken closure."""
    graph = relations.read()
    for head in graph.heads:
        for relation, tails in head.tails.items():
            for tail in tails:
                assert relations.is_true(head.word, relation, tail), (head, relation, tail)
    for relation, other in (
        ("part_of", "has_part"),
        ("similar", "similar"),
        ("antonym", "antonym"),
        ("attribute",) * 2,
    ):
        assert {(t, h) for h, t in graph.true[relation]} == graph.true[other], relation
    for relation, pairs in graph.true.items():
        assert all(h != t for h, t in pairs), relation
        assert len(pairs) >= 40


def test_splits_share_no_head_and_join_no_pair_twice() -> None:
    """Val and test ask for words whose relations nobody has seen, not even from the other side."""
    heads = {split: relations.heads(split) for split in relations.SPLITS}
    for first in relations.SPLITS:
        for second in relations.SPLITS:
            if first != second:
                for of in ("word", "synset"):
                    ours, theirs = ({getattr(head, of) for head in heads[name]} for name in (first, second))
                    assert not ours & theirs
    pairs = {
        split: {
            frozenset((h.word, tail)) for h in heads[split] for tails in h.tails.values() for tail in tails
        }
        for split in relations.SPLITS
    }
    assert not (pairs["train"] | pairs["pool"]) & (pairs["val"] | pairs["test"])


def test_examples_ask_for_a_relation_of_their_head() -> None:
    """Prompt, answer and facts must speak of the same triple, in every split."""
    for split in relations.SPLITS:
        rows = relations.examples(split)
        assert len(rows) >= 500
        assert len({row.id for row in rows}) == len(rows)
        asked = [(row.facts["synset"], row.facts["relation"]) for row in rows]
        assert split == "train" or len(set(asked)) == len(rows)
        for row in rows:
            assert row.answer in row.facts["tails"]
            assert split == "train" or row.answer == row.facts["tails"][0]
            assert re.fullmatch(r"(to )?[a-z]+ \([a-z ]+\) [a-z ]+", row.prompt)
            assert row.prompt.split(" (")[0].removeprefix("to ") == row.facts["head"]
            assert row.prompt.endswith(relations.RELATIONS[row.facts["relation"]])
            assert row.facts["head"] not in re.split(r"[( )]", row.prompt.split("(")[1].split(")")[0])


def test_too_general_kinds_are_no_answers() -> None:
    """ "entity" is true of every noun: a student that says nothing else would be accepted always."""
    every = [row for split in relations.SPLITS for row in relations.examples(split)]
    answers = {row.answer for row in every if row.facts["relation"] == "hypernym"}
    assert not answers & {"entity", "abstraction", "whole"}
    rows = [row for row in relations.examples("val") if row.facts["relation"] == "hypernym"]
    for word in answers:
        hits = sum(relations.is_true(row.facts["head"], "hypernym", word) for row in rows)
        assert hits < 0.5 * len(rows), word


def test_labels_are_the_truth_and_false_triples_are_hard() -> None:
    """A critic learns from these: a false label, or only one way of being wrong, would make it look better or worse."""
    for split in relations.SPLITS:
        rows = relations.judged(split)
        own = {head.word for head in relations.heads(split)}
        for row in rows:
            assert row.valid == relations.is_true(row.head, row.relation, row.tail)
            assert row.valid == (row.kind == "true")
            assert row.head in own
            assert row.prompt.split(" (")[0].removeprefix("to ") == row.head
        share = sum(row.valid for row in rows) / len(rows)
        assert 0.45 < share < 0.6
        assert {row.kind for row in rows} == {"true", *relations.WRONG}


def test_content_is_the_same_everywhere() -> None:
    """Labelled triples are drawn: a changed draw must not pass under the same name."""
    digest = hashlib.sha256()
    for row in relations.judged("train"):
        digest.update(f"{row.prompt}\t{row.tail}\t{row.kind}\n".encode())
    assert digest.hexdigest() == "6fdb6cd3526704365d46b11a0243d25a67bc85f747244a8512335678189cf0aa"
    assert relations.read() is relations.read()


@pytest.mark.parametrize("name", ["relations.json", "relations-true.npz"])
def test_a_corrupt_file_names_file_hashes_and_remedy(tmp_path: Path, name: str) -> None:
    """One flipped bit would judge by another graph under the same name."""
    for path in relations.FILES.glob("relations*"):
        shutil.copy(path, tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    expected = hashlib.sha256(content).hexdigest()
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(KdzooError) as caught:
        relations.examples("train", tmp_path)
    for part in (
        name,
        expected,
        hashlib.sha256(content).hexdigest(),
        "Reinstall kdzoo-llm",
        "build_relations.py",
    ):
        assert part in str(caught.value)


def test_missing_files_and_manifests_of_another_form(tmp_path: Path) -> None:
    """No traceback of json or numpy for a half-copied installation."""
    with pytest.raises(KdzooError, match=r"relations-manifest\.json cannot be read"):
        relations.examples("val", tmp_path)
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "lacks sha256"),
        ('{"sha256": {}}', r"lacks the sha256 of"),
    ):
        (tmp_path / "relations-manifest.json").write_text(text)
        with pytest.raises(KdzooError, match=message):
            relations.examples("val", tmp_path)
    shutil.copy(relations.FILES / "relations-manifest.json", tmp_path)
    with pytest.raises(KdzooError, match=r"relations\.json cannot be read"):
        relations.is_true("dog", "hypernym", "animal", tmp_path)


def test_unknown_names_are_refused() -> None:
    """A typing error must not count as a false triple or an empty split."""
    with pytest.raises(KdzooError, match=r"unknown relation 'hyperonym'.*hypernym"):
        relations.is_true("dog", "hyperonym", "animal")
    for ask in (relations.examples, relations.judged, relations.heads):
        with pytest.raises(KdzooError, match=r"unknown split .*'poll'.*pool"):
            ask("poll")


def test_the_licence_ships_with_the_data() -> None:
    """Princeton's licence asks for its text on all copies."""
    text = (relations.FILES / "relations-LICENSE.txt").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in text
    assert "Permission to use, copy, modify and distribute" in text
    manifest = json.loads((relations.FILES / "relations-manifest.json").read_text())
    assert "WordNet 3.0" in manifest["source"]
    size = sum(path.stat().st_size for path in relations.FILES.glob("relations*"))
    assert size < 2e6
