"""The verifiable tasks of reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760), by name."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import torch
from torch import Tensor

from launch.errors import UsageError
from launch.spelling import did_you_mean
from posttrain.data.tasks.asking import REASONING, Form, Lazily, ask, fill
from posttrain.data.tasks.base import Prompt
from posttrain.rewards import AnswerReward, Reward, Sample
from posttrain.rewards.answer import extract_answer
from posttrain.rewards.judge import Verdict, judge_for
from posttrain.rewards.rational import read_number

_HELDOUT: dict[str, Sequence[Prompt]] = {}
_REMEMBERED = 8
"""Tasks whose held-out prompts are kept, because some data sets need seconds for an item."""

__all__ = ["GymAnswer", "ReasoningGym", "ReasoningGymReward", "gym_names"]

_APART = 1_000_000
_STRIDE = 1_000_003
_TRIES = 200
_DECIMAL_SCORERS = ("chain_sum", "products")
"""Their own scorers only normalise decimals, which ``AnswerReward`` does exactly."""


class GymAnswer(str):
    """A gold answer that remembers its item, which a data set's own scorer asks for."""

    __slots__ = ("item",)
    item: Mapping[str, Any]

    def __new__(cls, item: Mapping[str, Any]) -> Self:
        """Make the text of an item's answer; some items have none, and then it is empty."""
        gold = item.get("answer")
        answer = super().__new__(cls, "" if gold is None else str(gold))
        answer.item = item
        return answer

    def __reduce__(self) -> tuple[type[Self], tuple[Mapping[str, Any]]]:
        return type(self), (self.item,)


@dataclass
class ReasoningGymReward:
    """1 where a data set's own scorer gives the extracted answer 1.0, else 0.

    It also pays fractions, for substrings for instance, which count as wrong here. Some scorers
    evaluate the answer as an expression, so they run in child processes that are killed when they
    take longer than ``seconds``. Samples must have a ``GymAnswer``, as ``ReasoningGym`` gives.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 5.0
    timeouts: int = field(default=0, init=False, compare=False, repr=False)
    """Samples that hit the limit so far."""

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return ``(B,)`` float32 of zeros and ones."""
        rewards = torch.zeros(len(samples), dtype=torch.float32)
        rows, requests = [], []
        for row, sample in enumerate(samples):
            if not isinstance(sample.answer, GymAnswer):
                raise TypeError(
                    f"sample {row} has a {type(sample.answer).__name__} as answer, expected the "
                    "GymAnswer of its prompt: hand Prompt.answer on as it is"
                )
            answer = extract_answer(sample.completion)
            if answer is not None and answer == sample.answer.strip() != "":
                rewards[row] = 1.0
            elif answer is not None:
                rows.append(row)
                requests.append((self.name, dict(self.options), sample.answer.item, answer))
        if requests:
            verdicts = judge_for("gym")(requests, seconds=self.seconds)
            self.timeouts += verdicts.count(Verdict.TIMEOUT)
            rewards[rows] = torch.tensor([float(v is Verdict.EQUAL) for v in verdicts])
        return rewards


