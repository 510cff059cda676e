"""What the stages of R1 did: tables, a figure, and plain words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from launch.runtime import Runtime
from posttrain.eval import mean_with_interval
from posttrain.recipes.exams import Marks, Verdict, verdicts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BEFORE", "compare", "draw_stages", "stage_seconds", "summarise"]

BEFORE: Mapping[str, str] = {
    "1-cold-start": "0-base",
    "2-reasoning-rl": "1-cold-start",
    "4-sft": "2-reasoning-rl",
    "5-all-scenarios-rl": "4-sft",
    "6-distilled-sft": "6-student-base",
    "6-distilled-on-policy": "6-distilled-sft",
    "6-direct-rl": "6-student-base",
}
"""The stage whose model each is compared with."""
STUDENTS = ("6-direct-rl", "6-distilled-on-policy")
"""By reinforcement alone, and by distillation."""


def compare(marks: Mapping[str, Marks]) -> list[Verdict]:
    """Return what each stage did to each subject, against the stage before it."""
    found: list[Verdict] = []
    for stage, before in BEFORE.items():
        if stage in marks and before in marks:
            found += verdicts(stage, marks[before], marks[stage], list(marks[stage]))
    return found


def summarise(marks: Mapping[str, Marks], run: Runtime) -> None:
    """Write tables and figures into the run folder's report."""
    if not run.is_main or not marks:
        return
    found = compare(marks)
    run.note("What the stages did", account(found))
    run.table("Every model on the same held-out problems", standing(marks))
    run.figure("Marks by stage", draw_stages(marks))
    direct, distilled = STUDENTS
    if direct in marks and distilled in marks:
        beside = verdicts(distilled, marks[direct], marks[distilled], list(marks[direct]))
        rows = [_against(verdict, direct) for verdict in beside]
        run.table("Distillation against reinforcement of the same small model", rows)
    if run.output is not None:
        run.table("Time", stage_seconds(run.output))
    run.table("What each stage changed", [verdict.row() for verdict in found])


def standing(marks: Mapping[str, Marks]) -> list[dict[str, object]]:
    """Return a row for each model: its mean in every subject, with intervals."""
    return [
        {"stage": stage, **{subject: str(mean_with_interval(x)) for subject, x in own.items()}}
        for stage, own in marks.items()
    ]


def account(found: list[Verdict]) -> str:
    """Return one paragraph a stage: what rose, what fell, and what did not change measurably."""
    lines = []
    for stage in dict.fromkeys(verdict.stage for verdict in found):
        own = [verdict for verdict in found if verdict.stage == stage]
        parts = []
        for word in ("gain", "loss", "no gain"):
            named = [
                v.subject if word == "no gain" else f"{v.subject} {v.gain.mean:+.3f}"
                for v in own
                if v.gain.verdict == word
            ]
            if named:
                said = {"gain": "gained", "loss": "lost", "no gain": "no gain in"}[word]
                parts.append(f"{said} {', '.join(named)}")
        lines.append(f"{stage}, against {BEFORE[stage]}: {'; '.join(parts)}.")
    lines.append(
        "A difference is called a gain or a loss if its 95% interval over paired questions does "
        "not hold 0."
    )
    return "\n\n".join(lines)


def _against(verdict: Verdict, other: str) -> dict[str, object]:
    row = verdict.row()
    return {
        "subject": row["subject"],
        other: str(verdict.before),
        verdict.stage: row["after"],
        "difference": row["difference"],
        "verdict": {"gain": "distillation is better", "loss": "reinforcement is better"}.get(
            verdict.gain.verdict, "no difference"
        ),
    }


def stage_seconds(output: Path) -> list[dict[str, object]]:
    """Return the seconds that each stage trained or sampled for, from its last record."""
    rows: list[dict[str, object]] = []
    for path in sorted(output.glob("stages/**/metrics.jsonl")):
        last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        name = path.parent.relative_to(output / "stages").as_posix().replace("/stages/", ", ")
        rows.append({"stage": name, "seconds": round(float(last["seconds"]), 1)})
    return rows


def draw_stages(marks: Mapping[str, Marks]) -> Figure:
    """Draw each subject's mean with its interval, stage by stage."""
    from launch.ranges import draw_ranges

    subjects = list(next(iter(marks.values())))
    return draw_ranges(
        list(marks),
        {
            subject: [
                (interval.mean, interval.low, interval.high)
                for interval in (mean_with_interval(own[subject]) for own in marks.values())
            ]
            for subject in subjects
        },
    )
