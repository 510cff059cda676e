from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from posttrain.rewards import CodeReward, CodeTests, Reward, Sample
from posttrain.rewards.code import extract_code
from posttrain.rewards.sandbox import Limits

ADD = "def add(a, b):\n    return a + b\n"
SUM = "print(sum(map(int, input().split())))\n"
ADDS = CodeTests(checks="assert add(1, 2) == 3\nassert add(-1, 1) == 0").to_answer()
SUMS = CodeTests(cases=(("1 2\n", "3\n"), ("4 -5\n", "-1\n"))).to_answer()


def sample(source: str, answer: str = SUMS) -> Sample:
    return Sample(prompt="", completion=f"So:\n```python\n{source}```\n", answer=answer)


@pytest.fixture(scope="module")
def reward() -> CodeReward:
    return CodeReward(limits=Limits(seconds=5.0, cpu_seconds=1))


def paid(reward: Reward, samples: Sequence[Sample]) -> list[float]:
    return reward(samples).tolist()


def test_only_programs_that_pass_all_tests_are_paid(reward: CodeReward) -> None:
    both = CodeTests(cases=(("1 1", "2"),), checks="assert f() == 7").to_answer()
    main = f"def f(): return 7\nif __name__ == '__main__':\n    {SUM}"
    rows = [
        (sample(SUM), 1.0),
        (sample("input(); print(3)\n"), 0.0),  # right in the first case alone
        (sample(SUM + "raise ValueError\n"), 0.0),  # prints it, then fails
        (sample(SUM + "raise SystemExit\n"), 1.0),
        (sample(SUM + "exit(1)\n"), 0.0),
        (sample("def (:\n"), 0.0),
        (sample(ADD, ADDS), 1.0),
        (sample(ADD.replace("+", "-"), ADDS), 0.0),
        (sample(ADD + "raise SystemExit\n", ADDS), 0.0),  # never comes to the checks
        (sample("import os\nos._exit(0)\n", ADDS), 0.0),
        (sample(main, both), 1.0),
        (sample(main.replace("7", "8"), both), 0.0),
        (sample(main.replace("sum", "max"), both), 0.0),
        (Sample(prompt="", completion="no program", answer=SUMS), 0.0),
    ]
    found = reward([row for row, _ in rows])
    assert found.tolist() == [wanted for _, wanted in rows]
    assert str(found.dtype) == "torch.float32"
    assert reward([]).shape == (0,)


@pytest.mark.parametrize(
    ("printed", "equal"),
    [("3", True), ("3\n\n", True), ("3  \r\n", True), (" 3", False), ("3\n4", False), ("", False)],
)
def test_spaces_at_the_ends_of_lines_do_not_count(
    reward: CodeReward, printed: str, equal: bool
) -> None:
    answer = CodeTests(cases=(("", "3\n"),)).to_answer()
    assert paid(reward, [sample(f"print({printed!r}, end='')\n", answer)]) == [float(equal)]


def test_a_program_that_hangs_counts_once_and_is_not_run_on_its_other_cases() -> None:
    quick = CodeReward(limits=Limits(seconds=0.3))
    answer = CodeTests(cases=(("", "3"),) * 50).to_answer()
    hangs = sample("while True: pass\n", answer)
    assert paid(quick, [hangs, hangs, sample("print(3)\n", answer)]) == [0.0, 0.0, 1.0]
    assert quick.timeouts == 2  # both samples, though the program ran once


def test_programs_leave_nothing_behind_for_the_next(reward: CodeReward) -> None:
    leaves = "open('left', 'w').write('x'); import builtins; builtins.len = lambda x: 3\n"
    looks = "import os; print(len('ab') + len(os.listdir('.')))\n"
    answer = CodeTests(cases=(("", "2"),)).to_answer()
    assert paid(reward, [sample(leaves, answer), sample(looks, answer)])[1] == 1.0
    assert paid(reward, [sample(looks, answer)]) == [1.0]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na\n```\n```\nb\n```\n", "b\n"),
        ("```python\na\n```\n```text\nb\n```\n", "a\n"),
        ("```python\na\n```\n```python\nb\n", "a\n"),  # what is not closed is not there
        ("<think>\n```python\na\n```\n</think>\nno", None),
        ("<answer>\n```py\na\n```\n</answer>", "a\n"),
        ("<answer>```python\na\n```</answer>", "a\n"),
        ("<answer>a = 1\nb</answer> c", "a = 1\nb"),
        ("<answer>```c\na\n```</answer>", None),
        ("````python\n```\na\n```\n````\n", "```\na\n```\n"),
        ("  ```Python\n  a\n  ```", "  a\n"),
        ("a = 1", None),
        ("", None),
    ],
)
def test_program_is_the_last_closed_block_of_python(text: str, code: str | None) -> None:
    assert extract_code(text) == code


def test_long_hostile_text_is_read_in_linear_time() -> None:
    assert extract_code("`" * 200_000) is None
    assert extract_code("```\n" * 50_001) == ""
    assert extract_code("<answer>" * 50_000) is None


@pytest.mark.parametrize(
    "answer",
    ["", "3", "[]", "{}", '{"cases": [["1", "2"]]}', '{"cases": [{"input": 1, "output": "2"}]}',
     '{"check": "assert True"}', '{"checks": 3}', '{"checks": " "}'],
)  # fmt: skip
def test_answer_without_tests_is_refused_by_its_row(reward: CodeReward, answer: str) -> None:
    with pytest.raises(ValueError, match="sample 1: "):
        reward([sample(SUM), sample(SUM, answer)])


def test_tests_survive_json() -> None:
    tests = CodeTests(cases=(("ä\n", "\t####\n"), ("", "")), checks='assert f("\\n") == "é"')
    assert CodeTests.from_answer(tests.to_answer()) == tests
    assert CodeTests.from_answer(json.dumps({"checks": "assert 1"})) == CodeTests(checks="assert 1")
