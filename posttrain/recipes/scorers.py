"""What picks the best of several completions: reward models in folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from launch.conversion import load_object
from launch.errors import UsageError
from launch.replacing import folder_to_read
from launch.spelling import nearest
from posttrain.data.step_labels import step_ends
from posttrain.model_files import check_model_folder
from posttrain.process_reward_models import JudgesSteps, load_process_reward_model
from posttrain.rewards import ModelReward, Sample
from posttrain.search.best_of_n import last, minimum, product
from posttrain.search.language import line_breaks
from posttrain.vocabulary import Vocabulary, folder_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "ProcessReward",
    "Reduce",
    "Scorer",
    "check_scorer",
    "parse_reduce",
    "parse_scorer",
    "step_scores",
]

Reduce = Callable[[Sequence[float]], float]
"""Makes one score of the scores of a completion's steps."""

_MAKE = (
    "make one with: monro run reward-model --model MODEL --data pairs.jsonl --output runs/rm (its "
    "folder is runs/rm/model), or: monro run prm --model MODEL --data steps.jsonl --output runs/prm"
)


class Scorer(Protocol):
    """A reward model by its folder."""

    path: str

    def check(self) -> None:
        """Raise UsageError if the folder holds no such model; weights are not read."""
        ...

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return ``(B,)`` float32 scores, the larger the better."""
        ...


def parse_reduce(text: str) -> Reduce:
    """Return ``last``, ``minimum`` or ``product``, or the function that ``module:name`` names.

    >>> parse_reduce("product")([0.5, 0.25])
    0.125
    """
    own = {"last": last, "minimum": minimum, "product": product}
    if text in own:
        return own[text]
    if ":" not in text:
        near = nearest(text, own)
        hint = f"did you mean {near}?" if near else "expected last, minimum, product or module:name"
        raise UsageError(f"unknown reduction {text!r}: {hint}")
    found = load_object(text, "")
    if not callable(found):
        raise UsageError(f"{text} cannot be called: expected a function of a sequence of scores")
    return found


@dataclass
class ProcessReward:
    """The score that a process reward model gives a completion, by its steps.

    It is loaded at the first call, onto the GPU if there is one. A step ends at a line break. What
    the engine drew is judged token by token, so the model needs the policy's tokenizer.
    """

    path: str
    """A folder that ``prm`` left, or another token classifier of one label."""
    reduce: Reduce = field(default=last, metadata={"parse": parse_reduce})
    """``last``, ``minimum`` or ``product`` of the steps' probabilities, or ``module:function``."""
    device: str | None = None
    """Such as ``cpu``; null takes the GPU if there is one."""
    _model: Any = field(default=None, init=False, compare=False, repr=False)  # a ProcessRewardModel

    def check(self) -> None:
        """Raise UsageError if the folder holds no process reward model; weights are not read."""
        if not self.path or not folder_to_read(Path(self.path)).is_dir():
            raise UsageError(f"there is no folder {self.path or '(no path is given)'}: {_MAKE}")
        check_model_folder(self.path, "ForTokenClassification")

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return ``(B,)`` float32 scores."""
        if self._model is None:
            self.check()
            self._model = load_process_reward_model(self.path)
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            self._model.model.to(device)
        rows = step_scores(self._model, self._model.tokenizer, samples)
        return torch.tensor([self.reduce(row) for row in rows], dtype=torch.float32)


def step_scores(
    model: JudgesSteps, tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sample]
) -> list[list[float]]:
    """Return the probability of each step of each sample, all judged in one go.

    Args:
        model: The process reward model.
        tokenizer: Tells which tokens hold a line break.
        samples: With their tokens and those of their prompts.
    """
    breaks = frozenset(line_breaks(tokenizer))
    rows, ends = [], []
    for sample in samples:
        start = len(sample.prompt_tokens)
        rows.append((*sample.prompt_tokens, *sample.tokens))
        ends.append([start + end for end in step_ends(sample.tokens, breaks)])
    return model.probabilities(rows, ends)


def parse_scorer(text: str) -> Scorer:
    """Read ``--scorer FOLDER``: of an outcome or of a process reward model.

    Raises:
        UsageError: There is no such folder, or its config is that of neither.
    """
    config = Path(text) / "config.json"
    if not config.is_file():
        what = "has no config.json" if Path(text).is_dir() else "is not a folder"
        raise UsageError(f"{text} {what}: {_MAKE}")
    try:
        kinds = json.loads(config.read_text(encoding="utf-8")).get("architectures") or []
    except (ValueError, AttributeError):
        raise UsageError(f"{config} is not the config of a model: {_MAKE}") from None
    if any(str(kind).endswith("ForSequenceClassification") for kind in kinds):
        return ModelReward(text)
    if any(str(kind).endswith("ForTokenClassification") for kind in kinds):
        return ProcessReward(text)
    raise UsageError(
        f"{text} holds a {', '.join(map(str, kinds)) or 'model of no kind'}, expected a reward "
        f"model or a process reward model: {_MAKE}"
    )


def check_scorer(scorer: Scorer, policy: Vocabulary | None) -> None:
    """Raise UsageError unless the scorer is there and reads the tokens that the policy writes.

    Args:
        scorer: Names its folder.
        policy: The vocabulary of the model that draws; None where it is not known yet.
    """
    scorer.check()
    own = folder_vocabulary(scorer.path)
    if policy is None or own is None or own.tokens == policy.tokens:
        return
    ours, theirs = dict(policy.tokens), dict(own.tokens)
    token = min(x for x in {*ours, *theirs} if ours.get(x) != theirs.get(x))
    raise UsageError(
        f"the scorer {scorer.path} has another tokenizer ({len(theirs)} tokens) than the model "
        f"{policy.name} ({len(ours)}): {token!r} has the id {theirs.get(token)} in the first and "
        f"{ours.get(token)} in the second, so its scores would be those of other text. Train a "
        f"scorer from the same model: monro run reward-model --model {policy.name} --data "
        f"pairs.jsonl, or monro run prm --model {policy.name} --data steps.jsonl"
    )
