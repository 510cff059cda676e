"""One table over several models and tasks, as Markdown, CSV and HTML."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posttrain.eval.intervals import Interval, mean_with_interval
from posttrain.eval.pass_at_k import avg_at_k
from posttrain.eval.run import Evaluation

__all__ = ["Comparison", "figures"]

Cell = str | float | Interval


def figures(found: Evaluation, *, k: int, seed: int = 0) -> dict[str, float | Interval]:
    """Return the figures of a row: those of ``summary`` that compare models, and two more.

    ``avg@k``, ``maj@k``, ``pass@k`` and ``greedy`` with their intervals over questions, tokens of
    a completion, and the shares of completions cut off and ``unparseable``, which have no answer
    (NaN for a task whose right completions have none either).

    Args:
        found: What was drawn and judged.
        k: Of avg@k, maj@k and pass@k.
        seed: Of the bootstrap.
    """
    summary = found.summary(k=k, seed=seed)
    shares = {f"avg@{k}": mean_with_interval(avg_at_k(found.correct, k), seed=seed)}
    judged = {
        name: summary[name] for name in (f"maj@{k}", f"pass@{k}", "greedy") if name in summary
    }
    missing = found.unparseable
    silent = bool(found.correct.any()) and bool(missing.all())
    return {
        **shares,
        **judged,
        "tokens": float(summary["length/mean"]),
        "cut off": float(summary["length/truncated"]),
        "unparseable": math.nan if silent else missing.double().mean().item(),
    }


@dataclass(frozen=True, slots=True)
class Comparison:
    r"""Rows of figures. The columns are those of all rows, in the order they are first met.

    >>> table = Comparison([{"model": "a|b", "pass@1": Interval(0.5, 0.25, 0.75), "tokens": 7.0}])
    >>> print(table.markdown())
    | model | pass@1 | tokens |
    |---|---|---|
    | a\|b | 0.500 [0.250, 0.750] | 7.000 |
    >>> print(table.csv())
    model,pass@1,pass@1 low,pass@1 high,tokens
    a|b,0.5,0.25,0.75,7.0
    """

    rows: Sequence[Mapping[str, Cell]]

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("a comparison without rows: evaluate at least one model on a task")

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def texts(self) -> list[dict[str, str]]:
        """Return the rows as text to read; what is missing, or is no number, is ``-``."""
        return [{name: _text(row.get(name)) for name in self.columns} for row in self.rows]

    def markdown(self) -> str:
        """Return a Markdown table; its last line is not ended."""
        lines = [self.columns, ["---"] * len(self.columns)]
        lines += [[row[name] for name in self.columns] for row in self.texts()]
        escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
        table = ["| " + " | ".join(line) + " |" for line in escaped]
        table[1] = "|" + "---|" * len(self.columns)
        return "\n".join(table)

    def csv(self) -> str:
        """Return comma-separated values, in full precision, an interval in three columns."""
        wide = {name for row in self.rows for name in row if isinstance(row[name], Interval)}
        parts = {n: [n, f"{n} low", f"{n} high"] if n in wide else [n] for n in self.columns}
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([part for name in self.columns for part in parts[name]])
        for row in self.rows:
            cells: list[str | float] = []
            for name in self.columns:
                cells += _values(row.get(name), len(parts[name]))
            writer.writerow(cells)
        return file.getvalue().removesuffix("\n")

    def html(self) -> str:
        """Return a page of its own with the table."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "\n".join(
            "<tr>"
            + "".join(f"<td>{html.escape(row[name])}</td>" for name in self.columns)
            + "</tr>"
            for row in self.texts()
        )
        return (
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Evaluation</title>\n'
            "<style>body{font-family:sans-serif}table{border-collapse:collapse}"
            "td,th{border:1px solid #bbb;padding:.3em .6em;text-align:left}</style>\n"
            f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</html>"
        )


def _text(cell: Cell | None) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _values(cell: Cell | None, count: int) -> list[str | float]:
    """Return a cell's values for ``count`` columns."""
    if isinstance(cell, Interval):
        return [cell.mean, cell.low, cell.high]
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return [""] * count
    return [cell] + [""] * (count - 1)
