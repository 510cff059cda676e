"""Log-probabilities of tokens under a model: the only place where logits meet shifted tokens.

Hidden states are computed for the tokens that some wanted column depends on and for no others;
the head and its softmax see the wanted columns alone, chunk by chunk, and are computed again in
the backward pass. So a ``(B, T, V)`` tensor never exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from launch.backends import Routed
from posttrain.decoder import Decoder, has_dropout, read_decoder, unsupported
from posttrain.decoder_attention import Layout
from posttrain.decoder_kernels import outer, product
from posttrain.decoder_layout import rounded, sequences, shared_sequences
from posttrain.log_probs_portable import portable_log_probs

__all__ = [
    "shared_prompt_log_probs",
    "shared_prompt_log_probs_and_entropy",
    "token_log_probs",
    "token_log_probs_and_entropy",
]

_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 26}  # logits at a time: what stays in a core's cache


def token_log_probs(
    model: nn.Module,
    tokens: Tensor,
    mask: Tensor | None = None,
    *,
    position_ids: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    r"""Log-probability of each token given those before it.

        out[b, t] = log softmax(logits[b, t - 1] / temperature)[tokens[b, t]]

    Args:
        model: A causal language model, or one prepared by a runtime.
        tokens: ``(B, T)`` int64, rows padded on the right. What lies beyond a row's last wanted
            column is not looked at and may be anything.
        mask: ``(B, T)`` bool, the wanted columns; None wants all. It is no attention mask.
        position_ids: ``(B, T)`` int64. Wherever it does not go on by one, a new document begins:
            documents do not see each other, and a document's first column counts as column 0.
        temperature: Divides the logits.

    Returns:
        ``(B, T)`` float32 nats; exactly 0 in column 0 and where ``mask`` is False. With no rows,
        or none wanted, it still hangs on every parameter, with gradient zero.
    """
    if isinstance(model, Routed):
        return model.call(
            token_log_probs,
            tokens,
            mask,
            position_ids=position_ids,
            temperature=temperature,
        )
    return _plain(model, tokens, mask, position_ids, temperature, with_entropy=False)[0]


def token_log_probs_and_entropy(
    model: nn.Module,
    tokens: Tensor,
    mask: Tensor | None = None,
    *,
    position_ids: Tensor | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return ``token_log_probs`` and, of the same pass, the entropy that each was drawn with.

    The entropy is ``(B, T)`` float32 nats of ``softmax(logits / temperature)``, without gradient,
    0 where the log-probs are 0 by definition.
    """
    if isinstance(model, Routed):
        return model.call(
            token_log_probs_and_entropy,
            tokens,
            mask,
            position_ids=position_ids,
            temperature=temperature,
        )
    return _plain(model, tokens, mask, position_ids, temperature, with_entropy=True)


