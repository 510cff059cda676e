import subprocess
import sys
from pathlib import Path

import pytest

from launch.config import override
from launch.errors import UsageError
from posttrain.data.tasks import (
    Arithmetic,
    HubDataset,
    Instructions,
    JsonLines,
    ReasoningGym,
    parse_task,
)
from posttrain.recipes.jobs import GRPOJob

SOURCE = """
from posttrain.data.tasks import Arithmetic
class Sums(Arithmetic): pass
def small(): return Arithmetic(largest=2)
ready = Arithmetic(largest=3)
def broken(): raise KeyError("no")
NUMBER = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "tasks_of_a_user.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return "tasks_of_a_user"


def test_parse_task_knows_files_names_and_the_users_own(tmp_path: Path, module: str) -> None:
    file = tmp_path / "gsm8k.jsonl"
    file.write_text('{"question": "a", "answer": "b"}')
    table = tmp_path / "a.parquet"
    table.write_bytes(b"")
    assert parse_task(str(file)) == JsonLines(str(file))
    assert parse_task(str(table)) == HubDataset(str(table))
    assert parse_task(str(tmp_path)) == HubDataset(str(tmp_path))
    assert parse_task("chain_sum") == ReasoningGym("chain_sum")
    assert parse_task("openai/gsm8k:main") == HubDataset("openai/gsm8k", "main")
    assert parse_task("owner/data") == HubDataset("owner/data")
    assert parse_task(" arithmetic ") == Arithmetic()
    assert parse_task("instructions") == Instructions()
    assert type(parse_task(f"{module}:Sums")).__name__ == "Sums"
    assert parse_task(f"{module}:small") == Arithmetic(largest=2)
    assert parse_task(f"{module}:ready") == Arithmetic(largest=3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("chain_sun", "unknown task 'chain_sun'; did you mean chain_sum"),
        ("aritmetic", "did you mean arithmetic"),
        ("", "unknown task ''"),
        ("none.jsonl", r"none\.jsonl: there is no such file"),
        ("folder/none.parquet", "there is no such file"),
        ("tasks_of_a_user:smal", "did you mean small"),
        ("tasks_of_a_user:broken", r"broken\(\) raised KeyError"),
        ("tasks_of_a_user:NUMBER", "is a int without reward, train, heldout"),
        ("no_such_module:task", "no_such_module cannot be imported"),
    ],
)
def test_parse_task_says_what_is_wrong(module: str, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_task(text)


def test_parse_task_imports_nothing_heavy() -> None:
    program = (
        "import sys; from posttrain.data.tasks import parse_task; parse_task('chain_sum');"
        "print([m for m in ('transformers', 'datasets', 'reasoning_gym', 'sympy') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_task_that_is_not_found_is_called_a_task_once() -> None:
    for text in ("no_such_module:mine", "none.jsonl", "chain_sum:mine"):
        with pytest.raises(UsageError, match=r"^task: ") as caught:
            override(GRPOJob(), {"task": text})
        assert str(caught.value).count("task") == 1
