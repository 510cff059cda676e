"""A process reward model as rewards of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from posttrain.rewards.base import Sample
from posttrain.rewards.model import check_scorer_folder, check_tokenizer, encoded

if TYPE_CHECKING:
    from posttrain.process_reward_models import ProcessRewardModel

__all__ = ["ModelSteps", "steps_of"]

_MAKE = "monro run prm --model FOLDER --data steps.jsonl"


@dataclass
class ModelSteps:
    """The probability that a process reward model gives each step of a completion, in 0..1.

    It is what ``ProcessSupervised`` asks for (Shao et al. 2024, arXiv:2402.03300, section 4.1.3).
    A step ends at the token with its line break, the last one at the completion's last token, the
    stop token if it has one. The model is loaded at the first call, onto the GPU if there is one;
    it scores the tokens that the engine drew, so it needs the policy's tokenizer.
    """

    path: str
    """A folder that ``prm`` left, or another token classifier of one label."""
    device: str | None = None
    """Such as ``cpu``; null takes the GPU if there is one."""
    _model: Any = field(default=None, init=False, compare=False, repr=False)
    _breaks: frozenset[int] = field(default=frozenset(), init=False, compare=False, repr=False)

    def check(self) -> None:
        """Raise UsageError if the folder holds no process reward model; weights are not read."""
        check_scorer_folder(self.path, "ForTokenClassification", _MAKE)

    def __call__(self, samples: Sequence[Sample], /) -> list[list[tuple[int, float]]]:
        """Return the steps of each sample: index of the last token, and its probability.

        Raises:
            ValueError: A completion came without its tokens, or the samples were made with another
                tokenizer.
        """
        from posttrain.data.step_labels import step_ends

        model = self._loaded()
        if samples:
            check_tokenizer(model.tokenizer, samples[0], self.path, _MAKE)
        ends, rows, columns = [], [], []
        for row, sample in enumerate(samples):
            if sample.completion and not sample.tokens:
                raise ValueError(
                    f"row {row} has a completion without tokens: steps end at tokens, so give "
                    "those that the engine drew"
                )
            ends.append(step_ends(sample.tokens, self._breaks))
            if ends[row]:
                rows.append(encoded(model, sample))
                start = len(rows[-1]) - len(sample.tokens)
                columns.append([start + end for end in ends[row]])
        scores = iter(model.probabilities(rows, columns))
        return [list(zip(own, next(scores), strict=True)) if own else [] for own in ends]

    def _loaded(self) -> ProcessRewardModel:
        if self._model is None:
            from posttrain.process_reward_models import load_process_reward_model

            self.check()
            loaded = load_process_reward_model(self.path)
            loaded.model.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self._use(loaded)
        model: ProcessRewardModel = self._model
        return model

    def _use(self, model: ProcessRewardModel) -> None:
        from posttrain.search.language import line_breaks

        self._model, self._breaks = model, frozenset(line_breaks(model.tokenizer))


def steps_of(model: ProcessRewardModel) -> ModelSteps:
    """Return step rewards by a model that is in memory; it is used where it lies, as it is then."""
    steps = ModelSteps(path=str(model.model.name_or_path))
    steps._use(model)
    return steps
