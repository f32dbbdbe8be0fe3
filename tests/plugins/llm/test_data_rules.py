"""Rules told in a prompt: values computed again from the sentence, disjoint inputs and rules, what each side reads."""

from __future__ import annotations

import hashlib
import re

import pytest

from kdzoo.errors import KdzooError
from kdzoo_llm.data import rules


def value_of(sentence: str, a: int, b: int) -> int:
    """The rule's sentence, computed as it stands."""
    terms = re.fullmatch(r"rule: a @@@ b = (.*)\.", sentence)
    assert terms
    return sum({"a": a, "b": b}[term] if term in "ab" else int(term) for term in terms[1].split(" + "))


def test_every_value_follows_from_the_rule_as_written() -> None:
    """A sentence and values that disagree would make the teacher wrong and the student right, unseen."""
    rows = [example for split in rules.SPLITS for example in rules.examples(split)]
    rows += rules.base_examples("val") + rules.base_examples("new") + rules.base_examples("train")[:2000]
    for example in rows:
        asked = re.search(r"(\d+) @@@ (\d+) =$", example.prompt)
        assert asked
        value = value_of(example.facts["rule"], int(asked[1]), int(asked[2]))
        assert example.answer == f"{value}."
        assert value == example.facts["value"]
        assert rules.follows(example.answer, example)


def test_students_never_read_the_rule_and_teachers_do() -> None:
    """With the rule in the student's prompt there is nothing to distil; the shared part must end both prompts."""
    for split in rules.SPLITS:
        for example in rules.examples(split):
            assert re.fullmatch(r"\d+ @@@ \d+ =", example.prompt)
            assert rules.teacher_prompt(example) == f"rule: a @@@ b = a + b + 7. {example.prompt}"


def test_inputs_are_disjoint_and_shots_are_small() -> None:
    """An input of the shots in test would be recall; a large number among the shots would not be out of domain."""
    inputs = {split: {example.prompt for example in rules.examples(split)} for split in rules.SPLITS}
    sizes = {split: len(inputs[split]) for split in rules.SPLITS}
    assert sizes == {split: len(rules.examples(split)) for split in rules.SPLITS}
    for first in rules.SPLITS:
        for second in rules.SPLITS:
            assert first == second or not inputs[first] & inputs[second]
    assert 32 <= sizes["train"] <= rules.MOST_SHOTS
    assert not any(rules.out_of_domain(example) for example in rules.examples("train"))
    for split in ("pool", "val", "test"):
        outside = sum(rules.out_of_domain(example) for example in rules.examples(split))
        assert 50 <= outside < sizes[split]
    assert sizes["test"] - sum(rules.out_of_domain(example) for example in rules.examples("test")) >= 50


def test_a_base_model_never_meets_the_rule_of_the_task() -> None:
    """A rule met in training is known without being told: the student's baseline would rise for the wrong reason."""
    told = {
        split: {example.facts["rule"] for example in rules.base_examples(split)} for split in rules.BASE_SIZES
    }
    assert rules.TARGET in rules.new_rules()
    assert not set(rules.new_rules()) & set(rules.base_rules())
    assert told["train"] == {rule.text for rule in rules.base_rules()}
    assert told["new"] <= {rule.text for rule in rules.new_rules()} - {rules.TARGET.text}
    assert told["val"] <= told["train"]
    for constant in ("7", "3"):  # the number itself must be known, in another form
        assert any(re.search(rf"\b{constant}\b", text) for text in told["train"])
    assert all(str(example.facts["value"]) for example in rules.examples("test"))


def test_every_value_of_the_task_occurs_in_what_a_base_model_reads() -> None:
    """Numbers are whole tokens: one that was never trained could not be said."""
    read = {int(n) for example in rules.base_examples("train") for n in re.findall(r"\d+", example.answer)}
    for rule in rules.new_rules():
        for split in rules.SPLITS:
            assert {example.facts["value"] for example in rules.examples(split, rule)} <= read


def test_a_base_model_s_val_asks_what_train_never_asked() -> None:
    """Else its accuracy on val is memory of 400 rows."""
    asked = {
        split: {(e.facts["rule"], e.facts["a"], e.facts["b"]) for e in rules.base_examples(split)}
        for split in rules.BASE_SIZES
    }
    assert not asked["train"] & asked["val"]
    assert not asked["train"] & asked["new"]


def test_another_rule_has_the_same_inputs_and_other_values() -> None:
    """Arms over several rules must differ in the rule alone."""
    other = rules.Rule("b + k", 12)
    for ours, theirs in zip(rules.examples("test"), rules.examples("test", other), strict=True):
        assert ours.prompt == theirs.prompt
        assert theirs.facts["value"] == ours.facts["b"] + 12


def test_content_is_the_same_everywhere() -> None:
    """Records name this task: a changed draw must not pass under the same name."""
    digest = hashlib.sha256()
    for row in [e for s in rules.SPLITS for e in rules.examples(s)] + rules.base_examples("train"):
        digest.update(f"{row.id}\t{row.prompt}\t{row.answer}\n".encode())
    assert digest.hexdigest() == "04ae8e09534c2169ccec0a3d865496976b3da141e7a16f9029afb2a07c3df015"


def test_answers_are_judged_whole() -> None:
    """ "22 and more" or "2" must not pass for 22."""
    example = rules.examples("val")[0]
    value = example.facts["value"]
    assert rules.follows(f" {value}", example)
    for text in (f"{value}0.", f"{value} {value}.", "", "x", f"-{value}", f"{value}.."):
        assert not rules.follows(text, example)


def test_unknown_splits_are_refused() -> None:
    """A typing error must name what there is."""
    with pytest.raises(KdzooError, match=r"unknown split .*'vall'.*val"):
        rules.examples("vall")
    with pytest.raises(KdzooError, match="base model"):
        rules.base_examples("test")
