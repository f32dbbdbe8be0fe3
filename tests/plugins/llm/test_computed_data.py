"""Text tasks whose rows are computed: right answers, disjoint splits, closed vocabularies, the scripted teacher."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations
from types import ModuleType, SimpleNamespace

import pytest

from kdzoo.errors import KdzooError
from kdzoo.speakers.scripted import ScriptedSpeaker
from kdzoo.speakers.speech import Request
from kdzoo_llm.data import fact_language, facts, operators, reasoning, sums
from kdzoo_llm.data.digits import read, spell
from kdzoo_llm.data.draws import Draws
from kdzoo_llm.data.examples import Example
from kdzoo_llm.data.facts import Fact, Page

SWAPS = (
    "alice has the ball , bob has the cup , claire has the hat . alice and bob swap . claire and alice swap . "
    "what does claire have ?"
)
SUMS = "tom has 3 bags of 4 apples . tom buys 1 9 . tom loses 0 8 . how many apples does tom have ?"


def asked(prompt: str, *draws: float) -> SimpleNamespace:
    """What a script is asked, with the chance that it gets."""
    return SimpleNamespace(prompt=prompt, uniforms=lambda n: draws[:n], request=SimpleNamespace(id="r"))


def all_reasoning() -> list[Example]:
    return [row for split in reasoning.SIZES for row in reasoning.load(split)]


def taught() -> list[tuple[Example, str]]:
    """Every question with one answer of the scripted teacher."""
    rows = all_reasoning()
    replies = ScriptedSpeaker(reasoning.script, "t").generate(
        [Request(id=r.id, prompt=r.prompt) for r in rows]
    )
    return [(row, reply.texts[0]) for row, reply in zip(rows, replies, strict=True)]


def slow_answer(question: str) -> str:
    """The answer of a reasoning question, from its sentences one by one."""
    if " swap " in question:
        held = dict(re.findall(r"(\w+) has the (\w+)", question))
        for a, b in re.findall(r"(\w+) and (\w+) swap", question):
            kept = held[a]
            held[a] = held[b]
            held[b] = kept
        return held[re.findall(r"what does (\w+) have", question)[0]]
    joined = re.sub(r"(?<=\d) (?=\d)", "", question)
    first, second = re.findall(r"has (\d+)(?: \w+ of (\d+))?", joined)[0]
    total = int(first) * int(second or 1)
    for verb, number in re.findall(r"(buys|finds|gets|drops|loses|sells) (\d+)", joined):
        total += int(number) if verb in ("buys", "finds", "gets") else -int(number)
    return " ".join(f"{total:02}")


# ---- shared parts


def test_draws_depend_on_the_name_only():
    """Would catch rows that move when another row draws more, and draws outside their range."""
    first = [Draws("a", 1).below(10**6) for _ in range(3)]
    assert len(set(first)) == 1
    assert first[0] != Draws("a", 2).below(10**6)
    draws = Draws("b")
    assert {draws.between(3, 5) for _ in range(60)} == {3, 4, 5}
    assert sorted(draws.some("abc", 3)) == ["a", "b", "c"]
    assert abs(sum(draws.chance(0.3) for _ in range(4000)) / 4000 - 0.3) < 4 * math.sqrt(0.21 / 4000)


@pytest.mark.parametrize("order", ["most", "least"])
def test_digits_round_trip(order):
    """Would catch digits written in one order and read in the other."""
    assert spell(120, order, 4) == ("0 1 2 0" if order == "most" else "0 2 1 0")
    assert all(
        read(spell(n, order, width), order) == n for n in (0, 7, 40, 99, 100, 1998) for width in (1, 3)
    )
    with pytest.raises(ValueError, match="no number"):
        read("1 x")


def texts(module: ModuleType) -> list[str]:
    """Everything that a module can serve, prompts and answers."""
    if module is reasoning:
        return [
            part
            for row, text in taught()
            for part in (row.prompt, row.answer, text, reasoning.rationale(row))
        ]
    if module is operators:
        rows = [row for split in operators.SHARES for row in operators.load(split)]
        found = [*rows, *operators.base("train", 3000), *operators.base("val", 300)]
        return [part for row in found for part in (operators.with_rule(row), row.answer)]
    found = [*facts.base("base"), *facts.base("base-val", 2, 1)]
    found += [row for page in facts.pages("target") for row in facts.questions(page, "all")]
    return [part for row in found for part in (row.prompt, row.answer)]


@pytest.mark.parametrize("module", [reasoning, operators, facts], ids=lambda module: module.__name__)
def test_words_cover_every_text(module):
    """Would catch a word that the vocabulary does not have: it would be served as unknown."""
    words = module.words()
    assert words == sorted(set(words))
    found = {word for text in texts(module) for word in text.split()}
    assert found - {""} <= set(words)
    unused = set(words) - found
    assert unused <= {"."}, "a word that no row has takes a place in the vocabulary for nothing"


@pytest.mark.parametrize("module", [reasoning, operators, facts], ids=lambda module: module.__name__)
def test_ids_are_unique(module):
    """Would catch two rows under one id: one of their cached answers would be served for both."""
    if module is reasoning:
        rows = all_reasoning()
    elif module is operators:
        rows = [row for split in operators.SHARES for row in operators.load(split)]
        rows += [*operators.load("train", 32, 1), *operators.base("train", 500), *operators.base("val", 500)]
    else:
        rows = [
            row
            for split in facts.SIZES
            for page in facts.pages(split)
            for row in facts.questions(page, "all")
        ]
    assert len({row.id for row in rows}) == len(rows)


@pytest.mark.parametrize("load", [reasoning.load, operators.load, operators.base, facts.pages])
def test_unknown_split(load):
    """Would catch a misspelled split that gives no rows, or all of them."""
    with pytest.raises(KdzooError, match="tset"):
        load("tset")


DIGEST = """
import hashlib
from kdzoo_llm.data import facts, operators, reasoning
rows = [reasoning.load(s) for s in reasoning.SIZES] + [operators.load(s) for s in operators.SHARES]
rows += [operators.base("val", 200), facts.base("base-val", 2, 1), facts.pages("target")]
rows += [reasoning.words(), operators.words(), facts.words()]
print(hashlib.sha256(repr(rows).encode()).hexdigest())
"""


def test_rows_are_equal_in_every_process():
    """Would catch rows that follow the order of a set or the hash of a string."""
    found = set()
    for seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", DIGEST], capture_output=True, text=True, env=env, timeout=60
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


# ---- reasoning


def test_reasoning_by_hand():
    """Would catch a chain of thought that does not lead to the answer."""
    assert reasoning.rationale(Example("x", SWAPS, "")) == (
        "alice bob cup bob alice ball claire claire hat ; alice claire hat bob bob ball claire alice cup ; "
        "so claire cup"
    )
    assert (
        reasoning.rationale(Example("x", SUMS, ""))
        == "3 times 4 is 1 2 ; 1 2 plus 1 9 is 3 1 ; 3 1 minus 0 8 is 2 3"
    )
    assert slow_answer(SWAPS) == "cup"
    assert slow_answer(SUMS) == "2 3"


def test_reasoning_answers_are_right():
    """Would catch wrong gold answers, and chains that end elsewhere or are too long."""
    for row in all_reasoning():
        assert row.answer == slow_answer(row.prompt)
        text = reasoning.target(reasoning.rationale(row), row.answer)
        assert reasoning.is_correct(row, text)
        assert reasoning.answer_of(reasoning.rationale(row)) == row.answer
        assert len(text.split()) < 40


def test_reasoning_splits_are_disjoint():
    """Would catch a test question that is trained on, and sizes that differ from the task's."""
    splits = {split: reasoning.load(split) for split in reasoning.SIZES}
    assert {split: len(rows) for split, rows in splits.items()} == reasoning.SIZES
    prompts = [row.prompt for rows in splits.values() for row in rows]
    assert len(set(prompts)) == len(prompts)
    kinds = Counter(row.id.split("/")[1] for row in splits["train"])
    assert kinds == {"swaps": 150, "sums": 150}


