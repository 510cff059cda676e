"""Scalar scores of tokens under a model: a head's product with the hidden states, never shifted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launch.backends import Routed
from posttrain.decoder import HeadKind, Untyped, has_dropout, read_decoder, unsupported
from posttrain.log_probs_plan import plain_plan, planned_states, shared_plan
from posttrain.log_probs_portable import portable_states

__all__ = [
    "ScalarHead",
    "ScoreHead",
    "TokenHead",
    "head_kind",
    "shared_prompt_scores",
    "token_scores",
]

_KINDS: tuple[HeadKind, ...] = get_args(HeadKind)


class ScoreHead(Protocol):
    """Turns hidden states into scores."""

    def __call__(self, model: Untyped, hidden: Tensor, /) -> Tensor:
        """Return ``(M,)`` float32 scores of ``(M, D)`` hidden states."""
        ...


@dataclass(frozen=True, slots=True)
class ScalarHead:
    """``score = w . h (+ b)``: the one label of a classifier."""

    def __call__(self, model: Untyped, hidden: Tensor, /) -> Tensor:
        """Return ``(M,)`` float32 scores of ``(M, D)`` hidden states."""
        head = getattr(model, "score", None) or getattr(model, "classifier", None)
        if not isinstance(head, nn.Linear):
            raise TypeError(
                f"a {type(model).__name__} has no head that gives scores: make one by "
                "outcome_model or process_model"
            )
        scores = _product(hidden, head.weight[0])
        return scores if head.bias is None else scores + head.bias[0].float()


@dataclass(frozen=True, slots=True)
class TokenHead:
    """``score = logit(good) - logit(bad)``, of a causal language model's own head.

    Its sigmoid is the probability of the good token where only the two can follow (Math-Shepherd,
    Wang et al. 2023, arXiv:2312.08935, section 3.3).
    """

    good: int
    """Id of the token that follows a right step."""
    bad: int
    """Id of the token that follows a wrong one."""

    def __call__(self, model: Untyped, hidden: Tensor, /) -> Tensor:
        """Return ``(M,)`` float32 scores of ``(M, D)`` hidden states."""
        head = model.get_output_embeddings()
        scores = _product(hidden, head.weight[self.good].float() - head.weight[self.bad].float())
        bias = getattr(head, "bias", None)
        return scores if bias is None else scores + (bias[self.good] - bias[self.bad]).float()


def token_scores(
    model: nn.Module, tokens: Tensor, mask: Tensor, head: ScoreHead | None = None
) -> Tensor:
    """Return the score of each wanted token, given all tokens up to it.

    Args:
        model: Of ``outcome_model`` or ``process_model``, or one prepared by a runtime.
        tokens: ``(B, T)`` int64, rows padded on the right. What lies beyond a row's last wanted
            column is not looked at and may be anything.
        mask: ``(B, T)`` bool, the wanted columns.
        head: Makes scores of hidden states; by default ``ScalarHead()``.

    Returns:
        ``(B, T)`` float32, 0 where ``mask`` is False. The dropout that transformers puts before a
        token classifier's head is left out. With nothing wanted, it still hangs on the model's
        parameters, with gradient zero.
    """
    head = ScalarHead() if head is None else head
    if isinstance(model, Routed):
        return model.call(token_scores, tokens, mask, head)
    return _scores(model, tokens, mask.bool(), head, None)


def shared_prompt_scores(
    model: nn.Module,
    tokens: Tensor,
    mask: Tensor,
    head: ScoreHead | None = None,
    *,
    group_size: int,
    prompt_lengths: Tensor,
) -> Tensor:
    """Return ``token_scores``, computing each prompt once for all rows that begin with it.

    Row ``p * group_size + g`` of ``(P G, T)`` begins with the ``prompt_lengths[p] >= 1`` tokens of
    prompt p. Models that the decoder does not know, and short windows, take the plain pass.
    """
    head = ScalarHead() if head is None else head
    if isinstance(model, Routed):
        return model.call(
            shared_prompt_scores,
            tokens,
            mask,
            head,
            group_size=group_size,
            prompt_lengths=prompt_lengths,
        )
    return _scores(model, tokens, mask.bool(), head, (group_size, prompt_lengths))


def head_kind(model: nn.Module) -> HeadKind:
    """Return how the name of the model's class ends; where it ends otherwise, ForCausalLM."""
    name = type(model).__name__
    return next((kind for kind in _KINDS if name.endswith(kind)), "ForCausalLM")


def _scores(
    model: Untyped,
    tokens: Tensor,
    mask: Tensor,
    head: ScoreHead,
    shared: tuple[int, Tensor] | None,
) -> Tensor:
    if tokens.dim() != 2 or mask.shape != tokens.shape:
        raise ValueError(
            f"tokens have shape {tuple(tokens.shape)} and mask {tuple(mask.shape)}: expected "
            "(B, T) for both"
        )
    # A token's score comes from where the next token is predicted: one column more, as targets.
    wide, wanted = F.pad(tokens.long(), (0, 1)), F.pad(mask, (1, 0))
    starts = torch.zeros_like(wanted)
    starts[:, 0] = True
    if unsupported(model, head_kind(model)) is not None or has_dropout(model):
        states, columns = portable_states(model, wide, wanted, starts)
    else:
        decoder = read_decoder(model)
        windows = [window for window in decoder.windows if window is not None]
        if shared is None or min(windows, default=wide.shape[1]) < wide.shape[1]:
            plan = plain_plan(wanted, starts, None)
        else:
            plan = shared_plan(wanted, *shared)
        states, _ = planned_states(decoder, wide, plan)
        columns = wide.new_zeros(0) if plan is None else plan.columns
    found = head(model, states)
    out = torch.zeros(wide.numel(), device=tokens.device)
    if len(columns):
        out = out.index_copy(0, columns, found[: len(columns)])
    else:  # it still hangs on the model
        out = out + 0.0 * found.sum()
    return out.view(wide.shape)[:, 1:]


def _product(hidden: Tensor, weight: Tensor) -> Tensor:
    """Return ``(M,)`` float32 inner products; elementwise, so autocast leaves them exact."""
    return (hidden.float() * weight.float()).sum(-1)
