"""Decoding of small models on the CPU: torch multiplies matrices, compiled loops do the rest.

A step of a small model over few slots takes microseconds of arithmetic in some two hundred
operations; calling them one by one would cost as much again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from generative.attention.cache import StaticCache
from posttrain.decoder import Decoder, DecoderLayer
from posttrain.decoder_kernels import Affine, product
from posttrain.decoder_layout import rounded
from posttrain.rollout import compiled_kernels as kernels
from posttrain.rollout.batch import Sampling
from posttrain.rollout.compiled_attention import attend
from posttrain.rollout.decoding import Decoding
from posttrain.rollout.sampling import draw

__all__ = ["CompiledDecoding"]

Floats: TypeAlias = NDArray[np.float32]
Integers: TypeAlias = NDArray[np.int64]
Cache: TypeAlias = list[tuple[Floats, Floats]]
"""Each layer's keys and values, in a ``StaticCache``'s own memory."""

_SHORT = 128
"""Longer prompts are run by torch, whose attention is a matrix product."""
_FAR = 1 << 40


class CompiledDecoding(Decoding):
    """``Decoding`` with compiled loops: the same logits, up to float rounding.

    Args:
        decoder: With parameters in float32 on the CPU; they are read where they lie.
        prompts: Not empty, each of at least one token.
        group_size: Completions of each prompt.
        max_tokens: Most tokens of a completion.
    """

    def __init__(
        self, decoder: Decoder, prompts: Sequence[Tensor], group_size: int, max_tokens: int
    ) -> None:
        super().__init__(decoder, prompts, group_size, max_tokens)
        positions = torch.arange(self.width + max_tokens)
        turns = (decoder.turns(positions)[:, None] * self.scales).flatten(1)
        self.turns: NDArray[np.complex64] = turns.numpy()
        self.starts: Integers = (self.width - self.lengths).numpy()
        self.eps = float(decoder.eps)
        self.layers = [_layer(layer, decoder.heads.width) for layer in decoder.layers]
        self.last_norm: Floats = decoder.norm.detach().numpy()
        self.no_prefix = self._arrays(self._cache(1, 0))
        self._view()

    def _arrays(self, cache: StaticCache) -> Cache:
        layers = range(len(self.decoder.layers))
        return [(cache.keys(i).numpy(), cache.values(i).numpy()) for i in layers]

    def _view(self) -> None:
        """Look at the caches where they lie now."""
        self.prompt_arrays, self.own_arrays = self._arrays(self.before), self._arrays(self.own)
        self.lines_of_slots = np.arange(self.lines).repeat(self.group)

    def _prefill(self, first: int, last: int) -> Tensor:
        """Run some prompts end to end, fill their caches; return their last hidden states."""
        if self.width > _SHORT:
            return super()._prefill(first, last)
        lengths = self.lengths[first:last]
        ends = lengths.cumsum(0)
        real = int(ends[-1])
        tokens = F.pad(torch.cat(list(self.prompts[first:last])), (0, rounded(real) - real))
        lines = torch.arange(first, last).repeat_interleave(lengths)
        columns = torch.arange(real) + (self.width - ends).repeat_interleave(lengths)
        where = lines.numpy(), columns.numpy()
        return self._hidden(tokens, where, self.no_prefix, self.prompt_arrays, ends - 1)

    def advance(self, tokens: Tensor) -> Tensor:
        """Append ``(slots,)`` tokens; return the next logits."""
        columns = self.own.columns
        column = self._next_column()
        if self.own.columns != columns:
            self._view()
        where = self.lines_of_slots, np.full_like(self.lines_of_slots, column)
        prefix = self.prompt_arrays if self.shared else self.no_prefix
        hidden = self._hidden(tokens, where, prefix, self.own_arrays)
        self.step += 1
        return self._logits(hidden)

    def _hidden(
        self,
        tokens: Tensor,
        where: tuple[Integers, Integers],
        prefix: Cache,
        own: Cache,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Run tokens through all layers; ``where`` are their lines and columns of the cache.

        Returns:
            What the head multiplies, of all tokens or of those that are wanted.
        """
        heads = self.decoder.heads
        x = self.decoder.embed(tokens)
        h = torch.empty_like(x)
        attended = x.new_zeros(len(x), heads.queries * heads.width)
        for layer, of_prefix, of_own in zip(self.layers, prefix, own, strict=True):
            kernels.normalize(x.numpy(), layer.input_norm, self.eps, h.numpy())
            qkv = product(h, *layer.qkv)
            attend(
                qkv.numpy(),
                layer.qk_norm,
                self.eps,
                self.turns,
                *where,
                self.starts,
                *of_prefix,
                *of_own,
                layer.back,
                attended.numpy(),
            )
            if wanted is not None and layer is self.layers[-1]:
                x, attended = x.index_select(0, wanted), attended.index_select(0, wanted)
                h = torch.empty_like(x)
            _add_product(x, attended, *layer.output)
            kernels.normalize(x.numpy(), layer.mlp_norm, self.eps, h.numpy())
            inner = product(h, *layer.gate)
            kernels.swiglu(inner.numpy(), product(h, *layer.up).numpy())
            _add_product(x, inner, *layer.down)
        kernels.normalize(x.numpy(), self.last_norm, self.eps, h.numpy())
        return h

    @staticmethod
    def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
        """Draw one token per row; see ``sampling.draw``, the twin and the way of all but plain."""
        if sampling.temperature != 1.0 or sampling.top_k or sampling.top_p < 1.0:
            return draw(logits, uniform, sampling)
        tokens = torch.empty(len(logits), dtype=torch.int64)
        log_probs = torch.empty(len(logits))
        kernels.draw(logits.numpy(), uniform.numpy(), tokens.numpy(), log_probs.numpy())
        return tokens, log_probs, log_probs

    def compact(self, alive: Tensor) -> Tensor | None:
        """Let finished slots go where that saves a quarter of the work."""
        group = self.group
        slots = super().compact(alive)
        if slots is not None:
            self.starts = self.starts[slots[:: self.group].numpy() // group]
            self._view()
        return slots


@dataclass(frozen=True, slots=True)
class _Layer:
    """A ``DecoderLayer`` as the loops take it; matrices are beside their biases."""

    input_norm: Floats
    qkv: tuple[Tensor, Tensor | None]
    qk_norm: Floats
    output: tuple[Tensor, Tensor | None]
    mlp_norm: Floats
    gate: tuple[Tensor, Tensor | None]
    up: tuple[Tensor, Tensor | None]
    down: tuple[Tensor, Tensor | None]
    back: int


def _layer(layer: DecoderLayer, width: int) -> _Layer:
    qk_norm = layer.qkv.new_empty(0, width) if layer.qk_norm is None else layer.qk_norm
    return _Layer(
        input_norm=layer.input_norm.detach().numpy(),
        qkv=(layer.qkv, layer.qkv_bias),
        qk_norm=qk_norm.detach().numpy(),
        output=_weights(layer.output),
        mlp_norm=layer.mlp_norm.detach().numpy(),
        gate=_weights(layer.gate),
        up=_weights(layer.up),
        down=_weights(layer.down),
        back=_FAR if layer.window is None else layer.window - 1,
    )


def _weights(linear: Affine) -> tuple[Tensor, Tensor | None]:
    return linear.weight, linear.bias


def _add_product(x: Tensor, other: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Add ``other @ weight.T + bias`` to ``x``, in place."""
    if bias is not None:
        x += bias
    x.addmm_(other, weight.t())
