import json
from pathlib import Path
from typing import Any

import pytest

from launch.errors import UsageError
from posttrain.data.conversations import load_conversations

USER, ASSISTANT = {"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}


def written(path: Path, *rows: Any) -> Path:  # noqa: ANN401 - right and wrong ones
    file = path / "chat.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file


def test_load_conversations_reads_every_form(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        {"messages": [USER, ASSISTANT], "source": "mine"},
        "",
        {"prompt": "1+1", "completion": "2"},
        {"prompt": [USER], "completion": [ASSISTANT]},
    )
    assert load_conversations(file) == [[USER, ASSISTANT]] * 3


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "list in place of an object"),
        ({"text": "a"}, r"expected the key messages, or prompt and completion \(keys: text\)"),
        ({"prompt": "a"}, "expected the key messages"),
        ({"messages": "a"}, "messages is str, expected a list of messages"),
        ({"prompt": 1, "completion": "a"}, "prompt is int, expected text or a list"),
        ({"messages": []}, "a chat without messages"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "message 0 has role 'bot'"),
        ({"messages": [USER]}, "no message of the assistant"),
    ],
)
def test_load_conversations_names_file_and_line(tmp_path: Path, row: Any, said: str) -> None:  # noqa: ANN401 - wrong ones
    file = written(tmp_path, {"messages": [USER, ASSISTANT]}, row)
    with pytest.raises(UsageError, match=rf"chat\.jsonl, line 2: {said}"):
        load_conversations(file)
