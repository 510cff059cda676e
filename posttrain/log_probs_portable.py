"""Log-probabilities through a model's own ``forward``, for models that the decoder does not know.

Whatever stands between hidden states and logits (a scale, a cap) is the model's own, hence right.
Where that is known to be a matrix and no more, logits are computed chunk by chunk. Every document
is a row of its own, so packed documents cannot leak into each other; a few rows at a time are run,
and run again in the backward pass, so logits of the whole batch never exist.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from launch.errors import UsageError
from launch.placement import has_own_hooks, is_marked
from posttrain.decoder import Untyped
from posttrain.decoder_positions import forget_lengths, same_frequencies_up_to
from posttrain.log_probs_divergence import Between, Compared, compare_logits
from posttrain.log_probs_head import head_log_probs

__all__ = ["call_model", "portable_divergences", "portable_log_probs", "portable_states"]

_LOGITS = 1 << 21  # at a time, unless one row has more
_TOKENS = 1 << 12  # at a time, where logits are computed chunk by chunk
_MATRIX_HEADS = (
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)


def call_model(model: nn.Module, tokens: Tensor, **named: Tensor) -> Tensor:
    """Return ``(B, T, V)`` logits of ``(B, T)`` tokens, in at least float32.

    ``named`` (``attention_mask``, ``position_ids``) is left out where ``forward`` does not take
    it and the value says no more than its absence.
    """
    parameters = inspect.signature(model.forward).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = {name: x for name, x in named.items() if takes_all or name in parameters}
    cache = {"use_cache": False} if "use_cache" in parameters else {}
    output = model(tokens, **known, **cache)
    logits = output if isinstance(output, Tensor) else output.logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def portable_log_probs(
    model: nn.Module,
    tokens: Tensor,
    wanted: Tensor,
    starts: Tensor,
    position_ids: Tensor | None,
    temperature: float,
    *,
    with_entropy: bool,
) -> tuple[Tensor, Tensor]:
    """Return ``(B, T)`` log-probs and entropies.

    Args:
        model: Anything whose ``forward`` gives logits.
        tokens: ``(B, T)``.
        wanted: ``(B, T)`` bool, never True at a document's first column.
        starts: ``(B, T)`` bool, True at each document's first column.
        position_ids: ``(B, T)`` or None.
        temperature: Divides the logits.
        with_entropy: Otherwise the entropies are zeros.
    """
    out = torch.zeros(tokens.numel(), dtype=torch.float32, device=tokens.device)
    entropy = torch.zeros_like(out)
    if not bool(wanted.any()):
        fed, named, follows = _one(tokens)
        found, _ = _chosen(
            model, fed, named, follows, fed[0], temperature, with_entropy=with_entropy
        )
        return (out + 0.0 * found.sum()).view(tokens.shape), entropy.view(tokens.shape)
    places, figures = [], []
    flat = tokens.reshape(-1).long()
    alone = _frequencies_change(model, wanted, position_ids)
    at_once = _in_passes(1 if alone else _tokens_at_once(model, tokens.numel()), model)
    for rows in _rows(wanted, starts, at_once, whole=alone):
        fed, named, follows = _inputs(flat, wanted, rows, position_ids)
        columns = rows[follows] + 1
        found, spread = _chosen(
            model, fed, named, follows, flat[columns], temperature, with_entropy=with_entropy
        )
        places.append(columns)
        figures.append(found)
        if with_entropy:
            entropy[columns] = spread
    out = out.index_copy(0, torch.cat(places), torch.cat(figures).to(torch.float32))
    return out.view(tokens.shape), entropy.view(tokens.shape)


def portable_states(
    model: nn.Module, tokens: Tensor, wanted: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ``(M, D)`` last hidden states and the ``(M,)`` of B T columns that they predict.

    With nothing wanted, one state of no column. Arguments are those of ``portable_log_probs``.
    """
    if not bool(wanted.any()):
        fed, named, follows = _one(tokens)
        one = checkpoint(_hidden_states, model, fed, named, follows, use_reentrant=False)
        return one, fed[0, :0]
    flat = tokens.reshape(-1).long()
    alone = _frequencies_change(model, wanted, None)
    at_once = 1 if alone else max(_TOKENS, _tokens_at_once(model, tokens.numel()))
    at_once = _in_passes(at_once, model)
    places: list[Tensor] = []
    states: list[Tensor] = []
    for rows in _rows(wanted, starts, at_once, whole=alone):
        fed, named, follows = _inputs(flat, wanted, rows, None)
        states.append(checkpoint(_hidden_states, model, fed, named, follows, use_reentrant=False))
        places.append(rows[follows] + 1)
    return torch.cat(states), torch.cat(places)


