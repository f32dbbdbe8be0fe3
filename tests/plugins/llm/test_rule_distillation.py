"""Rule distillation: its two losses, who reads the rule, positions, the teacher that is tuned first, and the task."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from kdzoo import catalog
from kdzoo.bench import run_bench
from kdzoo.errors import KdzooError
from kdzoo.plan import Request, make_plan
from kdzoo.runs import Run
from kdzoo.testing.subject import Subject
from kdzoo.workers import Options
from kdzoo_llm.data import operators, rule_files
from kdzoo_llm.language import TEACHER
from kdzoo_llm.methods.rule_distillation import (
    TUNED,
    hidden_loss,
    inner_states,
    longer,
    output_loss,
    positions,
)
from kdzoo_llm.sequences import TEXT
from kdzoo_llm.tasks import rule_math
from kdzoo_llm.vocabularies import word_level

TASK = "told-rule"
SMALL = ("teacher=llama-s", "base_rows=200", "batch=4")
Open = Callable[..., Run]


@pytest.fixture
def opened(open_arm: Open) -> Open:
    def make(arm: str = "rule-distillation", *more: str) -> Run:
        return open_arm("rule-distillation", TASK, arm=arm, set=(*SMALL, *more))

    return make


def batch_of(run: Run) -> Any:
    return next(iter(run.loader()))


# ---- the output loss


def test_output_loss_by_hand() -> None:
    """p = (3/4, 1/4) against (1/2, 1/2) at T = 1, times T^2 at T = 2 with doubled logits; padding counts nothing."""
    student = torch.zeros(1, 2, 2)
    teacher = torch.tensor([[[math.log(3.0), 0.0], [math.nan, 7.0]]])
    mask = torch.tensor([[True, False]])
    apart = math.log(2) - (-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert output_loss(student, teacher, mask, temperature=1.0)[0].tolist() == pytest.approx([apart, 0.0])
    warm = output_loss(student, 2 * teacher, mask, temperature=2.0)
    assert warm[0, 0].item() == pytest.approx(4 * apart)
    cross = output_loss(student, teacher, mask, temperature=1.0, loss="entropy")
    assert cross[0].tolist() == pytest.approx([math.log(2), 0.0])


def slow_output(student: Tensor, teacher: Tensor, mask: Tensor, t: float) -> float:
    total, count = 0.0, 0
    for b in range(mask.shape[0]):
        for a in range(mask.shape[1]):
            if not mask[b, a]:
                continue
            count += 1
            p = [math.exp(z / t) for z in teacher[b, a].tolist()]
            q = [math.exp(z / t) for z in student[b, a].tolist()]
            for pv, qv in zip(p, q, strict=True):
                total += t * t * pv / sum(p) * (math.log(pv / sum(p)) - math.log(qv / sum(q)))
    return total / count


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_output_loss_is_the_formula(temperature: float) -> None:
    """Loops over positions and tokens give the same mean."""
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(2, 5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(2, 5, generator=generator) < 0.6
    each = output_loss(student, teacher, mask, temperature=temperature)
    assert each.sum().item() / int(mask.sum()) == pytest.approx(
        slow_output(student, teacher, mask, temperature)
    )


def test_entropy_has_the_gradient_of_kl() -> None:
    """The variant may differ from KL by the teacher's entropy only."""
    generator = torch.Generator().manual_seed(2)
    teacher, mask = torch.randn(1, 3, 5, generator=generator), torch.ones(1, 3, dtype=torch.bool)
    found = []
    for loss in ("kl", "entropy"):
        student = torch.zeros(1, 3, 5, requires_grad=True)
        output_loss(student, teacher, mask, temperature=1.0, loss=loss).sum().backward()
        found.append(student.grad)
    torch.testing.assert_close(*found)


def test_a_token_that_underflows_weighs_nothing() -> None:
    """The official code has NaN there, and replaces it."""
    student, teacher = torch.zeros(1, 1, 2), torch.tensor([[[0.0, -1e6]]])
    each = output_loss(student, teacher, torch.ones(1, 1, dtype=torch.bool), temperature=1.0)
    assert each.item() == pytest.approx(math.log(2))


