"""Sampling completions from a policy while it is being trained."""

from __future__ import annotations

import operator
import warnings
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate, chain

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from generative.attention.decoder_lm import DecoderLM
from launch.backends import unwrap
from posttrain.decoder import Decoder, Untyped, read_decoder, unsupported
from posttrain.decoder_positions import most_positions
from posttrain.rollout.batch import Rollout, Sampling
from posttrain.rollout.completion import Completions, Session, complete
from posttrain.rollout.decoding import Decoding
from posttrain.rollout.portable import Portable, evaluating
from posttrain.rollout.sampling import completion_keys
from posttrain.rollout.stateful import StatefulDecoding, stateful_turns

__all__ = ["Engine"]

_CACHE_BYTES = 4 << 30
"""Beyond this, prompts are taken in turns; the result is the same."""
_SMALL = 8_000_000
"""Parameters up to which a step's compiled loops are worth loading: those of larger models take
their time in matrix products."""


class Engine:
    """Draws completions: token-in, token-out, from the model's own parameters, without copies.

    An optimizer's update is seen by the next ``generate``. Adapters are merged into copies of the
    weights that they change, anew for every ``generate``. Llama, Qwen2, Qwen3 and Mistral models
    have a decoder of their own, and a ``generative.attention.decoder_lm.DecoderLM`` keeps the state
    of its mixers; others run through ``model.forward``, which a warning says.

    Args:
        model: A causal language model, or one prepared by a runtime.
    """

    def __init__(self, model: nn.Module) -> None:
        inner = unwrap(model)
        if isinstance(inner, nn.parallel.DistributedDataParallel):
            inner = inner.module
        self.model: Untyped = inner
        self._warned = False
        self._decodable()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        group_size: int = 1,
        *,
        seeds: Sequence[int] | None = None,
    ) -> Rollout:
        """Sample ``group_size`` completions of each prompt.

        Completion g of a prompt depends on the prompt, its seed, g, the weights and ``sampling``
        alone, up to float rounding: not on other prompts, their order, ``group_size`` or any
        global random state.

        Args:
            prompts: P sequences of token ids, none of them empty.
            sampling: Temperature, top-k, top-p, stop tokens, the most tokens.
            group_size: G.
            seeds: One integer a prompt; 0, 1, ... by default.

        Returns:
            Row ``p * group_size + g`` is completion g of prompt p. The model's training mode and
            gradients are as before.
        """
        rows = self._prompts(prompts, sampling.max_tokens)
        group_size = _group_size(group_size)
        device = next(self.model.parameters()).device
        keys = completion_keys(_seeds(seeds, len(rows)), group_size).to(device)
        into = Completions(len(keys), sampling, device)
        decodable = self._decodable()
        with _sampling_mode(self.model, decodable):
            for session, turn in self._sessions(rows, group_size, sampling.max_tokens, decodable):
                places = torch.tensor(turn, device=device)[:, None] * group_size
                chosen = (places + torch.arange(group_size, device=device)).view(-1)
                complete(session, chosen, keys, sampling, into)
        return _assembled(rows, group_size, into, _padding(self.model))

    def _decodable(self) -> bool:
        if isinstance(self.model, DecoderLM):
            return False
        reason = unsupported(self.model)
        if reason is not None and not self._warned:
            self._warned = True
            warnings.warn(
                f"sampling runs through model.forward, which is slower: {reason}", stacklevel=3
            )
        return reason is None

    def _prompts(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Tensor]:
        if isinstance(self.model, DecoderLM):
            config = self.model.config
            return _as_rows(prompts, max_tokens, config.vocabulary, config.most_tokens)
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        return _as_rows(prompts, max_tokens, vocabulary, most_positions(self.model.config))

    def _sessions(
        self, rows: Sequence[Tensor], group_size: int, max_tokens: int, decodable: bool
    ) -> Iterator[tuple[Session, list[int]]]:
        """Yield what completes some of the prompts, and which."""
        if decodable:
            decoder = read_decoder(self.model, merged=True)
            kind = _compiled_decoding() if _compiles(self.model, decoder) else Decoding
            for turn in _turns(rows, decoder, group_size, max_tokens):
                yield kind(decoder, [rows[p] for p in turn], group_size, max_tokens), turn
        elif isinstance(model := self.model, DecoderLM):
            alike = _equally_long(rows)
            for turn in stateful_turns(model, alike, rows, group_size, max_tokens, _CACHE_BYTES):
                own = [rows[p] for p in turn]
                yield StatefulDecoding(model, own, group_size, max_tokens), turn
        else:
            for turn in _equally_long(rows):
                yield Portable(self.model, [rows[p] for p in turn], group_size, max_tokens), turn


