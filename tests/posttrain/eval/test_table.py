from __future__ import annotations

import csv
import io
import math
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from posttrain.eval import Comparison, Evaluation, Interval, figures
from posttrain.rewards import Sample


def sample(text: str, reason: str = "stop", tokens: int = 4) -> Sample:
    return Sample(
        prompt="?", completion=text, answer="1", tokens=(1,) * tokens, finish_reason=reason
    )


RIGHT, WRONG, SILENT = "<answer>1</answer>", "<answer>2</answer>", "well"


def test_figures_of_hand_worked_samples() -> None:
    found = Evaluation(
        samples=(
            (sample(RIGHT), sample(RIGHT), sample(WRONG)),
            (sample(SILENT, "length", 10), sample(WRONG), sample(RIGHT)),
        ),
        correct=torch.tensor([[True, True, False], [False, False, True]]),
    )
    row = figures(found, k=3)
    assert list(row) == ["avg@3", "maj@3", "pass@3", "tokens", "cut off", "unparseable"]
    # avg (2/3 + 1/3) / 2; majorities 1 and, of 2 and 1 with one vote each, 2: wrong.
    means = [float(row[name]) for name in ("avg@3", "maj@3", "pass@3")]
    assert means == pytest.approx([0.5, 0.5, 1.0], rel=1e-15)
    assert (row["tokens"], row["cut off"], row["unparseable"]) == (5.0, 1 / 6, 1 / 6)
    assert isinstance(row["avg@3"], Interval)
    assert float(figures(found, k=2)["avg@2"]) == 0.5  # (1 + 0) / 2


def test_unparseable_is_blank_where_right_completions_have_no_answer_either() -> None:
    rows = ((sample(SILENT), sample(SILENT)),)
    right = Evaluation(samples=rows, correct=torch.tensor([[True, False]]))
    assert math.isnan(float(figures(right, k=2)["unparseable"]))
    none = Evaluation(samples=rows, correct=torch.tensor([[False, False]]))
    assert figures(none, k=2)["unparseable"] == 1.0


TABLE = Comparison(
    [
        {"model": "a,<b>", "avg@2": Interval(0.5, 0.25, 0.75), "tokens": 1 / 3},
        {"model": "c|d", "tokens": math.nan, "greedy": 1.0},
    ]
)


def test_markdown_aligns_columns_and_escapes_bars() -> None:
    assert TABLE.markdown().splitlines() == [
        "| model | avg@2 | tokens | greedy |",
        "|---|---|---|---|",
        "| a,<b> | 0.500 [0.250, 0.750] | 0.333 | - |",
        "| c\\|d | - | - | 1.000 |",
    ]


def test_csv_keeps_full_precision_and_an_interval_in_three_columns() -> None:
    rows = list(csv.DictReader(io.StringIO(TABLE.csv())))
    assert rows[0] == {
        "model": "a,<b>",
        "avg@2": "0.5",
        "avg@2 low": "0.25",
        "avg@2 high": "0.75",
        "tokens": repr(1 / 3),
        "greedy": "",
    }
    assert (rows[1]["avg@2 high"], rows[1]["tokens"], rows[1]["greedy"]) == ("", "", "1.0")


def test_html_is_a_table_with_escaped_cells() -> None:
    page = TABLE.html()
    body = page[page.index("<table>") : page.index("</html>")]
    table = ElementTree.fromstring(body)
    cells = [[cell.text for cell in row] for row in table.iter("tr")]
    assert cells[0] == ["model", "avg@2", "tokens", "greedy"]
    assert cells[1] == ["a,<b>", "0.500 [0.250, 0.750]", "0.333", "-"]


def test_table_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="without rows"):
        Comparison([])
