"""Which tokens of a batch are fed to the model, and which of them predicts each wanted one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.decoder import Decoder
from posttrain.decoder_layout import Layout, rounded, sequences, shared_sequences

__all__ = ["Plan", "empty_plan", "extended", "plain_plan", "planned_states", "shared_plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is computed for a batch."""

    sources: Tensor
    """``(N,)``: which of the B T tokens are fed, sequences end to end, rounded up."""
    positions: Tensor
    """``(N,)``."""
    layout: Layout
    predictors: Tensor
    """``(M,)``: of the N, the token that predicts each wanted one."""
    columns: Tensor
    """``(M,)``: which of the B T is wanted."""


def plain_plan(wanted: Tensor, starts: Tensor, position_ids: Tensor | None) -> Plan | None:
    """Feed each document up to the token before its last wanted one; None if nothing is wanted."""
    columns = wanted.reshape(-1).nonzero().view(-1)
    if len(columns) == 0:
        return None
    first = starts.view(-1).nonzero().view(-1)
    document = starts.view(-1).cumsum(0) - 1
    place = torch.arange(starts.numel(), device=starts.device) - first[document]
    needed = torch.zeros_like(first)
    needed.scatter_reduce_(0, document[columns], place[columns], "amax")
    fed = place < needed[document]
    sources = fed.nonzero().view(-1)
    ranks = fed.cumsum(0) - 1
    layout = sequences(needed[needed > 0])
    positions = (
        sources % starts.shape[1] if position_ids is None else position_ids.reshape(-1)[sources]
    )
    spare = rounded(len(sources)) - len(sources)
    return Plan(
        sources=extended(sources, spare),
        positions=extended(positions, spare),
        layout=layout,
        predictors=ranks[columns - 1],
        columns=columns,
    )


def shared_plan(wanted: Tensor, group_size: int, prompt_lengths: Tensor) -> Plan | None:
    """Feed the prompts, each once, then what each row needs beyond its prompt."""
    columns = wanted.reshape(-1).nonzero().view(-1)
    if len(columns) == 0:
        return None
    rows, width = wanted.shape
    place = torch.arange(width, device=wanted.device)
    needed = (wanted * place).amax(1)
    prompts = needed.view(-1, group_size).amax(1).minimum(prompt_lengths).clamp(min=1)
    of_row = prompt_lengths.repeat_interleave(group_size)
    own = (needed - of_row).clamp(min=0)
    layout = shared_sequences(prompts, own)
    first_row = torch.arange(0, rows, group_size, device=wanted.device)
    from_prompts = ((place < prompts[:, None]).nonzero() * 1).unbind(1)
    beyond = (place >= of_row[:, None]) & (place < (of_row + own)[:, None])
    from_rows = beyond.nonzero().unbind(1)
    sources = torch.cat(
        (first_row[from_prompts[0]] * width + from_prompts[1], from_rows[0] * width + from_rows[1])
    )
    starts = (prompts.cumsum(0) - prompts).repeat_interleave(group_size)
    own_starts = prompts.sum() + own.cumsum(0) - own - of_row
    row, before = columns // width, columns % width - 1
    predictors = torch.where(before < of_row[row], starts[row], own_starts[row]) + before
    spare = rounded(len(sources)) - len(sources)
    return Plan(
        sources=extended(sources, spare),
        positions=extended(sources % width, spare),
        layout=layout,
        predictors=predictors,
        columns=columns,
    )


def extended(x: Tensor, by: int) -> Tensor:
    """Return ``(N,)`` values with the first repeated ``by`` times behind them."""
    return torch.cat((x, x[:1].expand(by))) if by else x


def empty_plan(device: torch.device) -> Plan:
    """Return a plan that runs a single token, whose result counts nothing."""
    one = torch.zeros(1, dtype=torch.int64, device=device)
    zeros = one.expand(rounded(1))
    return Plan(zeros, zeros, sequences(torch.ones_like(one)), one, one)


def planned_states(decoder: Decoder, tokens: Tensor, plan: Plan | None) -> tuple[Tensor, Tensor]:
    """Run the plan; without one, run a single token whose result counts nothing.

    Returns:
        ``(M', D)`` hidden states, in order of the wanted columns, and the ``(M',)`` tokens that
        they predict; M' is M rounded up, what is beyond M counts nothing.
    """
    if plan is None:
        plan = empty_plan(tokens.device)
        fed, targets = plan.sources, plan.columns
    else:
        flat = tokens.reshape(-1).long()
        fed, targets = flat[plan.sources], flat[plan.columns]
    spare = rounded(len(plan.predictors)) - len(plan.predictors)
    predictors = extended(plan.predictors, spare)
    states = decoder.hidden_states(fed, plan.positions, plan.layout, predictors)
    return states, extended(targets, spare)
