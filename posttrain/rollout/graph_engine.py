"""Decoding in steps of fixed shape over the trainer's own weights: on CUDA, one graph a step.

A token of a small model takes hundreds of kernels of microseconds, which Python cannot launch as
fast as a GPU runs them. So a step reads and writes buffers that never move, asks nothing of the
host, and is captured once for each number of slots and of columns; then it is replayed. On other
devices the same step simply runs. Every 32 tokens the host looks which completions have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from generative.attention.rotary import turn
from posttrain.decoder import Decoder, DecoderLayer, read_decoder
from posttrain.decoder_adapters import Adapted
from posttrain.decoder_kernels import Affine
from posttrain.rollout.batch import Rollout, Sampling
from posttrain.rollout.completion import Completions
from posttrain.rollout.decoding import Decoding
from posttrain.rollout.engine import (
    _CACHE_BYTES,
    Engine,
    _assembled,
    _group_size,
    _padding,
    _seeds,
    _turns,
)
from posttrain.rollout.sampling import completion_keys, draw, uniforms

__all__ = ["GraphDecoding", "GraphEngine", "bucket"]

Places: TypeAlias = list[tuple[int, torch.dtype, torch.Size]]

_STEPS = 32
"""Tokens between two looks of the host."""
_COLUMNS = 128
"""Attention reads the cache up to a multiple of this; each multiple is a graph of its own."""
_WORTH = 0.75
"""Fewer slots are worth their copies if they are at most this share of the old ones."""
_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""All but cuDNN, which builds a plan for each shape. On CUDA a mask rules flash out."""


class GraphEngine(Engine):
    """``Engine`` with its decoding in CUDA graphs: the same completions, up to float rounding.

    An optimizer's update in place is seen by the next ``generate``; parameters that have moved
    are captured anew. Models without a decoder of their own, and those whose parameters differ
    in type, run as ``Engine`` runs them. In half precision a norm rounds once here, twice there.

    The cache, as large as the largest call so far needed, and the graphs stay in memory until
    the engine goes.

    Args:
        model: A causal language model, or one prepared by a runtime.
    """

    _decoding: GraphDecoding | None = None
    _places: Places | None = None

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        group_size: int = 1,
        *,
        seeds: Sequence[int] | None = None,
    ) -> Rollout:
        """Sample ``group_size`` completions of each prompt; see ``Engine.generate``."""
        mixed = len({parameter.dtype for parameter in self.model.parameters()}) > 1
        if mixed or not self._decodable():
            return super().generate(prompts, sampling, group_size, seeds=seeds)
        rows = self._prompts(prompts, sampling.max_tokens)
        group_size = _group_size(group_size)
        weight = next(self.model.parameters())
        keys = completion_keys(_seeds(seeds, len(rows)), group_size).to(weight.device)
        into = Completions(len(keys), sampling, weight.device)
        # Not inference_mode: what a graph captures must stay writable outside of it.
        with (
            torch.no_grad(),
            torch.autocast(weight.device.type, enabled=False),
            torch.cuda.device_of(weight),
        ):
            decoder = read_decoder(self.model, merged=True)
            turns = list(_turns(rows, decoder, group_size, sampling.max_tokens))
            if turns:
                longest = max(len(row) for row in rows) + sampling.max_tokens
                decoding = self._ready(decoder, bucket(len(turns[0]) * group_size), longest)
            for places in turns:
                logits = decoding.begin([rows[p] for p in places], group_size)
                first, last = places[0] * group_size, (places[-1] + 1) * group_size
                chosen = torch.arange(first, last, device=weight.device)
                decoding.complete(logits, chosen, keys[chosen], sampling, into)
        return _assembled(rows, group_size, into, _padding(self.model))

    def _ready(self, decoder: Decoder, rows: int, longest: int) -> GraphDecoding:
        """Return buffers that are large enough, with the weights as they are now."""
        tensors = chain(self.model.parameters(), self.model.buffers())
        places = [(x.data_ptr(), x.dtype, x.shape) for x in tensors]
        columns = _multiple(longest)
        held = self._decoding
        if held is not None and places == self._places:
            if held.rows >= rows and held.columns >= columns:
                held.refresh(decoder)
                return held
            # Calls of two shapes that alternate should meet in one, unless that is far too large.
            both = max(held.rows, rows), max(held.columns, columns)
            if both[0] * both[1] * held.token_bytes <= _CACHE_BYTES:
                rows, columns = both
        held = self._decoding = None  # its memory goes first
        self._decoding, self._places = GraphDecoding(decoder, rows, columns), places
        return self._decoding


