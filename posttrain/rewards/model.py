"""A reward model as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from launch.errors import UsageError
from launch.replacing import folder_to_read
from posttrain.decoder import HeadKind
from posttrain.model_files import MODEL_KINDS, check_model_folder
from posttrain.rewards.base import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.process_reward_models import ProcessRewardModel
    from posttrain.reward_models import RewardModel

__all__ = ["ModelReward", "check_scorer_folder", "check_tokenizer", "encoded", "reward_of"]

_MAKE = "monro run reward-model --model FOLDER --data pairs.jsonl"


@dataclass
class ModelReward:
    """The score that a reward model gives a prompt with its completion.

    It is loaded at the first call, onto the GPU if there is one. What the engine drew is scored
    token by token as it is, so the reward model needs the policy's tokenizer: train it from the
    same base. Samples without tokens are encoded. A completion that was cut off is scored at its
    last token. Scores have no scale of their own; ``WeightedSum`` gives them a weight.
    """

    path: str
    """A folder that ``reward-model`` left, or another sequence classifier of one label."""
    device: str | None = None
    """Such as ``cpu``; null takes the GPU if there is one."""
    _model: Any = field(default=None, init=False, compare=False, repr=False)  # a RewardModel

    def check(self) -> None:
        """Raise UsageError if the folder holds no reward model; weights are not read."""
        check_scorer_folder(self.path, "ForSequenceClassification", _MAKE)

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return ``(B,)`` float32 scores.

        Raises:
            ValueError: The samples were made with another tokenizer.
        """
        model = self._loaded()
        if samples:
            check_tokenizer(model.tokenizer, samples[0], self.path, _MAKE)
        return model.scores([encoded(model, sample) for sample in samples])

    def _loaded(self) -> RewardModel:
        if self._model is None:
            from posttrain.reward_models import load_reward_model

            self.check()
            loaded = load_reward_model(self.path)
            loaded.model.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self._model = loaded
        model: RewardModel = self._model
        return model


def reward_of(model: RewardModel) -> ModelReward:
    """Return a reward by a model that is in memory; it is used where it lies, and as it is then."""
    reward = ModelReward(path=str(model.model.name_or_path))
    reward._model = model
    return reward


def encoded(model: RewardModel | ProcessRewardModel, sample: Sample) -> list[int]:
    """Return prompt and completion as tokens; only what came without any is encoded."""
    prompt, tokens = list(sample.prompt_tokens), list(sample.tokens)
    if not prompt:
        prompt = model.tokenizer.encode(sample.prompt, add_special_tokens=False)
    if not tokens:
        tokens = model.tokenizer.encode(sample.completion, add_special_tokens=False)
        tokens += model.stop_tokens[:1] if sample.finish_reason == "stop" else []
    return prompt + tokens


def check_scorer_folder(path: str, kind: HeadKind, make: str) -> None:
    """Raise UsageError if a folder holds no model of this kind; weights are not read.

    Args:
        path: A folder, or a hub id, which is not looked at.
        kind: Of the model.
        make: A command that leaves such a folder.
    """
    if path and folder_to_read(Path(path)).exists():
        check_model_folder(path, kind)
    elif not path or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UsageError(
            f"there is no {MODEL_KINDS[kind]} {path or '(no path is given)'}: make one with {make}"
        )


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, sample: Sample, path: str, make: str
) -> None:
    """Raise ValueError unless a sample's tokens mean its own text under the model of ``path``."""
    for tokens, text in ((sample.prompt_tokens, sample.prompt), (sample.tokens, sample.completion)):
        if tokens and not str(tokenizer.decode(list(tokens))).startswith(text):
            raise ValueError(
                f"the tokens of {text[:40]!r} are other text under the tokenizer of {path}: a "
                "reward model needs the policy's tokenizer, so train it from the same base "
                f"({make})"
            )
