"""Decoding over the trainer's own parameters, with a static cache.

Prompts lie right-aligned, so that token t of every completion has the same column and a sliding
window is a slice. The completions of a group share the keys and values of their prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.attention.cache import StaticCache
from generative.attention.rotary import turn
from posttrain.decoder import Decoder, DecoderLayer
from posttrain.decoder_kernels import product, product_add, rms_norm
from posttrain.decoder_layout import rounded, sequences
from posttrain.rollout.sampling import draw
from posttrain.rollout.slots import arranged

__all__ = ["Decoding"]

_PREFILL_TOKENS = {"cpu": 4096, "cuda": 32768}
_WIDEN_BY = 64
"""Columns for new tokens that a cache begins with; it doubles when they are full."""
_LEAST = 9
"""MKL multiplies by fewer columns than this several times as slowly: -inf fills them up."""
_READ = 8.0
"""What reading a cached number costs, where multiplying by a parameter costs 1."""


class Decoding:
    """Completions of prompts, extended token by token.

    Slots form a grid ``(P, G)``: the G slots of a line share its prompt's cache. Where prompts
    are copied instead, the grid is ``(P G, 1)`` and the prompt lies in the slot's own cache.
    """

    draw = staticmethod(draw)

    def __init__(
        self, decoder: Decoder, prompts: Sequence[Tensor], group_size: int, max_tokens: int
    ) -> None:
        self.decoder = decoder
        self.device = decoder.embedding.weight.device
        self.prompts = prompts
        self.max_tokens = max_tokens
        self.lengths = torch.tensor([len(prompt) for prompt in prompts])
        self.width = int(self.lengths.max())  # columns of the prompts
        self.shared = group_size > 1
        self.copies = 1 if self.shared else group_size
        self.lines, self.group = len(prompts) * self.copies, group_size // self.copies
        self.step = 0
        columns = min(_WIDEN_BY, max_tokens)
        self.own = self._cache(self.group, columns + (0 if self.shared else self.width))
        self.before = self._cache(1, self.width) if self.shared else self.own
        lengths = self.lengths.repeat_interleave(self.copies).to(self.device)
        self.positions = lengths.repeat_interleave(self.group)
        self.bias = self._bias(lengths)
        heads = decoder.heads
        self.scales = torch.ones(heads.queries + heads.keys, 1, device=self.device)
        self.scales[: heads.queries] = heads.scale  # the scores' scale, put into the rotation
        self.nowhere = torch.full((), -torch.inf, dtype=self.own.keys(0).dtype, device=self.device)
        read = self.width * len(decoder.layers) * 2 * heads.keys * heads.width
        self.prompt_cost = _READ * read / decoder.size if self.shared else 0.0

    def _cache(self, group: int, columns: int) -> StaticCache:
        weight, heads = self.decoder.embedding.weight, self.decoder.heads
        return StaticCache(
            layers=len(self.decoder.layers),
            rows=self.lines,
            heads=heads.keys * group,
            columns=columns,
            width=heads.width,
            dtype=weight.dtype,
            device=weight.device,
        )

    def _bias(self, lengths: Tensor) -> Tensor | None:
        """Return ``(lines, 1, width)``: -inf left of each prompt; None if all are as long."""
        if bool((lengths == self.width).all()):
            return None
        columns = torch.arange(self.width, device=self.device)
        left = columns < self.width - lengths[:, None]
        bias = torch.zeros(left.shape, dtype=self.own.keys(0).dtype, device=self.device)
        return bias.masked_fill_(left, -torch.inf)[:, None]

    def start(self) -> Tensor:
        """Run every prompt once; return the logits of each slot's first token."""
        last = []
        at_once = _PREFILL_TOKENS.get(self.device.type, 4096)
        first = 0
        while first < len(self.prompts):
            ends = self.lengths[first:].cumsum(0)
            count = max(1, int((ends <= at_once).sum()))
            last.append(self._prefill(first, first + count))
            first += count
        return self._logits(torch.cat(last)).repeat_interleave(self.copies * self.group, 0)

    def _prefill(self, first: int, last: int) -> Tensor:
        """Run some prompts end to end, fill their caches; return their last hidden states."""
        lengths = self.lengths[first:last].to(self.device)
        ends = lengths.cumsum(0)
        real = int(ends[-1])
        spare = rounded(real) - real
        tokens = F.pad(torch.cat(list(self.prompts[first:last])).to(self.device), (0, spare))
        of = torch.repeat_interleave(torch.arange(len(lengths), device=self.device), lengths)
        places = torch.arange(real, device=self.device) - (ends - lengths)[of]
        columns = torch.arange(self.width, device=self.device) - self.width
        sources = (ends[:, None] + columns).clamp(min=0).repeat_interleave(self.copies, 0)
        lines = slice(first * self.copies, last * self.copies)
        heads = self.decoder.heads
        from_keys = heads.queries * heads.width

        def record(layer: int, qkv: Tensor) -> None:
            rows = qkv[:, from_keys:].index_select(0, sources.view(-1))
            rows = rows.view(*sources.shape, 2, heads.keys, heads.width).permute(2, 0, 3, 1, 4)
            self.before.fill(layer, lines, self.width, rows)

        layout = sequences(lengths)
        return self.decoder.hidden_states(
            tokens, F.pad(places, (0, spare)), layout, ends - 1, record
        )

    def _logits(self, hidden: Tensor) -> Tensor:
        head = self.decoder.head
        return product(hidden, head.weight, head.bias).float()

    def advance(self, tokens: Tensor) -> Tensor:
        """Append ``(slots,)`` tokens; return the next logits."""
        decoder, heads = self.decoder, self.decoder.heads
        column = self._next_column()
        turned = heads.queries + heads.keys
        turns = (decoder.turns(self.positions)[:, None] * self.scales).flatten(1)
        x = decoder.embed(tokens)
        for i, layer in enumerate(decoder.layers):
            qkv = decoder.project(layer, x)
            qk = qkv[:, : turned * heads.width]
            if qkv.dtype == torch.float32:
                torch.view_as_complex(qk.view(len(qk), -1, 2)).mul_(turns)
            else:
                qk.copy_(turn(qk, turns))
            x = product_add(x, self._attend(i, layer, column, qkv), layer.output)
            h = rms_norm(x, layer.mlp_norm, decoder.eps)
            inner = F.silu(product(h, layer.gate.weight, layer.gate.bias), inplace=True)
            inner.mul_(product(h, layer.up.weight, layer.up.bias))
            x = product_add(x, inner, layer.down)
        self.positions += 1
        self.step += 1
        return self._logits(decoder.final_norm(x))

    def _next_column(self) -> int:
        """Return where in the slots' own cache the next token goes; there is room for it."""
        before = 0 if self.shared else self.width
        if self.step + before == self.own.columns:
            most = self.max_tokens + before
            self.own.widen(min(most, self.own.columns + max(_WIDEN_BY, self.step)))
        return self.step + before

    def _attend(self, i: int, layer: DecoderLayer, column: int, qkv: Tensor) -> Tensor:
        """Write ``column`` of the cache and attend to all up to it; ``(slots, H K)``."""
        heads = self.decoder.heads
        lines, group, width = self.lines, self.group, heads.width
        from_keys = heads.queries * width
        new = qkv[:, from_keys:].view(lines, group, 2, heads.keys, width)
        self.own.write(i, column, new.permute(2, 0, 3, 1, 4).reshape(2, lines, -1, width))
        back = column + self.width if layer.window is None else layer.window - 1
        first = max(0, column - back)  # the window's first column in the slot's own cache
        queries = qkv[:, :from_keys].view(lines, group, heads.keys, -1, width).transpose(1, 2)
        queries = queries.reshape(lines * heads.keys * group, -1, width)  # (p, h, g) x r
        keys = self.own.keys(i).flatten(0, 1)[:, first : column + 1]
        values = self.own.values(i).flatten(0, 1)[:, first : column + 1]
        scores = torch.bmm(queries, keys.transpose(1, 2))
        start = max(0, self.width + column - back)  # its first column in the shared prompt's
        if self.shared and start < self.width:
            out = self._merged(i, start, queries, scores, first)
        else:
            if not self.shared and self.bias is not None and first < self.width:
                padded = scores.view(lines, -1, scores.shape[-1])[..., : self.width - first]
                padded += self.bias[..., first:]
            out = torch.bmm(torch.softmax(scores, -1), values)
        if group == 1:
            return out.view(len(qkv), -1)
        return out.view(lines, heads.keys, group, -1).transpose(1, 2).reshape(len(qkv), -1)

    def _merged(self, i: int, start: int, queries: Tensor, scores: Tensor, first: int) -> Tensor:
        """Attend to a shared prompt, from column ``start`` on, and to what each slot added."""
        keys = self.before.keys(i).flatten(0, 1)[:, start:]
        values = self.before.values(i).flatten(0, 1)[:, start:]
        together = queries.reshape(len(keys), -1, queries.shape[-1])  # (p, h) x (g, r)
        of_prompt = torch.bmm(together, keys.transpose(1, 2))
        if self.bias is not None:
            of_prompt.view(self.lines, -1, keys.shape[1]).add_(self.bias[..., start:])
        n, own = keys.shape[1], scores.shape[-1]
        parts = [of_prompt.view(*scores.shape[:2], n), scores]
        least = min(_LEAST, self.own.columns - first)
        if own < least:
            parts.append(self.nowhere.expand(*scores.shape[:2], least - own))
            own = least
        weights = torch.softmax(torch.cat(parts, -1), -1)
        out = torch.bmm(weights[..., :n].view(*together.shape[:2], n), values)
        own_values = self.own.values(i).flatten(0, 1)[:, first : first + own]
        return out.view(queries.shape).baddbmm_(weights[..., n:], own_values)

    def compact(self, alive: Tensor) -> Tensor | None:
        """Let finished slots go where that saves a quarter of the work."""
        slots = arranged(alive.view(self.lines, self.group), self.prompt_cost)
        if slots is None:
            return None
        lines, group = slots.shape
        of_line = slots[:, 0] // self.group
        if self.shared:
            self.before.keep(of_line)
            heads = torch.arange(self.decoder.heads.keys, device=self.device)[:, None] * self.group
            chosen = heads + (slots % self.group)[:, None]
            self.own.keep(of_line, chosen.flatten(1))
        else:
            self.own.keep(of_line)
        if self.bias is not None:
            self.bias = self.bias[of_line]
        self.lines, self.group = lines, group
        flat = slots.view(-1)
        self.positions = self.positions[flat]
        return flat