def test_reasoning_values_keep_their_range():
    """Would catch a number of three digits, or below 0."""
    ranges = sums.Ranges(steps=(4, 4), start=(60, 98), change=(1, 30), products=0.5)
    for row in reasoning.load("val", (4, 4), ranges):
        assert row.answer == slow_answer(row.prompt)
        assert row.prompt.count(" swap ") == 4 or len(re.findall(" is ", reasoning.rationale(row))) == 4
        for text in (row.prompt, reasoning.rationale(row)):
            assert not re.search(r"\d \d \d", text)
    with pytest.raises(KdzooError, match="Narrow"):
        reasoning.load("val", (1, 1), sums.Ranges(start=(200, 300), products=0))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so bob has the cup --> hat", "hat"),
        ("--> cup --> hat ball", "hat"),
        ("3 plus 9 is 1 2 --> 1 2", "1 2"),
        ("3 plus 9 is 1 2", "1 2"),
        ("so bob has the cup", "cup"),
        ("1 2 plus 3 --> so it is 1 5 . 7", "1 5"),
        ("so it is", None),
        ("cup -->", None),
        ("", None),
    ],
)
def test_extraction(text, answer):
    """Would catch an answer taken from the wrong side of the arrow, or a number cut after one digit."""
    assert reasoning.answer_of(text) == answer


