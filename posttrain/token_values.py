"""Values of the states in which tokens are chosen: a scalar head on last hidden states.

Column t is about ``tokens[:, t]``, as everywhere: its value is of the state before that token, so
it comes from the hidden state that also predicts the token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posttrain.decoder import has_dropout, read_decoder, unsupported
from posttrain.log_probs import token_log_probs_and_entropy
from posttrain.log_probs_head import head_log_probs
from posttrain.log_probs_plan import plain_plan, planned_states
from posttrain.log_probs_portable import portable_states

__all__ = ["token_log_probs_and_values", "token_values"]


def token_values(model: nn.Module, head: nn.Linear, tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the value before each wanted token.

        out[b, t] = head(h[b, t - 1]),  h the last hidden states

    Args:
        model: A causal language model, not prepared; its logits are not computed.
        head: From D features to 1.
        tokens: ``(B, T)`` int64, rows padded on the right.
        mask: ``(B, T)`` bool, the wanted columns.

    Returns:
        ``(B, T)`` float32; exactly 0 in column 0 and where ``mask`` is False. With none wanted it
        still hangs on every parameter that it is computed of, with gradient zero.
    """
    wanted, starts = _wanted(tokens, mask)
    if not _decodable(model):
        states, columns = portable_states(model, tokens, wanted, starts)
    else:
        plan = plain_plan(wanted, starts, None)
        states, _ = planned_states(read_decoder(model), tokens, plan)
        columns = tokens.new_zeros(0) if plan is None else plan.columns
    return _spread(head, states, columns, tokens)


def token_log_probs_and_values(
    model: nn.Module,
    head: nn.Linear,
    tokens: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``token_log_probs_and_entropy`` and ``token_values`` of the same model.

    Where the decoder knows the model, all three come from one pass through its layers.
    """
    if not _decodable(model):
        log_probs, entropy = token_log_probs_and_entropy(
            model, tokens, mask, temperature=temperature
        )
        return log_probs, entropy, token_values(model, head, tokens, mask)
    decoder = read_decoder(model)
    plan = plain_plan(*_wanted(tokens, mask), None)
    states, targets = planned_states(decoder, tokens, plan)
    figures, spread = head_log_probs(
        states,
        decoder.head.weight,
        decoder.head.bias,
        targets,
        temperature,
        with_entropy=True,
    )
    columns = tokens.new_zeros(0) if plan is None else plan.columns
    values = _spread(head, states, columns, tokens)
    return _scatter(figures, columns, tokens), _scatter(spread, columns, tokens), values


def _decodable(model: nn.Module) -> bool:
    return unsupported(model) is None and not has_dropout(model)


def _wanted(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the wanted columns and each row's first one, which is predicted by none."""
    if tokens.dim() != 2 or mask.shape != tokens.shape:
        raise ValueError(
            f"got tokens of shape {tuple(tokens.shape)} and a mask of shape {tuple(mask.shape)}: "
            "both are (B, T), and the mask says of which tokens the values are wanted"
        )
    starts = torch.zeros_like(mask, dtype=torch.bool)
    starts[:, :1] = True
    return mask.bool() & ~starts, starts


def _spread(head: nn.Linear, states: Tensor, columns: Tensor, tokens: Tensor) -> Tensor:
    """Return ``(B, T)`` values of the states; in float32, whatever the run's precision."""
    with torch.autocast(states.device.type, enabled=False):
        bias = None if head.bias is None else head.bias.float()
        values = F.linear(states.float(), head.weight.float(), bias).squeeze(-1)
    return _scatter(values, columns, tokens)


def _scatter(figures: Tensor, columns: Tensor, tokens: Tensor) -> Tensor:
    """Return ``(B, T)`` with the figures at their columns; what is beyond them counts nothing."""
    out = torch.zeros(tokens.numel(), dtype=torch.float32, device=tokens.device)
    if len(columns) == 0:
        return (out + 0.0 * figures.sum().float()).view(tokens.shape)
    return out.index_copy(0, columns, figures[: len(columns)].float()).view(tokens.shape)
