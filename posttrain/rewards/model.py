"""A reward model as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from launch.errors import UsageError
from posttrain.model_files import check_model_folder
from posttrain.rewards.base import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.reward_models import RewardModel

__all__ = ["ModelReward", "reward_of"]


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
        if self.path and Path(self.path).exists():
            check_model_folder(self.path, "ForSequenceClassification")
        elif not self.path or self.path.startswith((".", "/", "~")) or self.path.count("/") > 1:
            raise UsageError(
                f"there is no reward model {self.path or '(no path is given)'}: make one with "
                "monro run reward-model --model FOLDER --data pairs.jsonl"
            )

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return ``(B,)`` float32 scores.

        Raises:
            ValueError: The samples were made with another tokenizer.
        """
        model = self._loaded()
        if samples:
            self._check_tokenizer(model.tokenizer, samples[0])
        return model.scores([_encoded(model, sample) for sample in samples])

    def _loaded(self) -> RewardModel:
        if self._model is None:
            from posttrain.reward_models import load_reward_model

            self.check()
            loaded = load_reward_model(self.path)
            loaded.model.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self._model = loaded
        model: RewardModel = self._model
        return model

    def _check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, sample: Sample) -> None:
        """Raise ValueError unless the sample's tokens mean its own text."""
        for tokens, text in (
            (sample.prompt_tokens, sample.prompt),
            (sample.tokens, sample.completion),
        ):
            if tokens and not str(tokenizer.decode(list(tokens))).startswith(text):
                raise ValueError(
                    f"the tokens of {text[:40]!r} are other text under the tokenizer of "
                    f"{self.path}: a reward model needs the policy's tokenizer, so train it from "
                    "the same base (monro run reward-model --model FOLDER)"
                )


def reward_of(model: RewardModel) -> ModelReward:
    """Return a reward by a model that is in memory; it is used where it lies, and as it is then."""
    reward = ModelReward(path=str(model.model.name_or_path))
    reward._model = model
    return reward


def _encoded(model: RewardModel, sample: Sample) -> list[int]:
    """Return prompt and completion as tokens; only what came without any is encoded."""
    prompt, tokens = list(sample.prompt_tokens), list(sample.tokens)
    if not prompt:
        prompt = model.tokenizer.encode(sample.prompt, add_special_tokens=False)
    if not tokens:
        tokens = model.tokenizer.encode(sample.completion, add_special_tokens=False)
        tokens += model.stop_tokens[:1] if sample.finish_reason == "stop" else []
    return prompt + tokens