# ---- the hidden loss


def test_hidden_loss_by_hand() -> None:
    """One layer at right angles (distance 2 of unit vectors), one that differs in length alone; D = 2, n = 2."""
    student = [torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 5.0]]])]
    teacher = [torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[0.0, 0.5]]])]
    each = hidden_loss(student, teacher, torch.ones(1, 1, dtype=torch.bool))
    assert each.tolist() == [[pytest.approx(2 / (2 * 2))]]


def test_hidden_loss_is_the_formula() -> None:
    """Layers stacked, normalised, concatenated, mean of squares over both, as the card says; padding left out."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(3, 2, 4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
    unit = [
        (side / side.norm(dim=3, keepdim=True)).permute(1, 2, 0, 3).flatten(2) for side in (student, teacher)
    ]
    expected = (unit[0] - unit[1]).square().mean(2) * mask
    student[:, ~mask] = math.nan
    found = hidden_loss(list(student), list(teacher), mask)
    torch.testing.assert_close(found, expected)


def test_hidden_loss_is_zero_where_both_agree_up_to_length() -> None:
    """States are compared by direction, layer by layer."""
    states = [torch.randn(2, 3, 4) for _ in range(2)]
    mask = torch.ones(2, 3, dtype=torch.bool)
    apart = hidden_loss(states, [7 * state for state in states], mask)
    assert float(apart.abs().max()) < 1e-12


def test_hidden_loss_without_a_position_has_a_zero_gradient() -> None:
    """A micro-batch whose answers are empty must not stop a run, nor move it."""
    state = torch.randn(1, 2, 4, requires_grad=True)
    hidden_loss([state], [torch.randn(1, 2, 4)], torch.zeros(1, 2, dtype=torch.bool)).sum().backward()
    assert state.grad is not None
    assert not state.grad.any()


def test_hidden_loss_refuses_other_layers() -> None:
    """Zipped in silence, a deeper teacher would lose its last layers."""
    one = [torch.zeros(1, 1, 2)]
    mask = torch.ones(1, 1, dtype=torch.bool)
    for student, teacher in ((one, one * 2), ([], [])):
        with pytest.raises(ValueError, match="equally many"):
            hidden_loss(student, teacher, mask)


def test_no_gradient_reaches_the_teacher() -> None:
    """A teacher that moves towards its student is none."""
    mask = torch.ones(1, 2, dtype=torch.bool)
    student, teacher = (torch.randn(1, 2, 4, requires_grad=True) for _ in range(2))
    total = output_loss(student, teacher, mask, temperature=1.0).sum()
    (total + hidden_loss([student], [teacher], mask).sum()).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_full(dtype: torch.dtype) -> None:
    """Values of 1e-5, as a wide model has them, would be lost in half precision."""
    generator = torch.Generator().manual_seed(4)
    student, teacher = (torch.randn(1, 3, 64, generator=generator).to(dtype) for _ in range(2))
    mask = torch.ones(1, 3, dtype=torch.bool)
    for loss in (
        lambda s, t: hidden_loss([s], [t], mask),
        lambda s, t: output_loss(s, t, mask, temperature=1.0),
    ):
        low = loss(student, teacher)
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, loss(student.float(), teacher.float()))


def test_the_last_state_is_not_compared() -> None:
    """The official code leaves out the last one; and ten layers must not be sorted as words."""
    features = {f"layer{i}": torch.tensor(float(i)) for i in range(12)}
    assert [int(state) for state in inner_states(features)] == list(range(11))


# ---- positions


def test_positions_of_both_kinds() -> None:
    """Official: one place later; the column behind the longest answer is there for it."""
    labels = torch.tensor([[5, 6, 2, -1], [7, 2, -1, -1]])
    assert positions(labels, "correct").int().tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert positions(labels, "official").int().tolist() == [[0, 1, 1, 1], [0, 1, 1, 0]]


def test_official_positions_are_those_of_unshifted_labels(opened: Open) -> None:
    """Of one whole sequence: logits where labels stand, nothing moved."""
    run = opened("rule-distillation.official-shift")
    batch = batch_of(run)
    run.enter(batch)
    student = run.models["student"].eval()
    view = batch.views[TEXT]
    ids = torch.cat((view["prompt"], view["answer"][:, :-1]), 1)
    with torch.no_grad():
        whole = student.net(input_ids=ids).logits  # no padding here: all rows are equally long
        found = student(view).logits
    labels = torch.full_like(ids, -100)
    labels[:, view["prompt"].shape[1] :] = view["answer"][:, :-1]
    torch.testing.assert_close(
        found[positions(batch.labels, "official")], whole[labels != -100], atol=2e-5, rtol=1e-4
    )


def test_longer_views_say_the_same_before(opened: Open) -> None:
    """The further column must not change the others."""
    run = opened()
    view = batch_of(run).views[TEXT]
    with torch.no_grad():
        said = run.models["teacher"](view).logits
        more = run.models["teacher"](longer(view)).logits
    assert more.shape[1] == said.shape[1] + 1
    torch.testing.assert_close(more[:, :-1], said, atol=2e-6, rtol=0)


# ---- who reads what


def test_only_the_teacher_reads_the_rule(opened: Open) -> None:
    """A student that reads the rule would have nothing to learn; answers begin in one place (C5)."""
    run = opened()
    batch = batch_of(run)
    words = run.models["teacher"].vocabulary
    for row in range(len(batch.ids)):
        text, told = (
            words.decode([i for i in batch.views[view]["prompt"][row].tolist() if i != words.pad])
            for view in (TEXT, TEACHER)
        )
        assert told == f"rule : a @@@ b = a + b + 7 1 0 . {text}"
        assert "rule" not in text
    assert torch.equal(batch.views[TEXT]["answer"], batch.views[TEACHER]["answer"])


def test_told_students_read_it_in_training(opened: Open) -> None:
    """Inst-Tune-w-R is tested without the rule, but trained with it."""
    batch = batch_of(opened("rule-distillation.told"))
    assert batch.views[TEXT] is batch.views[TEACHER]


def test_a_student_begins_as_the_base(opened: Open) -> None:
    """Adapters begin at zero: without the rule both say the same, and only adapters learn."""
    run = opened()
    view = batch_of(run).views[TEXT]
    student, teacher = run.models["student"].eval(), run.models["teacher"]
    torch.testing.assert_close(student(view).logits, teacher(view).logits)
    trained = [name for name, value in student.named_parameters() if value.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


def test_terms_are_the_losses(opened: Open) -> None:
    """The card's weights times sums over tokens; no cross-entropy."""
    run = opened("rule-distillation", "hidden_weight=3.0")
    batch = batch_of(run)
    run.enter(batch)
    (terms,) = [part for part in run.hook.loss_terms(run=run, batch=batch) if "output" in part]
    assert set(terms) == {"output", "hidden"}
    assert terms["hidden"].weight == 3.0
    assert all(term.per == "token" for term in terms.values())
    said = run.models["teacher"](batch.views[TEACHER])
    student = run.out("student")
    each = output_loss(student.logits, said.logits, batch.labels >= 0, temperature=1.0)
    torch.testing.assert_close(terms["output"].total, each.sum())
    assert float(terms["hidden"].total.detach()) > 0


