from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.errors import UsageError
from posttrain.data.tasks import CodeProblems
from posttrain.rewards import CodeReward, CodeTests, Sample
from posttrain.rewards.sandbox import Limits

ROWS = [
    {
        "question": f"Add {i} to a number.",
        "tests": {"cases": [{"input": "1", "output": str(i + 1)}]},
    }
    for i in range(20)
]


def written(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_problems_are_asked_and_their_tests_are_hidden(tmp_path: Path) -> None:
    task = CodeProblems(written(tmp_path / "problems.jsonl", ROWS), form="text", system=None)
    assert [p.text for p in task.train()] == [row["question"] for row in ROWS]
    assert CodeTests.from_answer(task.train()[2].answer) == CodeTests(cases=(("1", "3"),))
    assert task.heldout() == []
    assert isinstance(task.reward, CodeReward)


def test_heldout_problems_are_not_trained_on(tmp_path: Path) -> None:
    task = CodeProblems(written(tmp_path / "problems.jsonl", ROWS), heldout_share=0.4)
    parts = [{p.answer for p in part} for part in (task.train(), task.heldout())]
    assert parts[0] | parts[1] == {p.answer for p in CodeProblems(task.path).train()}
    assert not parts[0] & parts[1]
    assert parts[1]


def test_reward_runs_what_the_model_wrote(tmp_path: Path) -> None:
    path = written(tmp_path / "problems.jsonl", ROWS)
    task = CodeProblems(path, reward=CodeReward(limits=Limits(seconds=5.0)))
    completion = "<think>Easy.</think>\n```python\nprint(int(input()) + 4)\n```"
    samples = [
        Sample(prompt="", completion=completion, answer=prompt.answer)
        for prompt in task.train()[3:5]
    ]
    assert task.reward(samples).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?"}, "line 2: there is no 'tests'"),
        ({"question": " ", "tests": {"checks": "assert 1"}}, "line 2: 'question' is ' '"),
        ({"question": "?", "tests": {}}, "line 2: .*without tests every program passes"),
        ({"question": "?", "tests": [1]}, "line 2: .* are no tests"),
    ],
)
def test_line_that_is_not_as_declared_is_named(
    tmp_path: Path, row: dict[str, object], message: str
) -> None:
    task = CodeProblems(written(tmp_path / "problems.jsonl", [ROWS[0], row]))
    with pytest.raises(UsageError, match=message):
        task.train()


def test_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"heldout_share=1\.0"):
        CodeProblems("x", heldout_share=1.0)
    with pytest.raises(ValueError, match="form='prose'"):
        CodeProblems("x", form="prose")  # type: ignore[arg-type]  # wrong on purpose
