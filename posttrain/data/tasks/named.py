"""Tasks by name, for the command line."""

from __future__ import annotations

import re
from pathlib import Path

from launch.conversion import load_object
from launch.errors import UsageError
from launch.spelling import did_you_mean
from posttrain.data.tasks.arithmetic import Arithmetic
from posttrain.data.tasks.base import Task
from posttrain.data.tasks.hub import HubDataset
from posttrain.data.tasks.instructions import Instructions
from posttrain.data.tasks.jsonl import JsonLines
from posttrain.data.tasks.reasoning_gym import ReasoningGym, gym_names

__all__ = ["parse_task"]

_OBJECT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_DATA = (".parquet", ".csv", ".arrow", ".json")


def parse_task(text: str) -> Task:
    """Return the task that ``text`` names.

    - ``problems.jsonl``: ``JsonLines``
    - a ``.parquet``, ``.csv``, ``.arrow`` or ``.json`` file, or a folder of them: ``HubDataset``
    - ``chain_sum`` or another of reasoning-gym's names: ``ReasoningGym``
    - ``openai/gsm8k:main``, a data set on the hub and its configuration: ``HubDataset``
    - ``arithmetic``: ``Arithmetic``; ``instructions``: ``Instructions``
    - ``my_module:my_task``: a task, or a class or function that makes one without arguments

    >>> parse_task("arithmetic").heldout()[0].text
    '0+1='

    Raises:
        UsageError: There is no such file or name; the nearest name is suggested.
    """
    text = text.strip()
    path = Path(text)
    if text.endswith(".jsonl") or (path.is_file() and path.suffix not in _DATA):
        if not path.is_file():
            raise UsageError(f"{text}: there is no such file")
        return JsonLines(text)
    if text and path.exists():
        return HubDataset(text)
    if text.endswith(_DATA):
        raise UsageError(f"{text}: there is no such file")
    if _OBJECT.fullmatch(text):
        return _loaded(text)
    if text == "arithmetic":
        return Arithmetic()
    if text == "instructions":
        return Instructions()
    if text in gym_names():
        return ReasoningGym(text)
    if _HUB.fullmatch(text):
        name, _, config = text.partition(":")
        return HubDataset(name, config or None)
    near = did_you_mean(text, ["arithmetic", "instructions", *sorted(gym_names())])
    raise UsageError(
        f"unknown task {text!r}{near}"
        + ("" if near else ": expected a file, a name of reasoning-gym, OWNER/NAME or module:name")
    )


def _loaded(text: str) -> Task:
    task = load_object(text, "")
    if isinstance(task, type) or (callable(task) and not hasattr(task, "train")):
        try:
            task = task()
        except Exception as error:  # a user's code may fail in any way
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UsageError(f"{text}() raised {reason}") from error
    missing = [name for name in ("reward", "train", "heldout") if not hasattr(type(task), name)]
    missing = [name for name in missing if not hasattr(task, name)]
    if missing:
        raise UsageError(
            f"{text} is a {type(task).__name__} without {', '.join(missing)}: a task has "
            "reward, train() and heldout()"
        )
    found: Task = task
    return found