def _one(tokens: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Return the arguments of a pass over one token, for a process that has none.

    The pass is as the others', so that a strategy gathers as often for it as they do.
    """
    fed = torch.zeros((1, 1), dtype=torch.int64, device=tokens.device)
    real = torch.ones_like(fed)
    return fed, {"attention_mask": real}, real.bool()


def _inputs(
    flat: Tensor, wanted: Tensor, rows: Tensor, position_ids: Tensor | None
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Return the tokens of ``(S, L)`` rows, what ``forward`` is told, and who predicts a wanted."""
    real = rows >= 0
    fed = flat[rows.clamp(min=0)].masked_fill(~real, 0)
    named = {"attention_mask": real.long()}
    if position_ids is not None:
        positions = position_ids.reshape(-1)[rows.clamp(min=0)].masked_fill(~real, 0)
        if bool((positions[:, 0] != 0).any()):
            named["position_ids"] = positions
    follows = wanted.view(-1)[(rows + 1).clamp(max=wanted.numel() - 1)] & real
    follows &= rows + 1 < wanted.numel()
    return fed, named, follows


def _chosen(
    model: nn.Module,
    fed: Tensor,
    named: dict[str, Tensor],
    follows: Tensor,
    targets: Tensor,
    temperature: float,
    *,
    with_entropy: bool,
) -> tuple[Tensor, Tensor]:
    """Return log-probs of the targets, and entropies, where ``(S, L)`` ``follows`` is True."""
    head = _matrix_head(model)
    if head is None:
        found: tuple[Tensor, Tensor] = checkpoint(
            _by_forward, model, fed, named, follows, targets, temperature, use_reentrant=False
        )
        return found
    hidden = checkpoint(_hidden_states, model, fed, named, follows, use_reentrant=False)
    hidden = hidden.to(head.weight.dtype)  # autocast may have left another
    return head_log_probs(
        hidden, head.weight, head.bias, targets, temperature, with_entropy=with_entropy
    )


def portable_divergences(
    student: nn.Module,
    teacher: nn.Module,
    tokens: Tensor,
    wanted: Tensor,
    starts: Tensor,
    between: Between,
    temperature: float,
) -> Compared:
    """Return ``(B, T)`` of ``compare_logits``, each model through its own ``forward``."""
    out = torch.zeros((3, tokens.numel()), dtype=torch.float32, device=tokens.device)
    if not bool(wanted.any()):
        found = checkpoint(
            _compare_by_forward,
            *(student, teacher, *_one(tokens), between, temperature),
            use_reentrant=False,
        )
        return _compared(out + 0.0 * found[0].sum(), tokens)
    flat, models = tokens.reshape(-1).long(), (student, teacher)
    alone = any(_frequencies_change(model, wanted, None) for model in models)
    at_once = 1 if alone else max(1, min(_LOGITS // _vocabulary(m) for m in models) // 4)
    at_once = _in_passes(at_once, *models)
    places, figures = [], []
    for rows in _rows(wanted, starts, at_once, whole=alone):
        fed, named, follows = _inputs(flat, wanted, rows, None)
        found = checkpoint(
            _compare_by_forward,
            *(*models, fed, named, follows, between, temperature),
            use_reentrant=False,
        )
        places.append(rows[follows] + 1)
        figures.append(torch.stack(tuple(found)))
    return _compared(out.index_copy(1, torch.cat(places), torch.cat(figures, 1).float()), tokens)


def _compared(figures: Tensor, tokens: Tensor) -> Compared:
    divergence, kl, entropy = figures.view(3, *tokens.shape)
    return Compared(divergence, kl.detach(), entropy.detach())


def _compare_by_forward(
    student: nn.Module,
    teacher: nn.Module,
    fed: Tensor,
    named: dict[str, Tensor],
    follows: Tensor,
    between: Between,
    temperature: float,
) -> Compared:
    forget_lengths(student)
    logits = call_model(student, fed, **named)[follows] / temperature
    with torch.no_grad():
        forget_lengths(teacher)
        theirs = call_model(teacher, fed, **named)[follows] / temperature
    return compare_logits(logits, theirs, between)


def _matrix_head(model: Untyped) -> nn.Linear | None:
    """Return the head if logits are known to be its product with the last hidden states."""
    kind = type(model)
    if kind.__name__ not in _MATRIX_HEADS or not kind.__module__.startswith("transformers.models."):
        return None
    head = model.get_output_embeddings()
    for module in (model, head):
        if "forward" in vars(module) or has_own_hooks(module):
            return None
    return head if type(head) is nn.Linear else None


def _hidden_states(
    model: Untyped, fed: Tensor, named: dict[str, Tensor], follows: Tensor
) -> Tensor:
    forget_lengths(model)
    hidden: Tensor = model.base_model(fed, use_cache=False, **named).last_hidden_state
    return hidden[follows]


def _by_forward(
    model: nn.Module,
    fed: Tensor,
    named: dict[str, Tensor],
    follows: Tensor,
    targets: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    forget_lengths(model)
    logits = call_model(model, fed, **named)[follows] / temperature
    log_probs = torch.log_softmax(logits, -1)
    with torch.no_grad():
        spread = -(log_probs.exp() * log_probs).sum(-1).to(torch.float32)
    return log_probs.gather(1, targets[:, None]).squeeze(1), spread


def _vocabulary(model: nn.Module) -> int:
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    return size if isinstance(size, int) and size > 0 else 1 << 15


def _tokens_at_once(model: nn.Module, count: int) -> int:
    at_once = max(1, _LOGITS // _vocabulary(model))
    if _matrix_head(model) is not None:
        return max(at_once, _TOKENS)
    return min(at_once, -(-count // 4))  # never all logits at once, however few


def _in_passes(at_once: int, *models: nn.Module) -> int:
    """Return how many tokens a pass takes: all, where a strategy gathers what a pass needs.

    Processes that hold other lengths would else gather unequally often, and wait for ever.
    """
    if not any(is_marked(module) for model in models for module in model.modules()):
        return at_once
    if at_once == 1:
        raise UsageError(
            "rows are so long that the model's rotary frequencies depend on their length, so each "
            "is a pass of its own; under strategies zero3 and fsdp processes have to run equally "
            "many: use zero2 or ddp"
        )
    return 1 << 62


def _frequencies_change(model: nn.Module, wanted: Tensor, position_ids: Tensor | None) -> bool:
    """Whether some row is so long that rotary frequencies depend on its length."""
    same_up_to = same_frequencies_up_to(getattr(model, "config", None))
    if same_up_to is None:
        return False
    if position_ids is None:
        return wanted.shape[1] > same_up_to
    return int(position_ids.max()) >= same_up_to


def _rows(wanted: Tensor, starts: Tensor, tokens_at_once: int, *, whole: bool) -> Iterator[Tensor]:
    """Yield ``(S, L)`` flat indices of documents of similar length; -1 is padding.

    A document reaches to the token before its last wanted one, or if ``whole`` to that one, which
    then counts for its length alone; documents without one are left out.
    """
    first = starts.view(-1).nonzero().view(-1)
    document = starts.view(-1).cumsum(0) - 1
    columns = wanted.reshape(-1).nonzero().view(-1)
    lengths = torch.zeros_like(first)
    lengths.scatter_reduce_(0, document[columns], columns - first[document[columns]], "amax")
    order = lengths.argsort(descending=True, stable=True)
    order = order[lengths[order] > 0]
    if whole:
        lengths += 1
    done = 0
    while done < len(order):
        longest = int(lengths[order[done]])
        some = order[done : done + max(1, tokens_at_once // longest)]
        place = torch.arange(longest, device=wanted.device)
        yield torch.where(place < lengths[some, None], first[some, None] + place, -1)
        done += len(some)
