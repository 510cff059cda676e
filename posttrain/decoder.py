"""A functional forward pass over a Hugging Face model's own parameters, without copies.

Llama, Qwen2, Qwen3 and Mistral differ in a few facts (biases, norms of queries and keys, widths,
windows, rotary frequencies), all read off the modules. The tokens of many sequences lie end to
end, so that linear layers never see padding, and prompts can be shared.

Whatever a model has beyond these facts is found by ``unsupported`` and named; such a model is
computed through its own ``forward`` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from generative.attention.rotary import neighbours, rotary_turns
from launch.placement import has_own_hooks, inside, is_marked, own_kind
from posttrain.decoder_adapters import (
    LowRank,
    add_low_rank,
    is_adapted,
    joined_low_rank,
    read_linear,
    through,
    unreadable,
)
from posttrain.decoder_attention import attend, rotate
from posttrain.decoder_kernels import Affine, linear, rms_norm, swiglu
from posttrain.decoder_layout import Heads, Layout

__all__ = [
    "Decoder",
    "DecoderLayer",
    "HeadKind",
    "Untyped",
    "has_dropout",
    "read_decoder",
    "unsupported",
]

Untyped: TypeAlias = Any  # a transformers model or a part of one: their attributes have no types
HeadKind = Literal["ForCausalLM", "ForSequenceClassification", "ForTokenClassification"]
"""What a model has on top of its decoder, as the names of transformers' classes end."""

_FAMILIES = ("Llama", "Qwen2", "Qwen3", "Mistral")
_PARTS = ("Model", "DecoderLayer", "Attention", "MLP", "RMSNorm", "RotaryEmbedding")
_ROPE = ("default", "linear", "llama3", "yarn")  # those whose frequencies never change
_ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


def unsupported(model: nn.Module, head: HeadKind = "ForCausalLM") -> str | None:
    """Return why the model cannot be computed here, or None if it can, exactly.

    The test is on exact types: a subclass, a quantised layer or a hook may change what a module
    computes, so any of them is a reason; of adapters, plain LoRA on linear layers is known.
    ``head`` is how the class's name ends. A classifier's dropout before its head is no reason: it
    is left out.
    """
    family = type(model).__name__.removesuffix(head)
    home = f"transformers.models.{family.lower()}.modeling_{family.lower()}"
    if family not in _FAMILIES or type(model).__module__ != home:
        what = {"ForCausalLM": "causal LM"}.get(head, f"model {head}")
        return f"{type(model).__name__} is not a Llama, Qwen2, Qwen3 or Mistral {what}"
    adapted = "\0"  # no module's name begins so
    for name, module in model.named_modules():
        if name.startswith(adapted):
            continue
        if is_adapted(module) and ".layers." in name:
            reason = unreadable(module)
            if reason is not None:
                return f"its module {name} {reason}"
            adapted = f"{name}."
            continue
        kind = own_kind(module)
        known = kind in (nn.Linear, nn.Embedding, nn.ModuleList, nn.SiLU) or (
            kind.__module__ == home and kind.__name__.removeprefix(family) in (head, *_PARTS)
        )
        known = known or (head != "ForCausalLM" and name == "dropout" and kind is nn.Dropout)
        if not known and kind.__name__ not in ("SiLUActivation", "SiLU"):
            return f"its module {name or 'itself'} is a {kind.__name__}"
        if "forward" in vars(module) or has_own_hooks(module):
            return f"its module {name or 'itself'} has a hook or another forward"
    return _unsupported_config(model, family)


def has_dropout(model: Untyped) -> bool:
    """Whether a pass for training drops something at random, which the decoder leaves out."""
    if model.training and model.config.attention_dropout:
        return True
    adapted = (module for module in model.modules() if is_adapted(module))
    return any(x.training and type(x) is nn.Dropout for m in adapted for x in m.modules())


