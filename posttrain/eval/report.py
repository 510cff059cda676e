"""What an evaluation shows in a run's report: figures, a table of before and after, samples.

The figures are functions of records (the lines of ``metrics.jsonl``); a metric that was not logged
leaves its panel empty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from posttrain.eval.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from posttrain.eval.run import Evaluation

__all__ = [
    "accuracy_and_length",
    "before_and_after",
    "divergence",
    "reward_parts",
    "samples_beside",
    "share_reasoning",
    "time_budget",
]

Record = Mapping[str, object]


def accuracy_and_length(records: Sequence[Record]) -> Figure:
    """Draw accuracy (of the training samples, and held out) over the length of responses."""
    from launch.curves import Panel, draw_panels, metric_line

    accuracy = [metric_line(records, "reward/accuracy", "while training", colour=0)]
    heldout = metric_line(records, "heldout/accuracy", "held out", colour=1)
    if heldout.values:
        accuracy.append(heldout)
    length = metric_line(records, "length/mean", colour=2)
    return draw_panels(
        [
            Panel(title="Accuracy", lines=accuracy, limits=(0.0, 1.02)),
            Panel(title="Tokens in a response", lines=[length], limits=(0.0, None)),
        ],
        height=1.9,
    )


def reward_parts(records: Sequence[Record]) -> Figure:
    """Draw the reward and each of its parts."""
    from launch.curves import Panel, draw_panels, metric_line

    names = list(dict.fromkeys(name for record in records for name in record))
    parts = [name for name in names if name.startswith("reward/")]
    lines = [
        metric_line(records, name, name.removeprefix("reward/"), colour)
        for colour, name in enumerate(parts)
    ]
    total = metric_line(records, "reward", colour=7)
    return draw_panels(
        [Panel(title="Reward, the weighted sum", lines=[total]), Panel(title="Parts", lines=lines)],
        height=1.9,
    )


def share_reasoning(records: Sequence[Record]) -> Figure:
    """Draw the share of responses that reason, and the share cut off for their length."""
    from launch.curves import Panel, draw_panels, metric_line

    reasoning = metric_line(records, "share/reasoning", colour=0)
    cut = metric_line(records, "length/truncated", colour=6)
    return draw_panels(
        [
            Panel(title="Share that reasons", lines=[reasoning], limits=(0.0, 1.02)),
            Panel(title="Share cut off at the longest length", lines=[cut], limits=(0.0, None)),
        ],
        height=1.9,
    )


def divergence(records: Sequence[Record]) -> Figure:
    """Draw the KL divergence from the reference and the policy's entropy."""
    from launch.curves import Panel, draw_panels, metric_line

    kl, entropy = metric_line(records, "kl", colour=3), metric_line(records, "entropy", colour=4)
    return draw_panels(
        [
            Panel(title="KL divergence, nats a token", lines=[kl], limits=(0.0, None)),
            Panel(title="Entropy, nats a token", lines=[entropy], limits=(0.0, None)),
        ],
        height=1.9,
    )


def time_budget(records: Sequence[Record]) -> Figure:
    """Draw the share of each phase in the time."""
    from launch.curves import draw_time_shares

    return draw_time_shares(records)


def before_and_after(
    summaries: Mapping[str, Mapping[str, float | Interval]],
) -> list[dict[str, object]]:
    """Return a table with a row for each summary, such as before and after a stage.

    Shares become text with their interval, ``0.948 [0.934, 0.962]``; what is not a number, null.

    >>> summary = {"pass@1": Interval(0.3, 0.28, 0.32), "length/mean": 14.21}
    >>> before_and_after({"cold start": summary})
    [{'model': 'cold start', 'pass@1': '0.300 [0.280, 0.320]', 'tokens': 14.2}]
    """
    return [
        {"model": name} | {_COLUMNS.get(key, key): _cell(value) for key, value in summary.items()}
        for name, summary in summaries.items()
    ]


_COLUMNS = {
    "length/mean": "tokens",
    "length/truncated": "cut off",
    "share/reasoning": "reasons",
    "accuracy/reasoning": "right when reasoning",
}


def _cell(value: float | Interval) -> object:
    if isinstance(value, Interval):
        return str(value)
    if not math.isfinite(value):
        return None
    return round(value, 3) if abs(value) < 1.5 else round(value, 1)


def samples_beside(
    evaluations: Mapping[str, Evaluation], questions: Sequence[int]
) -> list[dict[str, object]]:
    """Return rows of completions side by side: a row for each question, a column for each model.

    Args:
        evaluations: Of several models on the same prompts, by the models' names.
        questions: Indices of the prompts to show; the first completion of each is taken.

    Raises:
        ValueError: The evaluations are of different prompts.
    """
    rows = []
    for index in questions:
        shown = {name: e.samples[index][0] for name, e in evaluations.items()}
        if len({(sample.prompt, sample.answer) for sample in shown.values()}) > 1:
            raise ValueError(
                f"question {index} differs between the evaluations: compare models on the same "
                "prompts in the same order"
            )
        first = next(iter(shown.values()))
        row: dict[str, object] = {"prompt": first.prompt, "answer": first.answer}
        for name, sample in shown.items():
            correct = bool(evaluations[name].correct[index, 0])
            row[name] = {
                "text": sample.completion,
                "correct": correct,
                "tokens": len(sample.tokens),
            }
        rows.append(row)
    return rows
