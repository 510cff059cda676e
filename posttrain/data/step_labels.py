"""Solutions cut into steps, each with a label: how probable it is that all is right up to there."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from launch.batch import TensorBatch, shaped
from launch.errors import UsageError
from posttrain.data.chat import check_messages, encode_prompt
from posttrain.data.json_lines import field_of, read_json_lines
from posttrain.data.tasks.base import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "LabelledSolution",
    "StepBatch",
    "StepDocument",
    "encode_solutions",
    "load_solutions",
    "pad_steps",
    "step_ends",
]


@dataclass(frozen=True, slots=True)
class LabelledSolution:
    """A prompt, the steps of a solution, and a label for each."""

    prompt: Prompt
    steps: tuple[str, ...]
    """Written one below the other."""
    labels: tuple[float | None, ...]
    """In 0..1; None where it is not known."""


@dataclass(frozen=True, slots=True, eq=False)
class StepDocument:
    """A prompt with a solution as tokens, and where its labelled steps end."""

    tokens: Sequence[int]
    ends: Sequence[int]
    """Places in ``tokens``, in order: the last token of each step with a label."""
    labels: Sequence[float]
    """In 0..1, as many as ``ends``."""

    def __post_init__(self) -> None:
        if len(self.ends) != len(self.labels):
            raise ValueError(
                f"a solution has {len(self.ends)} steps, but {len(self.labels)} labels: each step "
                "needs one"
            )
        bounds = [-1, *self.ends, len(self.tokens)]
        if any(a >= b for a, b in pairwise(bounds)):
            raise ValueError(
                f"steps end at {list(self.ends)}, but there are {len(self.tokens)} tokens: the "
                "ends must be different places among them, in order"
            )
        wrong = [label for label in self.labels if not 0 <= label <= 1]
        if wrong:
            raise ValueError(f"a step has the label {wrong[0]}: expected a number in 0..1")

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepBatch(TensorBatch):
    """Solutions, right-padded. Column t of every field is about ``tokens[:, t]``."""

    tokens: Tensor = shaped("B T")
    """int64, prompt then solution."""
    mask: Tensor = shaped("B T")
    """bool, True at the last token of each step with a label."""
    labels: Tensor = shaped("B T")
    """float32 in 0..1, how probable it is that the step is right; 0 where ``mask`` is False."""


def pad_steps(documents: Sequence[StepDocument]) -> StepBatch:
    """Return solutions as a batch, padded to the longest.

    >>> pad_steps([StepDocument([5, 6, 7], [1, 2], [1.0, 0.5]), StepDocument([5], [], [])]).labels
    tensor([[0.0000, 1.0000, 0.5000],
            [0.0000, 0.0000, 0.0000]])
    """
    shape = (len(documents), max(map(len, documents), default=0))
    tokens = torch.zeros(shape, dtype=torch.int64)
    mask, labels = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
    for row, document in enumerate(documents):
        tokens[row, : len(document)] = torch.as_tensor(document.tokens)
        mask[row, list(document.ends)] = True
        labels[row, list(document.ends)] = torch.tensor(list(document.labels), dtype=torch.float32)
    return StepBatch(tokens=tokens, mask=mask, labels=labels)


def step_ends(completion: Sequence[int], breaks: Collection[int]) -> list[int]:
    """Return where the steps of a completion end: at each line break, and at its last token.

    >>> step_ends([4, 10, 5, 6, 10, 2], breaks={10})
    [1, 4, 5]
    """
    last = len(completion) - 1
    return [i for i, token in enumerate(completion) if token in breaks or i == last]


def load_solutions(path: str | Path) -> list[LabelledSolution]:
    """Return the labelled solutions of a file.

    A line is ``{"prompt": ..., "steps": [...], "labels": [...]}``, with ``messages`` as another
    name of ``prompt``: text, which a user says, or a list of messages. ``text`` in its place is
    continued as it is. A label is a number in 0..1, true, false, or null where it is not known.
    Other keys are ignored.

    Raises:
        UsageError: A line is not of this form, such as three steps with two labels; the error
            names file and line.
    """
    solutions = []
    for number, row in read_json_lines(path):
        where = f"{path}, line {number}"
        try:
            solutions.append(_solution(row, where))
        except ValueError as error:
            named = isinstance(error, UsageError)
            raise UsageError(str(error) if named else f"{where}: {error}") from error
    return solutions


def encode_solutions(
    tokenizer: PreTrainedTokenizerBase, solutions: Sequence[LabelledSolution], stop_token: int
) -> list[StepDocument]:
    """Return each solution as tokens, closed by ``stop_token``.

    A step ends at the token that holds its line break, and the last one at the stop token. Prompt
    and solution are encoded apart, as they are when a model generates.

    Raises:
        UsageError: The prompt has no tokens, or the chat template does not take it.
    """
    documents = []
    for index, solution in enumerate(solutions):
        try:
            start = encode_prompt(tokenizer, solution.prompt)
        except ValueError as error:
            raise UsageError(f"solution {index}: {error}") from error
        tokens, ends = _encode_steps(tokenizer, solution.steps)
        ends = [*ends[:-1], len(tokens)]
        labels = zip(ends, solution.labels, strict=True)
        known = [(len(start) + end, label) for end, label in labels if label is not None]
        documents.append(
            StepDocument(
                [*start, *tokens, stop_token],
                [end for end, _ in known],
                [label for _, label in known],
            )
        )
    return documents


def _encode_steps(
    tokenizer: PreTrainedTokenizerBase, steps: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Return the tokens of steps joined by line breaks, and where each ends.

    Where the text's own tokens hold two line breaks in one, the steps are encoded apart.
    """
    if tokenizer.is_fast:
        found = tokenizer("\n".join(steps), add_special_tokens=False, return_offsets_mapping=True)
        spans = list(found["offset_mapping"])
        ends, cut = [], -1
        for step in steps:
            cut += len(step) + 1
            ends.append(next((i for i, (_, stop) in enumerate(spans) if stop > cut), len(spans)))
        if len(set(ends)) == len(ends):
            return list(found["input_ids"]), ends
    tokens: list[int] = []
    ends = []
    for step in (*(f"{step}\n" for step in steps[:-1]), steps[-1]):
        tokens += tokenizer.encode(step, add_special_tokens=False)
        ends.append(len(tokens) - 1)
    return tokens, ends