def test_examples_alone_are_the_student_alone(opened: Open) -> None:
    """The arm of C6 at the default number of shots trains what the arm `student` trains."""
    one = opened("rule-distillation.examples[16]")
    batch = batch_of(one)
    one.enter(batch)
    parts = one.hook.loss_terms(run=one, batch=batch)
    assert [name for part in parts for name in part] == ["task"]


def test_impossible_arms_are_refused() -> None:
    """Distilling between two equal prompts would train nothing, in silence."""
    with pytest.raises(KdzooError, match="one prompt"):
        make_plan(Request("rule-distillation", task=TASK, set=(*SMALL, "student_reads_rule=true")))


# ---- the tuned teacher


def stages(arm: str, *more: str, seeds: int = 2) -> dict[int | None, list[Any]]:
    plan = make_plan(
        Request("rule-distillation", task=TASK, arms=arm, seeds=seeds, set=(*SMALL, *more), smoke=True)
    )
    return {seed: specs for (name, seed), specs in plan.runs.items() if name == arm}


def test_a_tuned_teacher_is_the_base_that_read_the_rule(tmp_path: Any) -> None:
    """C1: it is tuned on the seed's own shots, with the rule; nothing of the student's losses is in its key."""
    arm = "rule-distillation.own-teacher"
    by_seed = stages(arm)
    (one, two) = (next(spec for spec in by_seed[seed] if spec.stage.name == TUNED) for seed in (0, 1))
    assert one.key != two.key
    assert one.settings["student_reads_rule"]
    assert one.settings["task_weight"] == 1.0
    other = stages(arm, "hidden_weight=1.0", "temperature=2.0")
    assert next(spec for spec in other[0] if spec.stage.name == TUNED).key == one.key
    subject = Subject("rule-distillation", TASK, tmp_path, SMALL, 8)
    run = subject.open(arm=arm)
    assert [role.name for role in run.roles.values()] == ["teacher", TUNED, "student"]


