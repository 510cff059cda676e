"""Rewards by name, for the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from launch.conversion import load_object
from launch.errors import UsageError
from launch.spelling import nearest
from posttrain.rewards.answer import AnswerReward
from posttrain.rewards.base import Reward
from posttrain.rewards.code import CodeReward
from posttrain.rewards.format import FormatReward
from posttrain.rewards.model import ModelReward

__all__ = ["parse_reward"]


def parse_reward(text: str) -> Reward:
    """Return the reward that ``text`` names: ``answer``, ``format``, ``code`` or ``module:name``.

    ``module:name`` is a function of samples, an object that can be called, or a class that needs
    no arguments. A folder is that of a reward model.

    >>> parse_reward("answer")
    AnswerReward(seconds=5.0)

    Raises:
        UsageError: There is no such name, or it is no reward.
    """
    text = text.strip()
    own: dict[str, Callable[[], Reward]] = {
        "answer": AnswerReward,
        "format": FormatReward,
        "code": CodeReward,
    }
    if text in own:
        return own[text]()
    if text and Path(text).is_dir():
        return ModelReward(text)
    if ":" not in text:
        near = nearest(text, own)
        hint = f"did you mean {near}?" if near else "expected answer, format, code or module:name"
        raise UsageError(f"unknown reward {text!r}: {hint}")
    reward = load_object(text, "")
    if isinstance(reward, type):
        try:
            reward = reward()
        except Exception as error:  # a user's class may fail in any way
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UsageError(f"{text}() raised {reason}") from error
    if not callable(reward):
        raise UsageError(
            f"{text} is a {type(reward).__name__}, which cannot be called: expected a "
            "function that takes samples and returns one number for each"
        )
    return reward