def _solution(row: dict[str, Any], where: str) -> LabelledSolution:
    steps, labels = (field_of(row, key, where) for key in ("steps", "labels"))
    for key, value in (("steps", steps), ("labels", labels)):
        if not isinstance(value, list):
            raise ValueError(f"{key} is {type(value).__name__}, expected a list")
    for index, step in enumerate(steps):
        if not isinstance(step, str) or not step.strip():
            raise ValueError(f"step {index} is {step!r}, expected text")
    if not steps:
        raise ValueError("steps is empty: a solution has at least one")
    if len(steps) != len(labels):
        raise ValueError(
            f"there are {len(steps)} steps, but {len(labels)} labels: each step needs one, null "
            "where it is not known"
        )
    return LabelledSolution(_prompt(row, where), tuple(steps), tuple(map(_label, labels)))


def _prompt(row: dict[str, Any], where: str) -> Prompt:
    if "text" in row:
        if not isinstance(row["text"], str):
            raise ValueError(f"text is {type(row['text']).__name__}, expected text")
        return Prompt(answer="", text=row["text"])
    key = "messages" if "messages" in row else "prompt"
    value = field_of(row, key, where)
    messages = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(messages, list):
        raise ValueError(f"{key} is {type(value).__name__}, expected text or a list of messages")
    check_messages(messages)
    return Prompt(answer="", messages=tuple(messages))


def _label(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
        raise ValueError(f"a label is {value!r}, expected a number in 0..1, true, false or null")
    return float(value)
