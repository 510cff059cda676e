"""Outcome reward models: the backbone of a language model with a scalar head.

Its folder is an ordinary ``AutoModelForSequenceClassification`` of one label, so TRL and vLLM load
it as well. transformers takes the score at the last token that is not padding; here it is the last
token of the row, the stop token included. The two are the same unless padding is a stop token.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from launch.errors import UsageError
from launch.streams import stream
from posttrain.decoder import HeadKind, Untyped
from posttrain.decoder_positions import most_positions
from posttrain.models import Dtype, LanguageModel, load_checkpoint, quiet
from posttrain.rollout.portable import evaluating
from posttrain.scores import ScoreHead, token_scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "RewardModel",
    "last_columns",
    "load_reward_model",
    "outcome_model",
    "row_scores",
    "with_scalar_head",
]

_TOKENS = 1 << 14
"""Tokens of a forward pass without gradients."""


@dataclass(frozen=True, slots=True)
class RewardModel:
    """Gives a prompt with a completion one score; only differences of scores mean anything."""

    model: PreTrainedModel
    """Of the kind ``ForSequenceClassification``, with one label."""
    tokenizer: PreTrainedTokenizerBase
    stop_tokens: tuple[int, ...] = ()
    """Ids that end a turn; the first is what a finished completion is scored at."""

    def scores(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return the score at each row's last token, ``(B,)`` float32 on the CPU, no gradient.

        Args:
            rows: Token ids of a prompt and its completion; none empty.
        """
        found = row_scores(self.model, rows, [(len(row) - 1,) for row in rows])
        return torch.cat([torch.zeros(0), *found])


def outcome_model(lm: LanguageModel, *, seed: int = 0) -> RewardModel:
    """Make a reward model that begins as ``lm`` with a random head; ``lm`` stays as it is.

    The head's weights are normal with deviation ``1 / sqrt(D + 1)`` (Huang et al. 2024,
    arXiv:2403.17031, detail 11), and depend on ``seed`` alone.
    """
    model = with_scalar_head(lm, "ForSequenceClassification", seed=seed)
    return RewardModel(model, lm.tokenizer, lm.stop_tokens)


def load_reward_model(path: Path | str, *, dtype: Dtype = "float32") -> RewardModel:
    """Load a reward model from a folder or the hub; ``save_model`` writes it.

    Raises:
        UsageError: It cannot be loaded, is no sequence classifier, or has several labels.
    """
    lm = load_checkpoint(path, "ForSequenceClassification", dtype=dtype)
    check_one_label(lm, path)
    return RewardModel(lm.model, lm.tokenizer, lm.stop_tokens)


def check_one_label(lm: LanguageModel, path: Path | str) -> None:
    """Raise UsageError unless the classifier's head gives one number."""
    if lm.model.config.num_labels != 1:
        raise UsageError(
            f"{path} gives {lm.model.config.num_labels} numbers, expected one: a reward model is a "
            "classifier of one label"
        )


def with_scalar_head(lm: LanguageModel, kind: HeadKind, *, seed: int) -> PreTrainedModel:
    """Return a classifier of one label on a copy of the model's backbone."""
    import transformers

    config = copy.deepcopy(lm.model.config)
    config.num_labels = 1
    config.pad_token_id = lm.pad_token
    config.architectures = None
    with quiet(), torch.device("meta"):
        model: Untyped = getattr(transformers, f"AutoModel{kind}").from_config(config)
    setattr(model, model.base_model_prefix, copy.deepcopy(lm.model.base_model))
    name = "score" if hasattr(model, "score") else "classifier"
    head = getattr(model, name)
    like = lm.model.get_input_embeddings().weight
    made = torch.nn.Linear(head.in_features, 1, bias=head.bias is not None).to(like)
    deviation = (head.in_features + 1) ** -0.5
    draws = torch.randn(made.weight.shape, generator=stream(seed, "scalar head")) * deviation
    with torch.no_grad():
        made.weight.copy_(draws)
        if made.bias is not None:
            made.bias.zero_()
    setattr(model, name, made)
    return model.train(lm.model.training)


@torch.no_grad()
def row_scores(
    model: Untyped,
    rows: Sequence[Sequence[int]],
    columns: Sequence[Sequence[int]],
    head: ScoreHead | None = None,
) -> list[Tensor]:
    """Return each row's float32 scores at its columns, on the CPU, whatever rows are beside it.

    Rows of similar length are run together; dropout and autocast are off.

    Raises:
        ValueError: A row is empty, too long for the model, or holds ids that it does not know.
    """
    _check(model, rows)
    device = next(model.parameters()).device
    found: list[Tensor] = [torch.zeros(0)] * len(rows)
    with evaluating(model), torch.autocast(device.type, enabled=False):
        for part in _parts(rows):
            width = len(rows[part[0]])
            tokens = torch.zeros(len(part), width, dtype=torch.int64)
            mask = torch.zeros(len(part), width, dtype=torch.bool)
            for i, row in enumerate(part):
                tokens[i, : len(rows[row])] = torch.as_tensor(rows[row])
                mask[i, list(columns[row])] = True
            scores = token_scores(model, tokens.to(device), mask.to(device), head).cpu()
            for i, row in enumerate(part):
                found[row] = scores[i, list(columns[row])]
    return found


def last_columns(mask: Tensor) -> Tensor:
    """Return ``(B, T)`` bool, True at each row's last True, if there is one.

    >>> last_columns(torch.tensor([[True, True, False], [False, False, False]])).tolist()
    [[False, True, False], [False, False, False]]
    """
    after = mask.flip(-1).cumsum(-1).flip(-1)
    return mask & (after == 1)


def _parts(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield indices of rows that are run together, the longest rows first."""
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    while order:
        count = max(1, _TOKENS // len(rows[order[0]]))
        yield order[:count]
        order = order[count:]


def _check(model: Untyped, rows: Sequence[Sequence[int]]) -> None:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    most = most_positions(model.config)
    for index, row in enumerate(rows):
        if not len(row):
            raise ValueError(f"row {index} is empty: there is no token to score")
        if most is not None and len(row) > most:
            raise ValueError(
                f"row {index} has {len(row)} tokens, beyond the model's {most} positions"
            )
        if not 0 <= min(row) <= max(row) < vocabulary:
            raise ValueError(
                f"row {index} has ids from {min(row)} to {max(row)}, but the model's go from 0 to "
                f"{vocabulary - 1}: was it encoded with another tokenizer?"
            )