def test_correct_is_numeric_for_numbers():
    """Would catch a right number refused for a zero in front, and a part of a number taken for it."""
    row = Example("x", SUMS, "1 2")
    assert reasoning.is_correct(row, "--> 0 1 2")
    assert not any(
        reasoning.is_correct(row, text) for text in ("--> 1", "--> 2", "--> 1 2 0", "--> cup", "nothing")
    )
    assert not reasoning.is_correct(Example("x", SWAPS, "cup"), "--> 1 2")


def test_script_by_hand():
    """Would catch a corruption that is none, that is in the wrong step, or that is carried on by mistake."""
    right = reasoning.rationale(Example("x", SUMS, ""))
    assert reasoning.script(asked(SUMS, 0.2, 0, 0, 0)) == f"{right} --> 2 3"
    # The first step, the first slip (+1), gone on from; the same, not gone on from; the last step counts in any case.
    assert reasoning.script(asked(SUMS, 0.19, 0, 0, 0)) == (
        "3 times 4 is 1 3 ; 1 3 plus 1 9 is 3 2 ; 3 2 minus 0 8 is 2 4 --> 2 4"
    )
    assert reasoning.script(asked(SUMS, 0.19, 0, 0, 0.9)) == (
        "3 times 4 is 1 3 ; 1 2 plus 1 9 is 3 1 ; 3 1 minus 0 8 is 2 3 --> 2 3"
    )
    assert reasoning.script(asked(SUMS, 0.19, 0.99, 0.2, 0.9)) == (
        "3 times 4 is 1 2 ; 1 2 plus 1 9 is 3 1 ; 3 1 minus 0 8 is 2 2 --> 2 2"
    )
    # No swap where there is one, in the first and in the last place.
    assert reasoning.script(asked(SWAPS, 0.1, 0, 0, 0)) == (
        "alice alice ball bob bob cup claire claire hat ; alice claire hat bob bob cup claire alice ball ; "
        "so claire ball --> ball"
    )
    assert reasoning.script(asked(SWAPS, 0.1, 0.5, 0.1, 0.9)) == (
        "alice bob cup bob alice ball claire claire hat ; alice alice cup bob bob ball claire claire hat ; "
        "so claire hat --> hat"
    )
    # Another pair swaps: alice and claire in the place of alice and bob.
    assert reasoning.script(asked(SWAPS, 0.1, 0, 0.4, 0.9)) == (
        "alice claire hat bob bob cup claire alice ball ; alice claire hat bob bob ball claire alice cup ; "
        "so claire cup --> cup"
    )


@pytest.mark.parametrize("kind", reasoning.KINDS)
def test_share_of_corrupted_rationales(kind):
    """Would catch a teacher that errs more or less often than stated, or whose errors a filter would all find."""
    rows = [(row, text) for row, text in taught() if f"/{kind}/" in row.id]
    wrong = [
        (row, text) for row, text in rows if text != reasoning.target(reasoning.rationale(row), row.answer)
    ]
    spread = math.sqrt(len(rows) * 0.2 * 0.8)
    assert abs(len(wrong) - 0.2 * len(rows)) < 4 * spread
    caught = sum(not reasoning.is_correct(row, text) for row, text in wrong) / len(wrong)
    assert 0.6 < caught < 0.95
    assert all(not re.search(r"\d \d \d", text) for _, text in wrong)


def test_script_refuses_other_prompts():
    """Would catch an invented answer to a question that the script cannot read."""
    for prompt in ("how are you ?", "tom has nothing .", "alice has the ball . what ?"):
        with pytest.raises(KdzooError, match="word for word"):
            reasoning.script(asked(prompt, 0.5, 0, 0, 0))


# ---- operators


def slow_sum(prompt: str, order: str) -> int:
    """The answer to a rule and a question, or to a plain sum, as a number."""

    def value(text: str) -> int:
        digits = text.split() if order == "most" else text.split()[::-1]
        return sum(int(digit) * 10**place for place, digit in enumerate(reversed(digits)))

    rule, _, ask = prompt.rpartition(" . ")
    extra = value(rule.rpartition("b + ")[2]) if rule else 0
    a, b = re.split(r"@@@|\+", ask.removesuffix("="))
    return value(a) + value(b) + extra