@dataclass(frozen=True, slots=True)
class ReasoningGym:
    """Items of one data set, made when they are asked for.

    reasoning-gym makes item i from ``Random(seed + i)``, so nearby seeds give nearly the same
    items. The two seeds therefore lie at least a million apart from each other's range, and what
    the held-out problems ask is never asked in training: such an item is replaced by another.
    Held-out problems all differ.
    """

    name: str = "chain_sum"
    options: Mapping[str, Any] = field(default_factory=dict)
    """The data set's own settings, such as ``{"min_terms": 5, "max_terms": 8}``."""
    size: int = 20_000
    """Problems to train on. Most data sets allow any number; a few make all of them at once."""
    heldout_size: int = 512
    """Held-out problems."""
    train_seed: int = 0
    heldout_seed: int = 2_000_000_000
    asked: str = "{question}"
    """What the model reads; a key of the item's metadata may stand in braces: ``{expression}=``."""
    system: str | None = REASONING
    """How to answer: the chat's system message, or a paragraph before the text."""
    form: Form = "chat"

    def __post_init__(self) -> None:
        if self.form not in ("chat", "text"):
            raise ValueError(f"form={self.form!r}: expected chat or text")
        if self.size < 1 or self.heldout_size < 0:
            raise ValueError(
                f"size={self.size}, heldout_size={self.heldout_size}: expected at least 1 problem "
                "to train on and no negative number held out"
            )
        low, high = sorted([(self.train_seed, self.size), (self.heldout_seed, self._drawn)])
        if low[0] < 0 or high[0] - (low[0] + low[1]) < _APART:
            raise ValueError(
                f"train_seed={self.train_seed} and heldout_seed={self.heldout_seed} with "
                f"size={self.size}: item i comes from seed + i, so seeds must not be negative and "
                f"their ranges lie at least {_APART:,} apart"
            )
        if self.name not in gym_names():
            near = did_you_mean(self.name, gym_names())
            raise UsageError(f"reasoning-gym has no data set {self.name!r}{near}")

    @property
    def reward(self) -> Reward:
        """``AnswerReward`` where answers are numbers and only the number counts, else the scorer.

        That is decided by the data set's class and its first 32 answers.
        """
        items = self._items(self.train_seed, self.size)
        inherited = "score_answer" not in vars(type(items))
        plain = inherited or self.name in _DECIMAL_SCORERS
        first = (items[index]["answer"] for index in range(min(32, self.size)))
        if plain and all(isinstance(a, str) and read_number(a) is not None for a in first):
            return AnswerReward()
        return ReasoningGymReward(self.name, dict(self.options))

    def train(self) -> Sequence[Prompt]:
        """Return ``size`` prompts, none of which is held out."""
        items = self._items(self.train_seed, self.size)
        held = {_read(prompt) for prompt in self.heldout()}

        def make(index: int) -> Prompt:
            for attempt in range(_TRIES):
                prompt = self._prompt(items, (index + attempt * _STRIDE) % self.size)
                if _read(prompt) not in held:
                    return prompt
            raise UsageError(
                f"{self.name}: {_TRIES} problems in a row are among the {self.heldout_size} "
                "held-out ones, so there are too few different ones; lower heldout_size or widen "
                "options"
            )

        return Lazily(self.size, make)

    def heldout(self) -> Sequence[Prompt]:
        """Return ``heldout_size`` different prompts."""
        key = repr(self)
        if key not in _HELDOUT:
            while len(_HELDOUT) >= _REMEMBERED:
                _HELDOUT.pop(next(iter(_HELDOUT)))
            _HELDOUT[key] = self._distinct()
        return _HELDOUT[key]

    @property
    def _drawn(self) -> int:
        """How many seeds may be tried for the held-out problems."""
        return 20 * self.heldout_size + 1

    def _distinct(self) -> Sequence[Prompt]:
        items, found = self._items(self.heldout_seed, self._drawn), dict[str, Prompt]()
        for index in range(self._drawn):
            if len(found) == self.heldout_size:
                return tuple(found.values())
            prompt = self._prompt(items, index)
            found.setdefault(_read(prompt), prompt)
        raise UsageError(
            f"{self.name} has only {len(found)} different problems among {self._drawn:,}, but "
            f"heldout_size={self.heldout_size}; lower it or widen options"
        )

    def _prompt(self, items: Any, index: int) -> Prompt:  # noqa: ANN401 - a ProceduralDataset
        item = items[index]
        metadata = item.get("metadata") or {}
        where = f"an item of {self.name}"
        text = fill(self.asked, {**metadata, "question": item["question"]}, where)
        answer = GymAnswer(item)
        return ask(text, answer, system=self.system, form=self.form, metadata=metadata)

    def _items(self, seed: int, size: int) -> Any:  # noqa: ANN401 - a ProceduralDataset
        reasoning_gym = _import()
        options = dict(self.options)
        for name in ("seed", "size"):
            if name in options:
                raise UsageError(f"options.{name}: the task sets it; use train_seed, size, ...")
        try:
            return reasoning_gym.create_dataset(self.name, seed=seed, size=size, **options)
        except (AssertionError, TypeError, ValueError) as error:
            from reasoning_gym.factory import DATASETS

            known = list(inspect.signature(DATASETS[self.name][1]).parameters)
            for name in options:
                if name not in known:
                    near = did_you_mean(name, known)
                    raise UsageError(
                        f"{self.name} has no option {name!r}{near} (options: {', '.join(known)})"
                    ) from error
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UsageError(f"{self.name} refuses its options ({reason})") from error


def _import() -> ModuleType:
    """Import reasoning-gym without pyplot, which takes a second and which two of its games draw by.

    They have it from cellpylib, whose place is held by a module that imports it when it is asked.
    """
    if "cellpylib" not in sys.modules:
        place = ModuleType("cellpylib")
        place.__getattr__ = _of_cellpylib  # type: ignore[method-assign]  # PEP 562
        sys.modules["cellpylib"] = place
    import reasoning_gym

    if sys.modules["cellpylib"].__spec__ is None:
        del sys.modules["cellpylib"]  # whoever imports it from now on gets the real one
    return reasoning_gym


def _of_cellpylib(name: str) -> object:
    return getattr(importlib.import_module("cellpylib"), name)


def _read(prompt: Prompt) -> str:
    """Return what the model reads of the problem itself."""
    return prompt.text if prompt.messages is None else prompt.messages[-1]["content"]  # type: ignore[return-value]  # one of them is there


@lru_cache(maxsize=1)
def gym_names() -> frozenset[str]:
    """Return the names of all data sets, read from the sources without importing them."""
    spec = importlib.util.find_spec("reasoning_gym")
    if spec is None or spec.origin is None:
        raise UsageError("reasoning-gym is not installed: pip install reasoning-gym")
    names = set()
    for source in Path(spec.origin).parent.glob("*/**/*.py"):
        text = source.read_text(encoding="utf-8")
        if "register_dataset(" in text:
            names.update(re.findall(r"""^DATASET_NAME = ["'](\w+)["']""", text, re.MULTILINE))
            names.update(re.findall(r"""register_dataset\(\s*["'](\w+)["']""", text))
    return frozenset(names)