def _unsupported_config(model: Untyped, family: str) -> str | None:
    config, rotary = model.config, model.model.rotary_emb
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    if rotary.rope_type not in _ROPE:
        return f"its rotary frequencies are of type {rotary.rope_type}"
    if 2 * len(rotary.inv_freq) != model.model.layers[0].self_attn.head_dim:
        return "only a part of each head is rotated"
    if config._attn_implementation not in _ATTENTION:
        return f"its attention is {config._attn_implementation}"
    if family == "Mistral" and "layer_types" in vars(config):
        return "its layers are of several types"
    embedding = model.model.embed_tokens
    if embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse:
        return "its embedding renormalises or scales"
    if len(model.model.layers) != config.num_hidden_layers:
        return f"it has {len(model.model.layers)} layers, its config {config.num_hidden_layers}"
    return None


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One layer's parameters, and the facts in which families differ."""

    input_norm: Tensor
    qkv: Tensor
    """``((H + 2 H_kv) K, D)``: the three projections one below another, features of queries and
    keys permuted so that those turned together are neighbours."""
    qkv_bias: Tensor | None
    qk_norm: Tensor | None
    """``(H + H_kv, K)``, Qwen3's weights of the norms of queries and keys, permuted likewise."""
    qkv_low_rank: LowRank | None
    """What adapters add to queries, keys and values."""
    output: Affine
    mlp_norm: Tensor
    gate: Affine
    up: Affine
    down: Affine
    window: int | None
    """Tokens that a query may look back over, itself included; None is all."""


@dataclass(frozen=True, slots=True)
class _CutLayer:
    """A layer whose parameters are there inside its own forward alone."""

    module: nn.Module
    read: Callable[[], DecoderLayer]


