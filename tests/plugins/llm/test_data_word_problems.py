"""Word problems: every answer computed again from the words, splits that share nothing, extraction of answers."""

from __future__ import annotations

import hashlib
import re

import pytest

from kdzoo.errors import KdzooError
from kdzoo_llm.data import word_problems as wp
from kdzoo_llm.examples import Example

# What the words say, written from the sentences and not from the templates' steps.
SOLVERS = {
    "gift": lambda a, b, c: a + b - c,
    "boxes": lambda a, b, c: a * b - c,
    "more": lambda a, b: a + (a + b),
    "fewer": lambda a, b: a + (a - b),
    "share": lambda a, b, c: (a + b) / c,
    "bags": lambda a, b, c: a * b + c,
    "both": lambda a, b, c, d: a * b + c * d,
    "market": lambda a, b, c, d: a - b - c + d,
    "twice": lambda a, b: a - b + 2 * a,
    "friend": lambda a, b, c: a + b - c,
    "finds": lambda a, b, c: a + b - c,
    "packs": lambda a, b, c: a * b - c,
    "sells": lambda a, b, c: a - b + c,
    "stock": lambda a, b, c, d: a * b + c - d,
}


def all_examples() -> list[Example]:
    return [example for split in wp.SPLITS for example in wp.examples(split)]


def test_every_answer_is_what_the_words_say() -> None:
    """A wrong sign in a template would teach and reward wrong answers, in every arm alike, and nobody would see it."""
    for example in all_examples():
        asked = [int(number) for number in re.findall(r"\d+", example.prompt)]
        right = SOLVERS[example.facts["template"]](*asked)
        assert right == int(example.facts["number"]), example
        assert 1 <= right <= wp.LARGEST
        assert example.answer == f"{example.facts['rationale']} --> {example.facts['number']}"
        assert wp.is_correct(example.answer, example)


def test_every_step_of_a_rationale_is_true_and_leads_to_the_answer() -> None:
    """A chain of thought with a false step is a wrong target even if its last number is right."""
    for example in all_examples():
        steps = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", example.facts["rationale"])
        assert len(steps) == example.facts["steps"] in (2, 3)
        for left, sign, right, result in steps:
            a, b = int(left), int(right)
            assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign] == int(result), example
        assert steps[-1][3] == example.facts["number"]


def test_splits_share_no_numbers_and_no_question() -> None:
    """Numbers met in training would turn reasoning into recall."""
    assert {split: len(wp.examples(split)) for split in wp.SPLITS} == wp.SIZES
    numbers = {
        split: {tuple(example.facts["numbers"].values()) for example in wp.examples(split)}
        for split in wp.SPLITS
    }
    for first in wp.SPLITS:
        prompts = [example.prompt for example in wp.examples(first)]
        assert len(set(prompts)) == len(prompts)
        for second in wp.SPLITS:
            assert first == second or not numbers[first] & numbers[second]


def test_unseen_templates_are_in_val_and_test_alone() -> None:
    """The subset must ask for kinds that no training question shows, in words that they do show."""
    words = set()
    for split in ("train", "pool"):
        assert not any(wp.unseen(example) for example in wp.examples(split))
    for example in wp.examples("train"):
        words.update(re.findall(r"[A-Za-z]+", example.prompt + " " + example.answer))
    for split in ("val", "test"):
        chosen = [example for example in wp.examples(split) if wp.unseen(example)]
        assert {example.facts["template"] for example in chosen} == set(wp.UNSEEN)
        assert len(chosen) >= 50  # of a claim on a subset
        for example in chosen:
            assert set(re.findall(r"[A-Za-z]+", example.prompt)) <= words


def test_content_is_the_same_everywhere() -> None:
    """Records name these problems: another machine, or a changed draw, must not give others under the same name."""
    digest = hashlib.sha256()
    for example in all_examples():
        digest.update(f"{example.id}\t{example.prompt}\t{example.answer}\n".encode())
    assert digest.hexdigest() == "8447be779d740cce7cdda92b43fa0b70c5dd8da19b9c9c9bc8ae4ea83fb76013"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So 3*4 = 12. --> 12", "12"),
        ("We get 1,234 apples --> 1,234 apples", "1234"),
        ("First 5 then 7.5 then -3", "-3"),
        ("no number here", "no number here"),
        ("5 --> 6 --> 7", "6"),
        ("nothing --> none", " none"),
        ("a --> $7", "7"),
        ("12 + 5 = 17. The answer is 17.", "17"),
        ("12 + 5 = 17 -->", ""),
        ("", ""),
    ],
)
def test_the_answer_in_a_text(text: str, expected: str) -> None:
    """Accuracy, filtering of rationales and parity all hang on which number counts."""
    assert wp.answer_of(text) == expected


def test_a_right_number_may_be_written_otherwise_a_wrong_one_may_not() -> None:
    """13.0 is 13; text without a number, or infinity, is never right."""
    example = wp.examples("val")[0]
    number = example.facts["number"]
    for text in (f"--> {number}.0", f"x --> {number} {int(number) + 1}", number, f"so {number}."):
        assert wp.is_correct(text, example)
    for text in (f"--> {number}1", f"{number} --> none", "", "nan", f"--> -{number}"):
        assert not wp.is_correct(text, example)


def test_rationale_and_target_are_each_other_s_inverse() -> None:
    """A rationale cut out of a text and put together again must be the same text."""
    for example in wp.examples("val")[:50]:
        assert wp.rationale_of(example.answer) == example.facts["rationale"]
        assert wp.target(wp.rationale_of(example.answer), wp.answer_of(example.answer)) == example.answer
    assert wp.target("", "7") == "7"


def test_a_scripted_teacher_errs_as_often_as_it_is_told() -> None:
    """The bench's premise: 20 % wrong, three quarters of them with a wrong number, and none at rate 0."""
    rows = wp.examples("pool")[:2000]
    for example in rows[:200]:
        assert wp.is_correct(wp.speak(example, 0, 0.0), example)
    wrong_number, wrong = 0, 0
    for example in rows:
        said = wp.speak(example, 1, 0.2)
        wrong_number += not wp.is_correct(said, example)
        steps = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", said)
        equations = [(int(a), sign, int(b), int(c)) for a, sign, b, c in steps]
        wrong += equations != wp.equations(example.facts["template"], example.facts["numbers"])
        assert "-" not in wp.answer_of(said)
    assert wrong / len(rows) == pytest.approx(0.2, abs=0.03)
    assert wrong_number / len(rows) == pytest.approx(0.15, abs=0.03)


def test_a_scripted_teacher_s_samples_differ_and_repeat() -> None:
    """Several answers to one question must not be one answer thrice; asked again, they must be the same."""
    example = wp.examples("train")[0]
    said = [wp.speak(example, sample, 0.2) for sample in range(12)]
    assert len(set(said)) >= 3
    assert said == [wp.speak(example, sample, 0.2) for sample in range(12)]


def test_unknown_names_and_rates_are_refused() -> None:
    """A typing error must not give an empty split or a teacher that is always wrong."""
    with pytest.raises(KdzooError, match=r"unknown split .*'dev'.*train"):
        wp.examples("dev")
    with pytest.raises(KdzooError, match="style"):
        wp.rationale([(1, "+", 1, 2)], "long")
    with pytest.raises(KdzooError, match=r"error_rate 20 .*0\.2"):
        wp.speak(wp.examples("val")[0], 0, 20)