def _as_rows(
    prompts: Sequence[Sequence[int]], max_tokens: int, vocabulary: int, most: int | None
) -> list[Tensor]:
    """Return the prompts as tensors, or raise ValueError for what cannot be continued."""
    rows = [row.tolist() if isinstance(row, Tensor) else list(row) for row in prompts]
    for p, row in enumerate(rows):
        if not row:
            raise ValueError(
                f"prompt {p} is empty: the model continues at least one token; begin with the "
                "tokenizer's bos token"
            )
        if most is not None and len(row) + max_tokens > most:
            raise ValueError(
                f"prompt {p} has {len(row)} tokens; with max_tokens={max_tokens} that is "
                f"beyond the model's {most} positions: shorten the prompt or max_tokens"
            )
    flat = torch.tensor(list(chain.from_iterable(rows)) or [0])
    if flat.dtype != torch.int64 or flat.dim() != 1:
        raise ValueError(f"prompts hold {flat.dtype} values, expected integer token ids")
    wrong = ((flat < 0) | (flat >= vocabulary)).nonzero().view(-1)
    if len(wrong):
        ends = list(accumulate(len(row) for row in rows))
        raise ValueError(
            f"prompt {bisect_right(ends, int(wrong[0]))} has token {int(flat[wrong[0]])}, but "
            f"the model's ids go from 0 to {vocabulary - 1}: was it encoded with another "
            "tokenizer?"
        )
    return list(flat.split([len(row) for row in rows])) if rows else []


def _group_size(group_size: int) -> int:
    try:
        count = operator.index(group_size)
    except TypeError:
        raise TypeError(f"group_size={group_size!r}: give an integer, at least 1") from None
    if count < 1:
        raise ValueError(f"group_size={count}: a prompt needs at least one completion")
    return count


def _seeds(seeds: Sequence[int] | None, count: int) -> list[int]:
    """Return one Python integer a prompt; NumPy's and torch's integers are taken too."""
    if seeds is None:
        return list(range(count))
    try:
        found = [operator.index(seed) for seed in seeds]
    except TypeError:
        raise TypeError(f"seeds={seeds!r}: give a sequence of integers, one per prompt") from None
    if len(found) != count:
        raise ValueError(f"got {len(found)} seeds for {count} prompts: give one integer per prompt")
    return found


@contextmanager
def _sampling_mode(model: Untyped, decodable: bool) -> Iterator[None]:
    """Gradients, autocast and, where the model's own forward runs, dropout are off inside."""
    with ExitStack() as stack:
        # A forward may keep what it computes (rotary tables), so it gets no inference tensors.
        stack.enter_context(torch.inference_mode() if decodable else torch.no_grad())
        stack.enter_context(torch.autocast(next(model.parameters()).device.type, enabled=False))
        if not decodable:
            stack.enter_context(evaluating(model))
        yield


def _compiles(model: Untyped, decoder: Decoder) -> bool:
    """Whether compiled loops, which run on one thread, take less time than torch's operations."""
    return (
        decoder.size <= _SMALL
        and torch.get_num_threads() <= 2
        and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
    )


def _compiled_decoding() -> type[Decoding]:
    from posttrain.rollout.compiled import CompiledDecoding  # loads numba

    return CompiledDecoding


def _turns(
    rows: Sequence[Tensor], decoder: Decoder, group_size: int, max_tokens: int
) -> Iterator[list[int]]:
    """Split the prompts so that the caches of those run together fit."""
    if not rows:
        return
    heads, weight = decoder.heads, decoder.embedding.weight
    token = 2 * len(decoder.layers) * heads.keys * heads.width * weight.element_size()
    longest = max(len(row) for row in rows)
    at_once = max(1, _CACHE_BYTES // (token * group_size * (longest + max_tokens)))
    for first in range(0, len(rows), at_once):
        yield list(range(first, min(first + at_once, len(rows))))


def _equally_long(rows: Sequence[Tensor]) -> list[list[int]]:
    by_length: dict[int, list[int]] = defaultdict(list)
    for p, row in enumerate(rows):
        by_length[len(row)].append(p)
    return list(by_length.values())


def _padding(model: Untyped) -> int:
    token = getattr(model.config, "pad_token_id", None)
    return token if isinstance(token, int) else 0


def _assembled(rows: Sequence[Tensor], group_size: int, into: Completions, padding: int) -> Rollout:
    """Put prompts and completions side by side."""
    device = into.tokens.device
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64, device=device)
    lengths = lengths.repeat_interleave(group_size)[:, None]
    ends = lengths + into.lengths[:, None]
    width = int(ends.max()) if len(rows) else 0
    columns = torch.arange(width, device=device)
    mask = (columns >= lengths) & (columns < ends)
    tokens = torch.full(mask.shape, padding, dtype=torch.int64, device=device)
    if len(rows):
        prompts = pad_sequence(list(rows), batch_first=True, padding_value=padding)
        tokens[:, : prompts.shape[1]] = prompts.to(device).repeat_interleave(group_size, 0)
    sources = (columns - lengths).clamp(0, len(into.tokens) - 1)

    def placed(x: Tensor) -> Tensor:
        return x.t().gather(1, sources).masked_fill_(~mask, 0)

    old = placed(into.log_probs)
    tempered = old if into.tempered is into.log_probs else placed(into.tempered)
    return Rollout(
        tokens=torch.where(mask, placed(into.tokens), tokens),
        mask=mask,
        old_log_probs=old,
        tempered_log_probs=tempered,
        finish_reasons=["stop" if stopped else "length" for stopped in into.stopped.tolist()],
    )
