import json
from pathlib import Path
from typing import Any

import pytest

from launch.errors import UsageError
from posttrain.data.tasks import JsonLines
from posttrain.data.tasks.asking import REASONING


def written(file: Path, *rows: Any) -> str:  # noqa: ANN401 - right and wrong ones
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(file)


def numbered(file: Path, count: int) -> str:
    return written(file, *({"question": f"{i} + 1", "answer": i + 1} for i in range(count)))


def test_gsm8k_lines_become_chats_with_the_final_answer(tmp_path: Path) -> None:
    path = written(
        tmp_path / "gsm8k.jsonl",
        {"question": "6 boxes of 7?", "answer": "6 * 7 = <<6*7=42>>42\n#### 42"},
        {"question": "1000 - 1?", "answer": 999},
    )
    task = JsonLines(path)
    first, second = task.train()
    assert first.messages == (
        {"role": "system", "content": REASONING},
        {"role": "user", "content": "6 boxes of 7?"},
    )
    assert (first.answer, second.answer) == ("42", "999")
    assert second.metadata == {"file": "gsm8k.jsonl", "line": 2}
    assert task.heldout() == []


def test_keys_and_the_text_asked_can_be_chosen(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", {"problem": "{x} + 1", "level": 3, "solution": 0.5})
    task = JsonLines(
        path,
        question="problem",
        answer="solution",
        asked="({level}) {problem}\nAnswer:",
        system=None,
        form="text",
    )
    (prompt,) = task.train()
    assert prompt.text == "(3) {x} + 1\nAnswer:"
    assert prompt.answer == "0.5"


def test_a_share_is_held_out_and_stays_so_when_the_file_grows(tmp_path: Path) -> None:
    def split(count: int) -> tuple[set[str], set[str]]:
        task = JsonLines(
            numbered(tmp_path / "a.jsonl", count), heldout_share=0.25, system=None, form="text"
        )
        train, heldout = ([p.text or "" for p in part] for part in (task.train(), task.heldout()))
        assert len(train) + len(heldout) == count
        return set(train), set(heldout)

    train, heldout = split(200)
    assert 30 < len(heldout) < 70
    assert not train & heldout
    grown_train, grown_heldout = split(300)
    assert train < grown_train
    assert heldout < grown_heldout


def test_questions_of_the_heldout_file_are_taken_out_of_training(tmp_path: Path) -> None:
    task = JsonLines(
        numbered(tmp_path / "a.jsonl", 5),
        heldout_path=numbered(tmp_path / "b.jsonl", 2),
        system=None,
        form="text",
    )
    assert [p.text for p in task.train()] == ["2 + 1", "3 + 1", "4 + 1"]
    assert [p.text for p in task.heldout()] == ["0 + 1", "1 + 1"]
    nothing = JsonLines(task.path, heldout_path=task.path)
    with pytest.raises(UsageError, match="all 5 questions are held out"):
        nothing.train()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"question": "a", "answer": ', "not JSON"),
        ({"question": "a"}, "there is no 'answer'"),
        ({"Question": "a", "answer": "b"}, "there is no 'question'; did you mean Question"),
        ({"question": " ", "answer": "b"}, "'question' is ' ', expected a question"),
        ({"question": 1, "answer": "b"}, "'question' is 1, expected a question"),
        ({"question": "a", "answer": None}, "'answer' is null, expected text or a number"),
        ({"question": "a", "answer": True}, "'answer' is true, expected text or a number"),
        ({"question": "a", "answer": "so ####"}, "'answer' is blank"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, row: Any, said: str) -> None:  # noqa: ANN401 - wrong ones
    path = written(tmp_path / "a.jsonl", {"question": "a", "answer": "b"}, row)
    with pytest.raises(UsageError, match=rf"a\.jsonl, line 2: {said}"):
        JsonLines(path).train()


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="heldout_share=1"):
        JsonLines("a.jsonl", heldout_share=1.0)
    with pytest.raises(ValueError, match="not both"):
        JsonLines("a.jsonl", heldout_share=0.5, heldout_path="b.jsonl")
    with pytest.raises(ValueError, match="form='raw'"):
        JsonLines("a.jsonl", form="raw")  # type: ignore[arg-type]  # wrong on purpose