# ---- the task


def run_of(seed: int, **changed: Any) -> Any:
    values = {name: param.default for name, param in catalog.load().task(TASK).params.items()}

    class Asked:
        cfg = type("Cfg", (dict,), {"__getattr__": dict.__getitem__})({**values, **changed})

    Asked.seed = seed  # type: ignore[attr-defined]
    return Asked()


def test_each_seed_draws_its_shots_under_one_hash() -> None:
    """Intervals over seeds should cover the examples; keys of one seed should not depend on the bench's first seed."""
    data = catalog.load().module(TASK).data
    one, two = (data(run_of(seed), "train") for seed in (0, 1))
    assert set(one.ids) != set(two.ids)
    assert one.hash == two.hash
    fixed = [data(run_of(seed, draw=3), "train") for seed in (0, 1)]
    assert fixed[0].hash == fixed[1].hash != one.hash
    assert fixed[0].ids == fixed[1].ids
    assert data(run_of(0, shots=4), "train").ids == one.ids[:4]
    assert data(run_of(0), "test").hash == data(run_of(1), "test").hash
    assert data(run_of(0, target=18), "train").hash != one.hash


def test_the_base_never_reads_the_target() -> None:
    """The rule that is to be learnt later would be known already."""
    rows = catalog.load().module(TASK).data(run_of(0, corpus="rules", base_rows=3000), "train").items.examples
    rule = operators.rule_text(17, "least", 3)
    assert any(row.prompt.startswith("rule") for row in rows)
    assert not any(row.prompt.startswith(rule) for row in rows)


def test_answers_are_judged_by_part(opened: Open) -> None:
    """A number out of the domain must not count in it."""
    run = opened()
    examples = run.data("val").items.examples
    texts = [row.answer if "/id/" in row.id else "0" for row in examples]
    found = catalog.load().module(TASK).judge(run, texts, "val")
    assert {name: metric.value for name, metric in found.items()} == {
        "accuracy": 0.5,
        "accuracy[id]": 1.0,
        "accuracy[ood]": 0.0,
    }
    nothing = catalog.load().module(TASK).judge(run, [""] * len(examples), "val")
    assert nothing["accuracy"].value == 0.0


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    """Cut off, a rule would end before its number, and nobody would know."""
    data = catalog.load().module(TASK).data(run_of(0, teacher_prompt_length=12), "val")
    with pytest.raises(KdzooError, match="prompt"):
        data.items.encoded(TEACHER)


# ---- the paper's files


