"""Log-probabilities of tokens under a model: the only place where logits meet shifted tokens.

Hidden states are computed for the tokens that some wanted column depends on and for no others;
the head and its softmax see the wanted columns alone, chunk by chunk, and are computed again in
the backward pass. So a ``(B, T, V)`` tensor never exists.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from launch.backends import Routed
from posttrain.decoder import Decoder, has_dropout, read_decoder, unsupported
from posttrain.log_probs_divergence import Between, Compared, head_divergences
from posttrain.log_probs_head import head_log_probs
from posttrain.log_probs_plan import Plan, empty_plan, plain_plan, planned_states, shared_plan
from posttrain.log_probs_portable import portable_divergences, portable_log_probs

__all__ = [
    "shared_prompt_log_probs",
    "shared_prompt_log_probs_and_entropy",
    "token_divergences",
    "token_log_probs",
    "token_log_probs_and_entropy",
]

_LEAST = 1e-30  # temperatures below are taken as this one: their reciprocals leave float32


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


def token_divergences(
    student: nn.Module,
    teacher: nn.Module,
    tokens: Tensor,
    mask: Tensor,
    between: Between,
    *,
    temperature: float = 1.0,
) -> Compared:
    """Compare two models' next-token distributions at the wanted columns.

    Like log-probabilities, what stands in column t is about ``tokens[:, t]``: the distributions
    are those that it is drawn from, given the tokens before it. Logits of either model exist for
    some columns at a time.

    Args:
        student: As for ``token_log_probs``; gradients flow to it alone.
        teacher: A model of the same vocabulary, on the same device.
        tokens: ``(B, T)`` int64, rows padded on the right.
        mask: ``(B, T)`` bool, the wanted columns.
        between: The divergence, such as ``ReverseKL().between``.
        temperature: Divides the logits of both.

    Returns:
        ``(B, T)`` float32 nats each; exactly 0 in column 0 and where ``mask`` is False. With no
        rows, or none wanted, it still hangs on every parameter, with gradient zero.

    Raises:
        ValueError: The models give logits of different vocabularies.
    """
    if isinstance(student, Routed):
        return student.call(
            token_divergences, teacher, tokens, mask, between, temperature=temperature
        )
    _check(tokens, mask, None, temperature)
    temperature = max(temperature, _LEAST)
    starts = _document_starts(tokens, None)
    wanted = mask.bool() & ~starts
    if not (_decodable(student) and _decodable(teacher)):
        return portable_divergences(student, teacher, tokens, wanted, starts, between, temperature)
    return _compare(
        student, teacher, tokens, plain_plan(wanted, starts, None), between, temperature
    )


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
    temperature = max(temperature, _LEAST)
    starts = _document_starts(tokens, position_ids)
    wanted = ~starts if mask is None else mask.bool() & ~starts
    if not _decodable(model):
        return portable_log_probs(
            model, tokens, wanted, starts, position_ids, temperature, with_entropy=with_entropy
        )
    decoder = read_decoder(model)
    plan = plain_plan(wanted, starts, position_ids)
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
    temperature = max(temperature, _LEAST)
    prompt_lengths = _check_shared(tokens, group_size, prompt_lengths)
    decoder = read_decoder(model) if len(tokens) and _decodable(model) else None
    if decoder is None or any(
        window is not None and window < tokens.shape[1] for window in decoder.windows
    ):
        return _plain(model, tokens, mask, None, temperature, with_entropy=with_entropy)
    wanted = mask.bool() & ~_document_starts(tokens, None)
    plan = shared_plan(wanted, group_size, prompt_lengths)
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
    if len(lengths) and not (int(lengths.min()) >= 1 and int(lengths.max()) <= tokens.shape[1]):
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


def _compare(
    student: nn.Module,
    teacher: nn.Module,
    tokens: Tensor,
    plan: Plan | None,
    between: Between,
    temperature: float,
) -> Compared:
    """Run the plan through both models, as ``_compute`` runs it through one."""
    ours = read_decoder(student)
    theirs = read_decoder(teacher)
    counts = plan is not None
    plan = empty_plan(tokens.device) if plan is None else plan
    fed = tokens.reshape(-1).long()[plan.sources] if counts else plan.sources
    hidden = ours.hidden_states(fed, plan.positions, plan.layout, plan.predictors)
    with torch.no_grad():
        seen = theirs.hidden_states(fed, plan.positions, plan.layout, plan.predictors)
    found = head_divergences(hidden, ours.head, seen, theirs.head, between, temperature)
    out = torch.zeros(tokens.numel(), dtype=torch.float32, device=tokens.device)
    if not counts:
        nothing = out.view(tokens.shape)
        return Compared(nothing + 0.0 * found.divergence.sum().float(), nothing, nothing)
    spread = [out.index_copy(0, plan.columns, x.float()).view(tokens.shape) for x in found]
    return Compared(*spread)


def _compute(
    decoder: Decoder, tokens: Tensor, plan: Plan | None, temperature: float, *, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    """Run the plan and look up what each state says of its token."""
    states, targets = planned_states(decoder, tokens, plan)
    figures, entropies = head_log_probs(
        states,
        decoder.head.weight,
        decoder.head.bias,
        targets,
        temperature,
        with_entropy=with_entropy,
    )
    out = torch.zeros(tokens.numel(), dtype=torch.float32, device=tokens.device)
    entropy = torch.zeros_like(out)
    if plan is None:
        return (out + 0.0 * figures.sum().float()).view(tokens.shape), entropy.view(tokens.shape)
    n = len(plan.columns)
    out = out.index_copy(0, plan.columns, figures[:n].float())
    if with_entropy:
        entropy[plan.columns] = entropies[:n].float()
    return out.view(tokens.shape), entropy.view(tokens.shape)
