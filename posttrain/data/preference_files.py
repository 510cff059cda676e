"""Preferences in a file of one JSON object a line: a prompt, what was chosen and what rejected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.errors import UsageError
from posttrain.data.chat import check_messages, encode_turns
from posttrain.data.json_lines import field_of, read_json_lines
from posttrain.data.preferences import Pair, PairWithMargin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Preference", "encode_pairs", "load_preferences"]

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Preference:
    """A chat up to the assistant's turn, and two ways to go on."""

    prompt: list[Message]
    chosen: Message
    rejected: Message
    margin: float = 0.0
    """By how much a reward model has to prefer ``chosen``; other objectives do not read it."""


def load_preferences(path: str | Path) -> list[Preference]:
    """Return the preferences of a file.

    A line is ``{"prompt": ..., "chosen": ..., "rejected": ...}``, with ``messages`` as another name
    of ``prompt``. The prompt is text, which a user says, or a list of messages. The completions are
    text, or a list of one message of the assistant; the prompt's messages may stand before it.
    ``margin``, a number of 0 or more, may say by how much the chosen one is better. Other keys are
    ignored.

    Raises:
        UsageError: A line is not of this form; the error names file and line.
    """
    preferences = []
    for number, row in read_json_lines(path):
        where = f"{path}, line {number}"
        try:
            preferences.append(_preference(row, where))
        except ValueError as error:
            named = isinstance(error, UsageError)
            raise UsageError(str(error) if named else f"{where}: {error}") from error
    return preferences


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, preferences: Sequence[Preference]
) -> list[Pair]:
    """Return each preference as documents of the same prompt, in which the completions count.

    Raises:
        UsageError: The chat template does not take a chat, or writes it so that its last turn
            cannot be told apart.
    """
    pairs = []
    for index, preference in enumerate(preferences):
        turns = (preference.chosen, preference.rejected)
        try:
            chosen, rejected = (
                encode_turns(tokenizer, [*preference.prompt, turn])[-1] for turn in turns
            )
        except ValueError as error:
            raise UsageError(f"preference {index}: {error}") from error
        margin = preference.margin
        pairs.append(PairWithMargin(chosen, rejected, margin) if margin else (chosen, rejected))
    return pairs


def _preference(row: dict[str, Any], where: str) -> Preference:
    key = "messages" if "messages" in row else "prompt"
    value = field_of(row, key, where)
    prompt = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(prompt, list):
        raise ValueError(f"{key} is {type(value).__name__}, expected text or a list of messages")
    check_messages(prompt)
    chosen, rejected = (_completion(row, name, prompt, where) for name in ("chosen", "rejected"))
    return Preference(prompt, chosen, rejected, _margin(row))


def _margin(row: dict[str, Any]) -> float:
    margin = row.get("margin", 0.0)
    number = isinstance(margin, int | float) and not isinstance(margin, bool)
    if not number or not 0 <= margin < math.inf:
        raise ValueError(f"margin is {margin!r}, expected a finite number of 0 or more")
    return float(margin)


def _completion(row: dict[str, Any], key: str, prompt: list[Message], where: str) -> Message:
    value = field_of(row, key, where)
    turns = [{"role": "assistant", "content": value}] if isinstance(value, str) else value
    if not isinstance(turns, list):
        raise ValueError(f"{key} is {type(value).__name__}, expected text or a list of messages")
    if turns[:-1] == prompt:  # the whole chat, as some data sets write it
        turns = turns[-1:]
    try:
        check_messages(turns)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in turns)
        raise ValueError(f"{key} has messages of {roles}, expected one of the assistant")
    if not turns[0]["content"].strip():
        raise ValueError(f"{key} is empty, so there is nothing to compare")
    return turns[0]
