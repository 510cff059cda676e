"""Process reward models: the probability of each step, by a scalar head or by two tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from posttrain.models import Dtype, LanguageModel, load_checkpoint
from posttrain.reward_models import check_one_label, row_scores, with_scalar_head
from posttrain.scores import ScalarHead, ScoreHead, TokenHead

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "JudgesSteps",
    "ProcessRewardModel",
    "load_process_reward_model",
    "process_model",
    "token_process_model",
]


class JudgesSteps(Protocol):
    """What a search needs of a process reward model."""

    def probabilities(
        self, rows: Sequence[Sequence[int]], ends: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Return the probability of each step of each row."""
        ...


@dataclass(frozen=True, slots=True)
class ProcessRewardModel:
    """Tells of each step of a solution how probable it is that all is right up to there."""

    model: PreTrainedModel
    """Of the kind ``ForTokenClassification``, with one label; with a ``TokenHead`` a causal LM."""
    tokenizer: PreTrainedTokenizerBase
    stop_tokens: tuple[int, ...] = ()
    """Ids that end a turn; the first closes a solution."""
    head: ScoreHead = field(default_factory=ScalarHead)

    def probabilities(
        self, rows: Sequence[Sequence[int]], ends: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Return the probability of each step, no gradient.

        Args:
            rows: Token ids of a prompt and its solution, or what there is of it; none empty.
            ends: For each row the places of its steps' last tokens.
        """
        scores = row_scores(self.model, rows, ends, self.head)
        return [of_row.sigmoid().tolist() for of_row in scores]


def process_model(lm: LanguageModel, *, seed: int = 0) -> ProcessRewardModel:
    """Make a process reward model that begins as ``lm`` with a random head; ``lm`` stays as it is.

    Its folder is an ordinary ``AutoModelForTokenClassification`` of one label.
    """
    model = with_scalar_head(lm, "ForTokenClassification", seed=seed)
    return ProcessRewardModel(model, lm.tokenizer, lm.stop_tokens)


def token_process_model(
    lm: LanguageModel, *, good: str = "+", bad: str = "-"
) -> ProcessRewardModel:
    """Read ``lm`` as a process reward model that follows a step with a good or a bad token.

    The model is ``lm``'s own and no copy; it is saved and loaded as a language model.

    Raises:
        ValueError: ``good`` or ``bad`` is not one token, or they are the same.
    """
    ids = []
    for name, text in (("good", good), ("bad", bad)):
        tokens = lm.tokenizer.encode(text, add_special_tokens=False)
        if len(tokens) != 1 or tokens[0] == lm.tokenizer.unk_token_id:
            raise ValueError(
                f"{name}={text!r} is the tokens {tokens}: give text of one known token"
            )
        ids += tokens
    if ids[0] == ids[1]:
        raise ValueError(f"good and bad are both token {ids[0]}: give different ones")
    return ProcessRewardModel(lm.model, lm.tokenizer, lm.stop_tokens, TokenHead(*ids))


def load_process_reward_model(path: Path | str, *, dtype: Dtype = "float32") -> ProcessRewardModel:
    """Load a process reward model from a folder or the hub; ``save_model`` writes it.

    Raises:
        UsageError: It cannot be loaded, is no token classifier, or has several labels.
    """
    lm = load_checkpoint(path, "ForTokenClassification", dtype=dtype)
    check_one_label(lm, path)
    return ProcessRewardModel(lm.model, lm.tokenizer, lm.stop_tokens)