def shared_prompt_log_probs(
    model: nn.Module,
    tokens: Tensor,
    mask: Tensor,
    *,
    group_size: int,
    prompt_lengths: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Return ``token_log_probs``, computing each prompt once for all rows that begin with it.

    P prompts and their P G completions take ``P L + P G R`` tokens instead of ``P G (L + R)``.
    Models that the decoder does not know, and sliding windows shorter than a row, take the plain
    pass.

    Args:
        model: As for ``token_log_probs``.
        tokens: ``(P G, T)`` int64; row ``p * group_size + g`` begins with prompt p.
        mask: ``(P G, T)`` bool, the wanted columns.
        group_size: G.
        prompt_lengths: ``(P,)``, tokens of each prompt, at least 1.
        temperature: Divides the logits.
    """
    if isinstance(model, Routed):
        return model.call(
            shared_prompt_log_probs,
            tokens,
            mask,
            group_size=group_size,
            prompt_lengths=prompt_lengths,
            temperature=temperature,
        )
    shared = (group_size, prompt_lengths)
    return _shared(model, tokens, mask, shared, temperature, with_entropy=False)[0]


def shared_prompt_log_probs_and_entropy(
    model: nn.Module,
    tokens: Tensor,
    mask: Tensor,
    *,
    group_size: int,
    prompt_lengths: Tensor,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return ``shared_prompt_log_probs`` and the entropy, as ``token_log_probs_and_entropy``."""
    if isinstance(model, Routed):
        return model.call(
            shared_prompt_log_probs_and_entropy,
            tokens,
            mask,
            group_size=group_size,
            prompt_lengths=prompt_lengths,
            temperature=temperature,
        )
    shared = (group_size, prompt_lengths)
    return _shared(model, tokens, mask, shared, temperature, with_entropy=True)


@dataclass(frozen=True, slots=True)
class _Plan:
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


def _plain(
    model: nn.Module,
    tokens: Tensor,
    mask: Tensor | None,
    position_ids: Tensor | None,
    temperature: float,
    *,
    with_entropy: bool,
) -> tuple[Tensor, Tensor]:
    _check(tokens, mask, position_ids, temperature)
    starts = _document_starts(tokens, position_ids)
    wanted = ~starts if mask is None else mask.bool() & ~starts
    if not _decodable(model):
        return portable_log_probs(
            model, tokens, wanted, starts, position_ids, temperature, with_entropy=with_entropy
        )
    decoder = read_decoder(model)
    plan = _plan(wanted, starts, position_ids)
    return _compute(decoder, tokens, plan, temperature, with_entropy=with_entropy)


def _decodable(model: nn.Module) -> bool:
    return unsupported(model) is None and not has_dropout(model)


def _shared(
    model: nn.Module,
    tokens: Tensor,
    mask: Tensor,
    shared: tuple[int, Tensor],
    temperature: float,
    *,
    with_entropy: bool,
) -> tuple[Tensor, Tensor]:
    group_size, prompt_lengths = shared
    _check(tokens, mask, None, temperature)
    prompt_lengths = _check_shared(tokens, group_size, prompt_lengths)
    decoder = read_decoder(model) if len(tokens) and _decodable(model) else None
    if decoder is None or any(
        layer.window is not None and layer.window < tokens.shape[1] for layer in decoder.layers
    ):
        return _plain(model, tokens, mask, None, temperature, with_entropy=with_entropy)
    wanted = mask.bool() & ~_document_starts(tokens, None)
    plan = _shared_plan(wanted, group_size, prompt_lengths)
    return _compute(decoder, tokens, plan, temperature, with_entropy=with_entropy)


def _check(
    tokens: Tensor, mask: Tensor | None, position_ids: Tensor | None, temperature: float
) -> None:
    if tokens.dim() != 2:
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}, expected (B, T)")
    for name, other in (("mask", mask), ("position_ids", position_ids)):
        if other is not None and other.shape != tokens.shape:
            raise ValueError(
                f"{name} has shape {tuple(other.shape)}, but tokens {tuple(tokens.shape)}: "
                "each column needs both"
            )
    if not 0 < temperature < float("inf"):
        raise ValueError(
            f"temperature={temperature}: log-probs are of logits / temperature, "
            "so it must be positive and finite"
        )


def _check_shared(tokens: Tensor, group_size: int, prompt_lengths: Tensor) -> Tensor:
    lengths = torch.as_tensor(prompt_lengths, device=tokens.device).long()
    if group_size < 1 or lengths.dim() != 1 or len(lengths) * group_size != len(tokens):
        raise ValueError(
            f"got {len(tokens)} rows, prompt_lengths of shape {tuple(lengths.shape)} and "
            f"group_size={group_size}: the rows must be prompts times group_size"
        )
    if len(lengths) and not (1 <= int(lengths.min()) and int(lengths.max()) <= tokens.shape[1]):
        raise ValueError(
            f"prompt_lengths lie between {int(lengths.min())} and {int(lengths.max())}, "
            f"expected between 1 and the rows' {tokens.shape[1]} columns"
        )
    groups = tokens.view(-1, group_size, tokens.shape[1]) if len(tokens) else tokens[:, None]
    own = torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None, None]
    same = (groups == groups[:, :1]) | own
    if not bool(same.all()):
        p, g, t = (int(i) for i in (~same).nonzero()[0])
        raise ValueError(
            f"row {p * group_size + g} differs from row {p * group_size} at column {t}, within "
            f"the prompt of {int(lengths[p])} tokens that their group of {group_size} shares"
        )
    return lengths


def _document_starts(tokens: Tensor, position_ids: Tensor | None) -> Tensor:
    starts = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
    starts[:, :1] = True
    if position_ids is not None:
        starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    return starts


