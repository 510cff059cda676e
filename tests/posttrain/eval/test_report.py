import math

import pytest
import torch

from launch.curves import svg
from posttrain.eval import Evaluation, Interval, report
from posttrain.rewards.base import Sample

RECORDS = [
    {
        "step": step,
        "reward": 0.5 * step,
        "reward/accuracy": 0.1 * step,
        "reward/format": 0.2 * step,
        "length/mean": 10.0 + step,
        "length/truncated": 0.0,
        "share/reasoning": 0.3 * step,
        "kl": 0.01 * step,
        "entropy": 1.0 / step,
        "seconds/generate": 1.0,
        **({"heldout/accuracy": 0.15} if step == 2 else {}),
    }
    for step in (1, 2, 3)
]


def drawn(figure: object) -> list[list[tuple[str, list[float]]]]:
    """Return label and values of the lines of each panel, the dots at their ends left out."""
    return [
        [
            (str(line.get_label()), list(line.get_ydata()))
            for line in axes.lines
            if not str(line.get_label()).startswith("_")
        ]
        for axes in figure.axes  # type: ignore[attr-defined]
    ]


def test_accuracy_stands_over_length() -> None:
    accuracy, length = drawn(report.accuracy_and_length(RECORDS))
    assert [label for label, _ in accuracy] == ["while training", "held out"]
    assert accuracy[0][1] == pytest.approx([0.1, 0.2, 0.3])
    assert accuracy[1][1] == [0.15]
    assert length == [("length/mean", [11.0, 12.0, 13.0])]


def test_reward_parts_are_those_that_were_logged() -> None:
    total, parts = drawn(report.reward_parts(RECORDS))
    assert total == [("reward", [0.5, 1.0, 1.5])]
    assert [label for label, _ in parts] == ["accuracy", "format"]


def test_share_that_reasons_and_divergence() -> None:
    reasoning, cut = drawn(report.share_reasoning(RECORDS))
    assert reasoning[0][1] == pytest.approx([0.3, 0.6, 0.9])
    assert cut[0][1] == [0.0, 0.0, 0.0]
    kl, entropy = drawn(report.divergence(RECORDS))
    assert kl[0][1] == pytest.approx([0.01, 0.02, 0.03])
    assert entropy[0][1] == pytest.approx([1.0, 0.5, 1 / 3])


@pytest.mark.parametrize(
    "draw",
    [
        report.accuracy_and_length,
        report.reward_parts,
        report.share_reasoning,
        report.divergence,
        report.time_budget,
    ],
)
def test_figures_of_runs_that_logged_nothing_are_empty(draw: object) -> None:
    assert "<svg" in svg(draw([]))  # type: ignore[operator]
    assert "<svg" in svg(draw([{"step": 1, "loss": 0.1}]))  # type: ignore[operator]


def test_before_and_after_is_a_row_a_summary_that_json_can_hold() -> None:
    summaries = {
        "before": {"pass@1": Interval(0.3, 0.25, 0.35), "accuracy/reasoning": math.nan},
        "after": {"pass@1": Interval(0.95, 0.93, 0.97), "accuracy/reasoning": 0.9512},
    }
    assert report.before_and_after(summaries) == [
        {"model": "before", "pass@1": "0.300 [0.250, 0.350]", "right when reasoning": None},
        {"model": "after", "pass@1": "0.950 [0.930, 0.970]", "right when reasoning": 0.951},
    ]


def evaluation(*texts: str, correct: bool, question: str = "1+1?") -> Evaluation:
    samples = tuple(
        (Sample(prompt=question, completion=text, answer="2", tokens=(1, 2)),) for text in texts
    )
    return Evaluation(samples=samples, correct=torch.tensor([[correct]] * len(texts)))


def test_samples_stand_beside_each_other_by_model() -> None:
    models = {
        "before": evaluation("a", "b", correct=False),
        "after": evaluation("c", "d", correct=True),
    }
    assert report.samples_beside(models, [1]) == [
        {
            "prompt": "1+1?",
            "answer": "2",
            "before": {"text": "b", "correct": False, "tokens": 2},
            "after": {"text": "d", "correct": True, "tokens": 2},
        }
    ]


def test_samples_of_different_questions_are_not_compared() -> None:
    models = {
        "before": evaluation("a", correct=False),
        "after": evaluation("b", correct=True, question="2+2?"),
    }
    with pytest.raises(ValueError, match="question 0 differs between the evaluations"):
        report.samples_beside(models, [0])