@dataclass(frozen=True, slots=True)
class Decoder:
    """A model's parameters as its forward pass uses them.

    Read it anew for every pass: it holds the model's parameters themselves, but for queries, keys
    and values, whose weights are joined (a small copy, through which gradients flow).
    """

    embedding: nn.Embedding
    layers: tuple[DecoderLayer, ...]
    """Empty where a strategy has cut them."""
    cut: tuple[_CutLayer, ...]
    """What the strategy has cut, to be read inside each layer's own forward."""
    windows: tuple[int | None, ...]
    """Of each layer."""
    norm: Tensor
    head: nn.Linear
    heads: Heads
    eps: Tensor
    frequencies: Tensor
    rotary_scaling: float
    checkpoints: bool
    """Whether layers are run again in the backward pass, instead of keeping what they computed."""

    @property
    def size(self) -> int:
        """Parameters that a token is multiplied by."""
        layers = (
            layer.qkv.numel()
            + sum(m.weight.numel() for m in (layer.output, layer.gate, layer.up, layer.down))
            for layer in self.layers
        )
        return sum(layers) + self.head.weight.numel()

    def turns(self, positions: Tensor) -> Tensor:
        """Return the rotation of ``positions``, ``(..., K/2)`` complex64."""
        return rotary_turns(positions, self.frequencies, scaling=self.rotary_scaling)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return ``(N, D)`` embeddings of ``(N,)`` tokens."""
        return F.embedding(tokens, self.embedding.weight, self.embedding.padding_idx)

    def project(self, layer: DecoderLayer, x: Tensor) -> Tensor:
        """Return ``(N, (H + 2 H_kv) K)`` queries, keys and values, before they are rotated."""
        h = rms_norm(x, layer.input_norm, self.eps)
        qkv = add_low_rank(linear(h, layer.qkv, layer.qkv_bias), h, layer.qkv_low_rank)
        if layer.qk_norm is None:
            return qkv
        turned = self.heads.queries + self.heads.keys
        n = turned * self.heads.width
        qk = qkv[:, :n].unflatten(1, (turned, self.heads.width))
        qk = rms_norm(qk, layer.qk_norm, self.eps).flatten(1)
        return torch.cat((qk.to(qkv.dtype), qkv[:, n:]), dim=1)

    def mlp(self, layer: DecoderLayer, x: Tensor) -> Tensor:
        """Return ``x`` plus what the layer's feed-forward part adds to it."""
        h = rms_norm(x, layer.mlp_norm, self.eps)
        return x + through(layer.down, swiglu(through(layer.gate, h), through(layer.up, h)))

    def hidden_states(
        self,
        tokens: Tensor,
        positions: Tensor,
        layout: Layout,
        wanted: Tensor,
        record: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Run all layers over many sequences at once.

        Args:
            tokens: ``(N,)`` int64, sequences end to end.
            positions: ``(N,)``, each token's place for its rotary angle.
            layout: Where the sequences are.
            wanted: ``(M,)`` int64, the tokens whose hidden states are returned; the last layer
                does no more than these need.
            record: Given each layer's number and its rotated ``(N, (H + 2 H_kv) K)``.

        Returns:
            ``(M, D)``, after the last norm: what the head multiplies.
        """
        x = self.embed(tokens)
        turned = self.heads.queries + self.heads.keys
        turns = self.turns(positions)[:, None].expand(-1, turned, -1).flatten(1)
        run = self._layer
        if self.checkpoints and torch.is_grad_enabled():
            run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
        layers: Sequence[DecoderLayer | _CutLayer] = self.cut or self.layers
        for i, layer in enumerate(layers):
            last = layer is layers[-1]
            taken = None if record is None else partial(record, i)
            x = run(layer, x, turns, layout, wanted if last else None, taken)
        return self.final_norm(x)

    def _layer(
        self,
        layer: DecoderLayer | _CutLayer,
        x: Tensor,
        turns: Tensor,
        layout: Layout,
        wanted: Tensor | None,
        record: Callable[[Tensor], None] | None,
    ) -> Tensor:
        """Return what a layer makes of ``(N, D)``, of all tokens or of those wanted."""
        if isinstance(layer, _CutLayer):
            read = layer.read

            def whole(x: Tensor) -> Tensor:
                return self._layer(read(), x, turns, layout, wanted, record)

            return inside(layer.module, whole, x)
        qkv = rotate(self.project(layer, x), turns)
        if record is not None:
            record(qkv)
        attended = attend(qkv, self.heads, layout, layer.window)
        if wanted is not None:
            attended, x = attended.index_select(0, wanted), x.index_select(0, wanted)
        return self.mlp(layer, x + through(layer.output, attended))

    def final_norm(self, x: Tensor) -> Tensor:
        """Return what the head multiplies."""
        return rms_norm(x, self.norm, self.eps)


def read_decoder(model: Untyped, *, merged: bool = False) -> Decoder:
    """Read a model's parameters; call ``unsupported`` first.

    Args:
        model: One of the families above, with LoRA adapters or without.
        merged: Add adapters to copies of the weights, for passes without gradient.
    """
    inner = model.model
    attention = inner.layers[0].self_attn
    width = attention.head_dim
    queries = attention.q_proj.out_features // width
    keys = attention.k_proj.out_features // width
    weight = inner.norm.weight
    exact = torch.promote_types(weight.dtype, torch.float32)
    windows = tuple(_window(layer.self_attn, model.config) for layer in inner.layers)
    reads = [
        partial(_read_layer, layer, window, queries, keys, merged=merged)
        for layer, window in zip(inner.layers, windows, strict=True)
    ]
    is_cut = is_marked(inner.layers[0])
    return Decoder(
        embedding=inner.embed_tokens,
        layers=() if is_cut else tuple(read() for read in reads),
        cut=tuple(map(_CutLayer, inner.layers, reads)) if is_cut else (),
        windows=windows,
        norm=weight,
        head=model.lm_head if hasattr(model, "lm_head") else model.score,
        heads=Heads(queries=queries, keys=keys, width=width, scale=attention.scaling),
        eps=torch.tensor(inner.norm.variance_epsilon, dtype=exact, device=weight.device),
        frequencies=inner.rotary_emb.inv_freq,
        rotary_scaling=inner.rotary_emb.attention_scaling,
        checkpoints=bool(getattr(inner.layers[0], "gradient_checkpointing", False)),
    )


def _window(attention: Untyped, config: Untyped) -> int | None:
    if type(attention).__name__ == "MistralAttention":
        return cast("int | None", config.sliding_window)
    return getattr(attention, "sliding_window", None)


def _read_layer(
    layer: Untyped, window: int | None, queries: int, keys: int, *, merged: bool
) -> DecoderLayer:
    attention, mlp = layer.self_attn, layer.mlp
    read = partial(read_linear, merged=merged)
    projections = [read(m) for m in (attention.q_proj, attention.k_proj, attention.v_proj)]
    biases = [projection.bias for projection in projections if projection.bias is not None]
    order = neighbours(attention.head_dim).to(attention.q_proj.weight.device)
    heads = torch.arange(queries + keys, device=order.device)[:, None] * len(order) + order
    values = torch.arange(heads.numel(), heads.numel() + keys * len(order), device=order.device)
    rows = torch.cat((heads.view(-1), values))
    qk_norm = None
    if hasattr(attention, "q_norm"):
        norms = (attention.q_norm.weight[order], attention.k_norm.weight[order])
        qk_norm = torch.cat([w.expand(n, -1) for w, n in zip(norms, (queries, keys), strict=True)])
    return DecoderLayer(
        input_norm=layer.input_layernorm.weight,
        qkv=torch.cat([projection.weight for projection in projections]).index_select(0, rows),
        qkv_bias=torch.cat(biases).index_select(0, rows) if biases else None,
        qkv_low_rank=joined_low_rank(projections, rows),
        qk_norm=qk_norm,
        output=read(attention.o_proj),
        mlp_norm=layer.post_attention_layernorm.weight,
        gate=read(mlp.gate_proj),
        up=read(mlp.up_proj),
        down=read(mlp.down_proj),
        window=window,
    )