def _plan(wanted: Tensor, starts: Tensor, position_ids: Tensor | None) -> _Plan | None:
    """Each document up to the token before its last wanted one; None if nothing is wanted."""
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
    return _Plan(
        sources=_extended(sources, spare),
        positions=_extended(positions, spare),
        layout=layout,
        predictors=ranks[columns - 1],
        columns=columns,
    )


def _shared_plan(wanted: Tensor, group_size: int, prompt_lengths: Tensor) -> _Plan | None:
    """The prompts, each once, then what each row needs beyond its prompt."""
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
    return _Plan(
        sources=_extended(sources, spare),
        positions=_extended(sources % width, spare),
        layout=layout,
        predictors=predictors,
        columns=columns,
    )


def _extended(x: Tensor, by: int) -> Tensor:
    return torch.cat((x, x[:1].expand(by))) if by else x


def _compute(
    decoder: Decoder, tokens: Tensor, plan: _Plan | None, temperature: float, *, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    """Run the plan; without one, run a single token whose result counts nothing."""
    counts = plan is not None
    if plan is None:
        one = torch.zeros(1, dtype=torch.int64, device=tokens.device)
        layout = sequences(torch.ones_like(one))
        zeros = one.expand(rounded(1))
        plan = _Plan(zeros, zeros, layout, one, one)
        fed, targets = zeros, one
    else:
        flat = tokens.reshape(-1).long()
        fed, targets = flat[plan.sources], flat[plan.columns]
    spare = rounded(len(plan.predictors)) - len(plan.predictors)
    predictors = _extended(plan.predictors, spare)
    figures, entropies = head_log_probs(
        decoder.hidden_states(fed, plan.positions, plan.layout, predictors),
        decoder.head.weight,
        decoder.head.bias,
        _extended(targets, spare),
        temperature,
        with_entropy=with_entropy,
    )
    out = torch.zeros(tokens.numel(), dtype=torch.float32, device=tokens.device)
    entropy = torch.zeros_like(out)
    if not counts:
        return (out + 0.0 * figures.sum()).view(tokens.shape), entropy.view(tokens.shape)
    n = len(plan.columns)
    out = out.index_copy(0, plan.columns, figures[:n])
    if with_entropy:
        entropy[plan.columns] = entropies[:n]
    return out.view(tokens.shape), entropy.view(tokens.shape)


def head_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    *,
    with_entropy: bool,
) -> tuple[Tensor, Tensor]:
    """Return ``(M,)`` float32 log-probs of ``targets`` and entropies of ``hidden @ weight.T``."""
    return _HeadLogProbs.apply(hidden, weight, bias, targets, temperature, with_entropy)


def _chunks(rows: int, vocabulary: int, device: str) -> list[slice]:
    size = max(64, _CHUNK.get(device, 1 << 24) // vocabulary // 64 * 64)
    return [slice(i, min(i + size, rows)) for i in range(0, rows, size)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = product(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1.0 else logits.mul_(1.0 / temperature)


class _HeadLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.temperature = temperature
        kind = torch.promote_types(hidden.dtype, torch.float32)
        figures = torch.empty(len(hidden), dtype=kind, device=hidden.device)
        entropies = torch.empty_like(figures)
        for rows in _chunks(len(hidden), len(weight), hidden.device.type):
            logits = _logits(hidden[rows], weight, bias, temperature)
            log_probs = torch.log_softmax(logits, -1)
            figures[rows] = log_probs.gather(1, targets[rows, None]).squeeze(1)
            if with_entropy:
                entropies[rows] = -torch.softmax(logits, -1).mul_(log_probs).sum(-1)
        ctx.mark_non_differentiable(entropies)
        return figures, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_weight = torch.zeros_like(weight) if for_weight else None
        grad_bias = torch.zeros_like(bias) if for_bias and bias is not None else None
        for rows in _chunks(len(hidden), len(weight), hidden.device.type):
            logits = _logits(hidden[rows], weight, bias, ctx.temperature)
            scale = grad[rows, None] / ctx.temperature
            into = torch.softmax(logits, -1).mul_(-scale)
            into.scatter_add_(1, targets[rows, None], scale)
            into = into.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = product(into, weight.t())
            if grad_weight is not None:
                grad_weight += outer(into, hidden[rows])
            if grad_bias is not None:
                grad_bias += into.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None
