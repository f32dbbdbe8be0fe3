"""The relations of compound nouns, the closed world's truth, and the scripted teacher who knows most of it."""

from __future__ import annotations

import json

import pytest

from kdzoo.errors import KdzooError
from kdzoo.speakers.speech import Request
from kdzoo_llm.data import relation_speaker, relations
from kdzoo_llm.data.draws import Draws
from kdzoo_llm.vocabularies import FILES, open_vocabulary


def test_the_file_is_the_one_of_the_manifest() -> None:
    """Another world under the same name would change every result; loading compares the hash."""
    said = json.loads((FILES / "relations-manifest.json").read_bytes())
    heads = {head for head, _ in relations.world()}
    assert len(heads) == said["heads"] == 5411
    assert "Princeton University" in (FILES / "relations-LICENSE.txt").read_text()


def test_splits_have_the_sizes_of_the_card_and_no_common_head() -> None:
    """A head in two splits would be a leak: its tails would have been read before they are asked for."""
    assert [len(relations.triples(split)) for split in relations.SHARES] == [1698, 5354, 561, 1065]
    heads = [set(relations.heads(split)) for split in relations.SHARES]
    assert sum(map(len, heads)) == len(set.union(*heads))


def test_truth_by_hand() -> None:
    """Near and far kinds are true, synonyms too; a part is no kind, and nothing is true of an unknown head."""
    head = "air force"
    assert relations.is_true(head, "kind-of", "force")
    assert relations.is_true(head, "kind-of", "organisation")
    assert relations.is_true(head, "field", " Military ")
    assert not relations.is_true(head, "kind-of", "military")
    assert not relations.is_true("flying saucepan", "kind-of", "vessel")


def test_references_are_true_and_false_ones_are_not() -> None:
    """A wrong reference would teach what the judge refuses."""
    for row in relations.triples("val"):
        head, relation = relations.asked(row.prompt)
        assert relations.is_true(head, relation, row.answer)
        assert not relations.is_true(head, relation, relations.plausible_false(head, relation, Draws(row.id)))


def test_what_is_no_prompt_or_relation_is_named() -> None:
    """A typing error must not be judged as a wrong answer."""
    with pytest.raises(KdzooError, match="prompt_of"):
        relations.asked("a kind of what?")
    with pytest.raises(KdzooError, match="kind-of"):
        relations.prompt_of("air force", "kindof")
    with pytest.raises(KdzooError, match="train, pool, val, test"):
        relations.known("tset")


def test_the_vocabularies_give_tails_back() -> None:
    """What is lost on the way through ids cannot be learnt, nor judged."""
    for name in ("words:relations", "file:relations-2k"):
        vocabulary = open_vocabulary(name)
        tails = sorted({row.answer for row in relations.triples("test")})
        assert [vocabulary.decode(vocabulary.encode(tail)) for tail in tails] == tails
        assert len(vocabulary.encode("<head>")) == 1


def test_three_of_four_answers_are_true() -> None:
    """A teacher that is nearly always right, or hardly ever, would leave nothing to filter."""
    mass = [
        (said, relations.is_true(row.head, row.relation, tail))
        for row in relations.known("pool")[:3000]
        for tail, said in relation_speaker.beliefs(row.head, row.relation)
    ]
    assert sum(said for said, true in mass if true) / sum(said for said, _ in mass) == pytest.approx(
        0.747, abs=0.005
    )


def test_a_narrow_top_p_leaves_the_strongest_belief() -> None:
    """Ignored, it would make the corpus as wrong as the weakest beliefs."""
    prompt = relation_speaker.tail_prompt("air horn", "kind-of", relations.triples("train")[:2])
    asked = Request(id="a", prompt=prompt, n=20, temperature=1.0, top_p=0.1)
    (reply,) = relation_speaker.speaker().generate([asked])
    strongest = max(relation_speaker.beliefs("air horn", "kind-of"), key=lambda belief: belief[1])
    assert {text.strip(" .") for text in reply.texts} == {strongest[0]}


def test_the_speaker_refuses_what_it_cannot_read() -> None:
    """A prompt from another template would be answered with nonsense."""
    with pytest.raises(KdzooError, match="head_prompt or tail_prompt"):
        list(relation_speaker.speaker().generate([Request(id="a", prompt="Who are you?")]))
