from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launch.runtime import Runtime
from posttrain.data.tasks import Arithmetic
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.recipes.evaluator import Evaluator
from posttrain.recipes.exams import Exam, examine, verdicts
from posttrain.rewards import Sample
from posttrain.rollout import Sampling

EVALUATOR = Evaluator(group_size=2, sampling=Sampling(max_tokens=3), greedy=False)


def length(samples: Sequence[Sample]) -> list[float]:
    return [float(len(sample.tokens)) for sample in samples]


def even(samples: Sequence[Sample]) -> list[float]:
    return [float(sum(sample.tokens) % 2) for sample in samples]


EXAMS = {"sums": Exam(task=Arithmetic(reward=even), also={"tokens": length})}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    tokenizer = train_tokenizer([f"{a}+{b}={a + b}" for a in range(9) for b in range(9)])
    return tiny_model(tokenizer, layers=1, width=16, heads=2)


def test_marks_are_means_over_a_questions_completions(lm: LanguageModel) -> None:
    with Runtime() as run:
        marks = examine(EXAMS, 5, EVALUATOR, lm, run)
        judged = EVALUATOR.judge(lm, Arithmetic().heldout()[:5], even, run)
    samples = [sample for row in judged.samples for sample in row]
    rewards = torch.tensor(even(samples)).view(5, 2).double()
    torch.testing.assert_close(marks["sums"], rewards.mean(1))
    torch.testing.assert_close(
        marks["tokens"], torch.tensor(length(samples)).view(5, 2).double().mean(1)
    )


def test_marks_are_kept_and_only_for_the_same_weights(lm: LanguageModel, tmp_path: Path) -> None:
    with Runtime(output=tmp_path / "run") as run:
        first = examine(EXAMS, 5, EVALUATOR, lm, run)
        file = tmp_path / "run" / "marks.json"
        kept = json.loads(file.read_text())
        kept["marks"]["sums"] = [9.0] * 5
        file.write_text(json.dumps(kept))
        assert examine(EXAMS, 5, EVALUATOR, lm, run)["sums"].tolist() == [9.0] * 5
        other = tiny_model(lm.tokenizer, layers=1, width=16, heads=2, seed=1)
        assert examine(EXAMS, 5, EVALUATOR, other, run)["sums"].tolist() != [9.0] * 5
        again = examine(EXAMS, 5, EVALUATOR, replace(lm), run)
    torch.testing.assert_close(again["tokens"], first["tokens"])


def test_a_gain_is_one_only_if_its_interval_does_not_hold_0() -> None:
    before = {"a": torch.zeros(8), "b": torch.tensor([0.0, 1.0] * 4), "c": torch.ones(8)}
    after = {"a": torch.full((8,), 0.5), "b": torch.tensor([1.0, 0.0] * 4), "c": torch.zeros(8)}
    found = verdicts("then", before, after, ["a", "b", "c"])
    assert [verdict.row()["verdict"] for verdict in found] == ["gain", "no gain", "loss"]
    assert found[0].row()["difference"] == "0.500 [0.500, 0.500]"
    assert found[1].gain.mean == 0.0