@pytest.mark.parametrize(("order", "width"), [("most", 1), ("least", 1), ("least", 3)])
def test_operator_answers_are_right(order, width):
    """Would catch a wrong sum, a digit order that differs between question and answer, and a width without effect."""
    rows = [(row.prompt, row.answer) for row in operators.base("train", 1000, order=order, width=width)]
    for split in ("train", "val", "test"):
        found = operators.load(split, order=order, width=width)
        rows += [(operators.with_rule(row, order=order, width=width), row.answer) for row in found]
    for prompt, answer in rows:
        assert read(answer, order) == slow_sum(prompt, order)
        assert width == 1 or len(answer.split()) == width + 1
    assert operators.rule_text(17, "least") == "rule : a @@@ b = a + b + 7 1 ."
    assert operators.question(5, 120, "least") == "5 @@@ 0 2 1 ="


def test_base_never_has_the_target():
    """Would catch a base model that has seen the rule which it is to learn later."""
    for target in (operators.TARGET, 3):
        rules = Counter(
            row.prompt.rpartition(" . ")[0] for row in operators.base("train", 3000, target=target)
        )
        assert operators.rule_text(target) not in rules
        assert len(rules) == len(operators.RULES)  # all others, and none for plain sums
        assert abs(rules[""] - 600) < 4 * math.sqrt(3000 * 0.2 * 0.8)
    known = {row.prompt for row in operators.base("train", 3000)}
    assert not known & {row.prompt for row in operators.base("val", 300)}


def test_operator_splits_are_disjoint():
    """Would catch test questions among the shots of some draw, and wrong counts or operands."""
    test = operators.load("test")
    parts = Counter(row.id.split("/")[1] for row in test)
    assert parts == {"id": 500, "ood": 500}
    assert len(operators.load("val")) == 400
    assert {row.answer for row in operators.load("pool")} == {""}
    held = {split: {row.prompt for row in operators.load(split)} for split in ("pool", "val", "test")}
    held["train"] = {row.prompt for draw in range(5) for row in operators.load("train", 32, draw)}
    for a, b in combinations(held.values(), 2):
        assert not a & b
    for row in [*test, *operators.load("train")]:
        lengths = {len(side.split()) for side in row.prompt.removesuffix("=").split("@@@")}
        assert lengths == {3} if "/ood/" in row.id else lengths <= {1, 2}


def test_shots_are_nested():
    """Would catch a curve over shots that also changes the examples, and draws that are all the same."""
    most = operators.load("train", 32)
    assert all(operators.load("train", shots) == most[:shots] for shots in operators.SHOTS)
    assert {row.prompt for row in operators.load("train", 32, 1)} != {row.prompt for row in most}
    with pytest.raises(KdzooError, match="5 shots"):
        operators.load("train", 5)


def test_operator_prompts_and_grader():
    """Would catch a student that reads the rule, and a right answer refused for its full stop."""
    row = Example("x", "1 2 @@@ 7 =", "3 6")
    assert operators.with_rule(row) == "rule : a @@@ b = a + b + 1 7 . 1 2 @@@ 7 ="
    assert operators.without_rule(row) == "1 2 @@@ 7 ="
    assert [operators.is_correct(row, text) for text in ("3 6", " 3 6 .", "3 6 0", "6 3", "")] == [
        True,
        True,
        False,
        False,
        False,
    ]


# ---- facts


def test_entities_are_disjoint():
    """Would catch a fact of the target that a base row gives away, and two pages that retrieval cannot tell apart."""
    pages = [page for split in facts.SIZES for page in facts.pages(split)]
    assert {split: len(facts.pages(split)) for split in facts.SIZES} == facts.SIZES
    assert len({frozenset(page.entity.split()) for page in pages}) == len(pages)
    assert all(len(set(page.entity.split())) == facts.NAME for page in pages)
    assert sum(len(page.facts) for page in facts.pages("target")) == 60


def test_values_are_spread():
    """Would catch an attribute that can be guessed: one value for most entities."""
    for name, attribute in fact_language.ATTRIBUTES.items():
        found = Counter(
            fact.value for page in facts.pages("base") for fact in page.facts if fact.attribute == name
        )
        assert set(found) == set(attribute.values)
        assert max(found.values()) < 1.5 * sum(found.values()) / len(attribute.values)


def test_templates_are_disjoint():
    """Would catch a test question that is a training question, or one that fits two attributes."""
    every = [
        t for attribute in fact_language.ATTRIBUTES.values() for t in (*attribute.train, *attribute.test)
    ]
    assert len(set(every)) == len(every) == 6 * 8
    values = [value for attribute in fact_language.ATTRIBUTES.values() for value in attribute.values]
    assert len(set(values)) == len(values)
    fixed = {word for template in every for word in template.split()}
    assert not set(fact_language.SYLLABLES) & (fixed | set(values))
    assert not fixed & set(values)
    for page in facts.pages("target"):
        train = {row.prompt for row in facts.questions(page)}
        test = {row.prompt for row in facts.questions(page, "test")}
        assert (len(train), len(test)) == (15, 9)
        assert not train & test


