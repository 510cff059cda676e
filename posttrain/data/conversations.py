"""Conversations to learn from, in a file of one JSON object a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.errors import UsageError
from posttrain.data.chat import check_messages
from posttrain.data.json_lines import read_json_lines

__all__ = ["load_conversations"]


def load_conversations(path: str | Path) -> list[list[dict[str, str]]]:
    """Return the chats of a file: lists of messages with ``role`` and ``content``.

    A line is ``{"messages": [...]}``, or ``{"prompt": ..., "completion": ...}`` with text or
    messages in each: text is a user's and the assistant's message. Other keys are ignored.

    Raises:
        UsageError: A line is not of this form, or holds no word of the assistant; the error names
            file and line.
    """
    chats = []
    for number, row in read_json_lines(path):
        try:
            messages = _messages(row)
            check_messages(messages)
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: {error}") from error
        if all(message["role"] != "assistant" for message in messages):
            raise UsageError(
                f"{path}, line {number}: no message of the assistant, so there is nothing to learn"
            )
        chats.append(messages)
    return chats


def _messages(row: dict[str, Any]) -> list[dict[str, str]]:
    if "messages" in row:
        return _as_messages(row["messages"], "messages", role=None)
    if "prompt" in row and "completion" in row:
        return [
            *_as_messages(row["prompt"], "prompt", role="user"),
            *_as_messages(row["completion"], "completion", role="assistant"),
        ]
    keys = ", ".join(row) or "none"
    raise ValueError(f"expected the key messages, or prompt and completion (keys: {keys})")


def _as_messages(value: object, key: str, *, role: str | None) -> list[dict[str, str]]:
    if role is not None and isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        wanted = "a list of messages" if role is None else "text or a list of messages"
        raise ValueError(f"{key} is {type(value).__name__}, expected {wanted}")
    return value