class GraphDecoding:
    """Completions extended token by token, in buffers that never move.

    Prompts lie right-aligned, each slot with a copy of its prompt's keys and values. So all slots
    write the same column, whose number is a buffer too.

    Args:
        decoder: Its tensors are read wherever they lie now.
        rows: Most slots.
        columns: Most tokens of a slot, a multiple of 128.
    """

    def __init__(self, decoder: Decoder, rows: int, columns: int) -> None:
        weight, heads = decoder.embedding.weight, decoder.heads
        zeros = partial(torch.zeros, device=weight.device)
        shape = (2, rows, heads.keys, columns, heads.width)
        self.decoder, self.rows, self.columns = decoder, rows, columns
        self.eps = float(decoder.eps)
        self.exact = torch.promote_types(weight.dtype, torch.float32)
        self.caches = [zeros(shape, dtype=weight.dtype) for _ in decoder.layers]
        self.token_bytes = sum(cache[:, 0, :, 0].nbytes for cache in self.caches)
        self.places = torch.arange(columns, device=weight.device)
        self.tokens = zeros(rows, dtype=torch.int64)  # each slot's last
        self.starts = zeros(rows, dtype=torch.int64)  # each slot's first column
        self.column = zeros(1, dtype=torch.int64)  # where the next token goes
        self.step_number = zeros(1, dtype=torch.int64)  # since the host last looked
        self.numbers = zeros(_STEPS, rows, dtype=torch.float64)
        self.drawn = zeros(_STEPS, rows, dtype=torch.int64)
        self.log_probs, self.tempered = zeros(_STEPS, rows), zeros(_STEPS, rows)
        self.width = 0  # columns of the prompts
        self.replays: dict[tuple[int, int, float, int, float], Callable[[], object]] = {}
        on_gpu = weight.device.type == "cuda"
        self.stream = torch.cuda.Stream() if on_gpu else None
        self.pool = torch.cuda.graph_pool_handle() if on_gpu else None

    def refresh(self, decoder: Decoder) -> None:
        """Take over what ``read_decoder`` copies; everything else is the parameters themselves."""
        for old, new in zip(self.decoder.layers, decoder.layers, strict=True):
            for name in ("qkv", "qkv_bias", "qk_norm"):
                if (joined := getattr(new, name)) is not None:
                    getattr(old, name).copy_(joined)
            for name in ("output", "gate", "up", "down"):
                if isinstance(merged := getattr(new, name), Adapted):
                    getattr(old, name).weight.copy_(merged.weight)

    def begin(self, prompts: Sequence[Tensor], group_size: int) -> Tensor:
        """Run every prompt once and copy it to its slots; return the first tokens' logits.

        Slot ``p * group_size + g`` is completion g of prompt p; beyond them, slots that round the
        number up repeat the last.
        """
        prefill = Decoding(self.decoder, prompts, group_size=1, max_tokens=1)
        logits = prefill.start()
        rows, self.width = bucket(len(prompts) * group_size), prefill.width
        source = torch.arange(rows, device=logits.device) // group_size
        source.clamp_(max=len(prompts) - 1)
        for i, cache in enumerate(self.caches):
            cache.zero_()  # a NaN left behind an -inf would still be a NaN
            for part, filled in zip(
                cache, (prefill.own.keys(i), prefill.own.values(i)), strict=True
            ):
                part[:rows, :, : self.width] = filled[source, :, : self.width]
        self.starts[:rows] = self.width - prefill.lengths.to(source.device)[source]
        self.column.fill_(self.width)
        return logits[source]

    def complete(
        self, logits: Tensor, rows: Tensor, keys: Tensor, sampling: Sampling, into: Completions
    ) -> None:
        """Sample until every completion has stopped or is full.

        Args:
            logits: Of ``begin``.
            rows: ``(slots,)`` int64, which rows of ``into`` the slots are.
            keys: ``(slots,)`` of ``completion_keys``.
            sampling: How.
            into: Receives the results; beyond a completion's length it holds anything.
        """
        size, vocabulary = logits.shape
        known = [token for token in sampling.stop_tokens if 0 <= token < vocabulary]
        stops = torch.zeros(vocabulary, dtype=torch.bool, device=rows.device)
        stops[known] = True
        alive = torch.ones_like(rows, dtype=torch.bool)
        for t in range(0, sampling.max_tokens, _STEPS):
            count = min(_STEPS, sampling.max_tokens - t)
            self.step_number.zero_()
            self.numbers[:count, : len(rows)] = uniforms(keys, t, t + count)
            if t == 0:
                self._record(logits, sampling)
            self._run(count - (t == 0), size, _multiple(self.width + t + count), sampling)
            drawn = self._collect(t, count, rows, into)
            if not known:
                continue
            hits = stops[drawn] & alive
            ended, first = hits.any(0), hits.int().argmax(0)
            into.lengths[rows[ended]] = t + 1 + first[ended]
            into.stopped[rows[ended]] = True
            alive &= ~ended
            left = alive.nonzero().view(-1)
            if len(left) == 0:
                return
            if bucket(len(left)) <= _WORTH * size:
                size = bucket(len(left))
                self._keep(torch.cat((left, left[:1].expand(size - len(left)))))
                rows, keys, alive = rows[left], keys[left], alive[left]

    def _collect(self, t: int, count: int, rows: Tensor, into: Completions) -> Tensor:
        """Hand over what the last steps drew; return its ``(count, slots)`` tokens."""
        of_slots = slice(0, count), slice(0, len(rows))
        into.tokens[t : t + count].index_copy_(1, rows, self.drawn[of_slots])
        into.log_probs[t : t + count].index_copy_(1, rows, self.log_probs[of_slots])
        if into.tempered is not into.log_probs:
            into.tempered[t : t + count].index_copy_(1, rows, self.tempered[of_slots])
        return self.drawn[of_slots]

    def _keep(self, slots: Tensor) -> None:
        """Move the given slots to the front, in that order."""
        n = len(slots)
        for cache in self.caches:
            cache[:, :n] = cache.index_select(1, slots)
        self.tokens[:n] = self.tokens[slots]
        self.starts[:n] = self.starts[slots]

    def _run(self, steps: int, rows: int, columns: int, sampling: Sampling) -> None:
        """Take steps; the first of its shape is captured after it has run, which warms it up."""
        shape = (rows, columns, sampling.temperature, sampling.top_k, sampling.top_p)
        for _ in range(steps):
            if shape in self.replays:
                self.replays[shape]()
            else:
                self.step(rows, columns, sampling)
                self.replays[shape] = self._captured(partial(self.step, rows, columns, sampling))

    def _captured(self, step: Callable[[], None]) -> Callable[[], object]:
        """Return what repeats a step: the replay of its graph; without CUDA, the step itself."""
        if self.stream is None:
            return step
        graph = torch.cuda.CUDAGraph()
        # Graphs run one at a time and keep nothing, so they share their memory. Other threads,
        # such as those that pin batches, may go on meanwhile.
        with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
            step()
        return graph.replay

    def step(self, rows: int, columns: int, sampling: Sampling) -> None:
        """Append each slot's last token and draw its next, in place and without the host.

        Args:
            rows: Slots, from the first on.
            columns: Of the cache, more than are filled.
            sampling: Temperature, top-k and top-p.
        """
        decoder = self.decoder
        x = decoder.embed(self.tokens[:rows])
        turns = decoder.turns(self.column - self.starts[:rows])[:, None]
        biases = self._biases(rows, columns, x.dtype)
        with sdpa_kernel(_BACKENDS):
            for layer, cache in zip(decoder.layers, self.caches, strict=True):
                qkv = self._project(layer, x, turns)
                x = _added(x, self._attend(cache, qkv, biases[layer.window]), layer.output)
                h = self._norm(x, layer.mlp_norm)
                inner = F.silu(F.linear(h, layer.gate.weight, layer.gate.bias), inplace=True)
                inner.mul_(F.linear(h, layer.up.weight, layer.up.bias))
                x = _added(x, inner, layer.down)
        logits = F.linear(self._norm(x, decoder.norm), decoder.head.weight, decoder.head.bias)
        self._record(logits.float(), sampling)
        self.column.add_(1)

    def _record(self, logits: Tensor, sampling: Sampling) -> None:
        """Draw a token for every slot, and note it with its log-probs."""
        rows = len(logits)
        number = self.numbers[:, :rows].index_select(0, self.step_number).squeeze(0)
        tokens, log_probs, tempered = draw(logits, number, sampling)
        self.tokens[:rows] = tokens
        self.drawn[:, :rows].index_copy_(0, self.step_number, tokens[None])
        self.log_probs[:, :rows].index_copy_(0, self.step_number, log_probs[None])
        self.tempered[:, :rows].index_copy_(0, self.step_number, tempered[None])
        self.step_number.add_(1)

    def _biases(self, rows: int, columns: int, dtype: torch.dtype) -> dict[int | None, Tensor]:
        """Return, for each window of a layer, ``(rows, 1, 1, columns)``: 0 or -inf."""
        places = self.places[:columns]
        attend = (places >= self.starts[:rows, None]) & (places <= self.column)
        biases = {}
        for window in {layer.window for layer in self.decoder.layers}:
            near = attend if window is None else attend & (places > self.column - window)
            bias = torch.zeros(near.shape, dtype=dtype, device=near.device)
            biases[window] = bias.masked_fill_(~near, -torch.inf)[:, None, None]
        return biases

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.eps)

    def _project(self, layer: DecoderLayer, x: Tensor, turns: Tensor) -> Tensor:
        """Return ``(rows, (H + 2 H_kv) K)`` rotated queries, rotated keys, values."""
        heads = self.decoder.heads
        qkv = F.linear(self._norm(x, layer.input_norm), layer.qkv, layer.qkv_bias)
        turned = heads.queries + heads.keys
        qk = qkv[:, : turned * heads.width].unflatten(1, (turned, heads.width))
        exact = qk.to(self.exact)
        if layer.qk_norm is not None:
            exact = F.rms_norm(exact, (heads.width,), None, self.eps) * layer.qk_norm
        qk.copy_(turn(exact, turns))
        return qkv

    def _attend(self, cache: Tensor, qkv: Tensor, bias: Tensor) -> Tensor:
        """Write a column of the cache and attend to all up to it; ``(rows, H K)``.

        Queries that share a key head stand as several queries of that head, so that its keys are
        read once and never repeated.
        """
        heads, rows = self.decoder.heads, len(qkv)
        from_keys = heads.queries * heads.width
        new = qkv[:, from_keys:].view(rows, 2, heads.keys, 1, heads.width).transpose(0, 1)
        cache = cache[:, :rows]
        cache.index_copy_(3, self.column, new)
        keys, values = cache[:, :, :, : bias.shape[-1]]
        queries = qkv[:, :from_keys].view(rows, heads.keys, -1, heads.width)
        out = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=bias, scale=heads.scale
        )
        return out.reshape(rows, -1)


def bucket(count: int) -> int:
    """Return the least of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is not below ``count``.

    >>> [bucket(n) for n in (1, 3, 5, 7, 90, 100, 128, 129)]
    [1, 3, 6, 8, 96, 128, 128, 192]
    """
    power = 1 << (count - 1).bit_length()
    less = power - power // 4
    return less if count <= less else power


def _multiple(columns: int) -> int:
    return -(-columns // _COLUMNS) * _COLUMNS


def _added(x: Tensor, other: Tensor, layer: Affine) -> Tensor:
    """Return ``x + layer(other)``, in place."""
    if layer.bias is None:
        return x.addmm_(other, layer.weight.t())
    return x.add_(F.linear(other, layer.weight, layer.bias))