def test_pages_state_their_facts():
    """Would catch a page whose text says something else than its facts, which the answers come from."""
    for page in [*facts.pages("target"), *facts.pages("base")[:200]]:
        sentences = [sentence for sentence in page.text.split(" .") if sentence]
        assert (
            len(sentences) == len(page.facts) == len({fact.attribute for fact in page.facts}) == facts.FACTS
        )
        for sentence, fact in zip(sentences, page.facts, strict=True):
            assert fact.value in sentence.split()
            assert page.entity in sentence
            assert fact.value in fact_language.ATTRIBUTES[fact.attribute].values


def test_base_rows_can_be_answered_from_their_prompt():
    """Would catch a question behind the wrong page."""
    for split, distractors in (("base", 0), ("base-val", 2)):
        rows = facts.base(split, 2, distractors)
        assert len(rows) == facts.SIZES[split] * 6
        for row in rows:
            *sentences, question = row.prompt.split(" . ")
            assert len(sentences) in (3 * (1 + distractors), 3 * (1 + distractors) - 1)
            assert row.answer in row.prompt.split()
            assert sum(syllable in question.split() for syllable in fact_language.SYLLABLES) == facts.NAME
    both = {row.id.split("/")[3] for row in facts.base("base")}
    assert both == {"train", "test"}


def test_prompts_by_hand():
    """Would catch a student that reads the page."""
    page = Page("p/0", "ba lo mir", (Fact("home", "paris"),), "ba lo mir lives in paris .")
    row = facts.questions(page)[0]
    assert row == Example("p/0/home/train/0", "where does ba lo mir live ?", "paris")
    assert facts.with_page(page, row) == "ba lo mir lives in paris . where does ba lo mir live ?"
    assert facts.with_page([page, page], "x ?") == f"{page.text} {page.text} x ?"
    assert facts.closed_book(row) == row.prompt
    graded = [
        facts.is_correct(row, text) for text in ("Paris.", "it is paris , i think", "parish", "rome", "")
    ]
    assert graded == [True, True, False, False, False]


def test_retrieval_by_hand():
    """Would catch a wrong idf, length normalisation, or order of equal scores."""
    pages = [Page(str(n), "", (), text) for n, text in enumerate(["a b .", "a a a c .", "a d .", "e f ."])]
    order = [page.id for page in facts.retrieve("a c ?", pages, 4)]
    # c is in page 1 only; of a, pages 0 and 2 have as much; page 3 has neither word.
    assert order == ["1", "0", "2", "3"]
    assert facts.retrieve("b ?", pages) == [pages[0]]

    def score(counts: dict[str, int], length: int) -> float:
        total = 0.0
        for word, have in (("a", 3), ("b", 1)):
            f = counts.get(word, 0)
            weight = f * 2.2 / (f + 1.2 * (0.25 + 0.75 * length / 2.5))
            total += math.log((4 + 1) / (have + 0.5)) * weight
        return total

    assert score({"a": 1, "b": 1}, 2) > score({"a": 3}, 4) > score({}, 2)
    # Three times "a" on a long page, once on a short one: frequency wins here.
    assert (score({"a": 3}, 4) > score({"a": 1}, 2)) == (facts.retrieve("a ?", pages)[0].id == "1")


def test_retrieval_finds_the_page():
    """Would catch RAG arms that fail for want of the page."""
    pages = facts.pages("target")
    asked_of = [(page, row) for page in pages for row in facts.questions(page, "test")]
    first = sum(facts.retrieve(row, pages)[0] == page for page, row in asked_of)
    assert first > 0.95 * len(asked_of)


def test_question_writer():
    """Would catch a writer that asks with a test template, about another page, or always the same."""
    page = facts.pages("target")[0]
    [reply] = ScriptedSpeaker(facts.ask_script, "q").generate([Request(id="a", prompt=page.text, n=60)])
    assert set(reply.texts) <= {row.prompt for row in facts.questions(page)}
    assert len(set(reply.texts)) > 10
    for text in ("", "hello .", f"{page.text} hello ."):
        with pytest.raises(KdzooError, match="no page"):
            facts.ask_script(asked(text, 0.5, 0.5))
    for other in facts.pages("base")[:50]:
        assert facts.ask_script(asked(other.text, 0.0, 0.0)) == facts.questions(other)[0].prompt