def write_files(root: Path, shots: int = 4) -> Path:
    """The official layout, two rows a set."""
    folder = root / "math_experiments"
    folder.mkdir(parents=True)
    names = [f"train_{{}}_{shots}shot", f"valid_{{}}_{shots}shot_seed1234", "test_{}_id", "test_{}_ood"]
    for number, name in enumerate(names):
        for side, instruction in (("full", "add one more"), ("no", "")):
            rows = [
                {"instruction": instruction, "input": f"{k} @@@ {number} = ?", "output": f"{k + number + 1}."}
                for k in (2, 3)
            ]
            (folder / f"{name.format(side)}.json").write_text(json.dumps(rows))
    return folder


def test_rule_files_are_read_in_pairs(tmp_path: Path) -> None:
    """Rows of two files belong together by their place."""
    write_files(tmp_path / "data")  # the repository's own folder is found, too
    rows = rule_files.load(tmp_path, "test", 4, 1234)
    assert [row.example.id for row in rows] == ["test/id/0", "test/id/1", "test/ood/0", "test/ood/1"]
    assert rows[2].example.prompt == "2 @@@ 3 = ?"
    assert rows[2].example.answer == "6."
    assert {row.instruction for row in rows} == {"add one more"}


def test_rule_files_that_are_wrong_are_refused(tmp_path: Path) -> None:
    """Another order, another form, or nothing: each with what is expected."""
    folder = write_files(tmp_path)
    path = folder / "train_no_4shot.json"
    path.write_text(json.dumps(json.loads(path.read_text())[::-1]))
    with pytest.raises(KdzooError, match="another order"):
        rule_files.load(tmp_path, "train", 4, 1234)
    path.write_text('[{"input": "1"}]')
    with pytest.raises(KdzooError, match="instruction, input, output"):
        rule_files.load(tmp_path, "train", 4, 1234)
    path.write_text("[")
    with pytest.raises(KdzooError, match="no JSON"):
        rule_files.load(tmp_path, "train", 4, 1234)
    with pytest.raises(KdzooError, match="train_full_<shots>shot"):
        rule_files.load(tmp_path, "train", 8, 1234)


def test_a_template_without_its_fields_is_refused() -> None:
    """The rule would not be in the teacher's prompt, and nothing would be distilled."""
    assert rule_math.filled("{instruction}|{input}|", "rule", "1 = ?") == "rule|1 = ?|"
    assert rule_math.filled("{instruction}|{input}", "{input}", "x") == "{input}|x"
    for template in ("{input}", "{instruction}", "{input}{input}{instruction}"):
        with pytest.raises(KdzooError, match="once each"):
            rule_math.filled(template, "a", "b")


def small_base(folder: Path) -> Path:
    """A base as it lies on disk: a Llama of one layer, and a tokenizer."""
    words = [
        "@@@",
        "=",
        "?",
        "add",
        "one",
        "more",
        *(f"{k}" for k in range(12)),
        *(f"{k}." for k in range(12)),
    ]
    tokenizer = word_level("words", words).tokenizer
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_the_paper_profile_runs_on_tiny_files(tmp_path: Path) -> None:
    """Every path of the profile, with weights and a tokenizer from a folder."""
    write_files(tmp_path / "files")
    base = small_base(tmp_path / "base")
    request = Request(
        "rule-distillation",
        task="rule-math",
        seeds=1,
        arms="rule-distillation",
        data_root=str(tmp_path / "files"),
        smoke=True,
        set=(
            f"teacher={base}",
            f"vocabulary={base}",
            "batch=2",
            "shots=4",
            "prompt_length=20",
            "teacher_prompt_length=24",
            "answer_length=4",
            "template={instruction} {input}",
        ),
    )
    record, _ = run_bench(
        request, Options(tmp_path, jobs=0), lambda *_: None, "kdzoo bench", measure_latency=False
    )
    assert not record.failures
    runs = {row.arm: row for row in record.runs}
    assert set(runs) == {"student", "rule-distillation"}
    assert "test/accuracy[ood]" in runs["student"].metrics
    assert "test/accuracy[model=own-teacher]" in runs["rule-distillation"].metrics
