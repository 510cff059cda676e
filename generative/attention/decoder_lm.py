r"""A modern decoder: norms before, rotary positions, gated MLPs, and any mixer.

    x <- x + mixer(norm(x)),    x <- x + W_down (silu(W_gate norm(x)) * W_up norm(x))

Pre-norm (Xiong et al. 2020, arXiv:2002.04745) with RMSNorm (Zhang and Sennrich 2019,
arXiv:1910.07467) and SwiGLU (Shazeer 2020, arXiv:2002.05202). A gated unit mixes and is gated at
once: it stands in for attention and MLP, and two of them take the place of one block, which has
about as many parameters (Hua et al. 2022, arXiv:2202.10447, section 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.attention.mixers import Mixer, MixerConfig, SoftmaxAttention, State
from generative.attention.positions import Rotary

__all__ = ["DecoderConfig", "DecoderLM", "DecoderState"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """Sizes and parts of a decoder."""

    vocabulary: int = 256
    """V."""
    width: int = 256
    """D, of the residual stream."""
    blocks: int = 4
    """Transformer blocks; where the mixer is a gated unit, twice as many of these."""
    mixer: MixerConfig = field(
        default_factory=lambda: SoftmaxAttention(positions=Rotary(), query_key_norm=True)
    )
    hidden: int | None = None
    """Width of the MLP; None is 8/3 D, so that its three matrices have the parameters of the two
    of a plain MLP of 4 D. A gated unit has none."""
    mlp_bias: bool = False
    """Biases in the MLP. The norm before it has no bias either, so without them zero stays zero;
    with them a block can add a constant to every token, which embeddings can do as well."""
    tied: bool = True
    """The logits are read with the table that embeds: fewer parameters, and a token's row learns
    from its every use."""
    most_tokens: int = 2_048
    """The longest sequence; what is longer is an error."""
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "blocks", "most_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        if self.hidden is not None and self.hidden < 1:
            raise ValueError(f"hidden={self.hidden}: give at least 1, or None for 8/3 of width")

    def build(self) -> DecoderLM:
        """Return the model with random weights."""
        return DecoderLM(self)


class GatedMLP(nn.Module):
    """SwiGLU: ``W_down (silu(W_gate x) * W_up x)``."""

    def __init__(self, width: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=bias)
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(..., D)``."""
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class Block(nn.Module):
    """A mixer and, unless it is a gated unit, an MLP, each with a norm before and a residual."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.mixer_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mixer = config.mixer.build(config.width)
        self.mlp_norm: nn.Module | None = None
        self.mlp: nn.Module | None = None
        if not config.mixer.is_gated_unit:
            hidden = config.hidden or -(-config.width * 8 // 3)
            self.mlp_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
            self.mlp = GatedMLP(config.width, hidden, bias=config.mlp_bias)

    def forward(self, x: Tensor, attend: Tensor | None = None) -> Tensor:
        """Return ``(B, T, D)`` of whole sequences, causally."""
        return self._finished(x + self.mixer(self.mixer_norm(x), causal=True, attend=attend))

    def new_state(self, rows: int, columns: int) -> State:
        """Return the mixer's state before any token."""
        return cast(Mixer, self.mixer).new_state(rows, columns)

    def extend(self, x: Tensor, state: State) -> Tensor:
        """Return ``(B, n, D)`` of appended tokens."""
        mixed = cast(Mixer, self.mixer).extend(self.mixer_norm(x), state)
        return self._finished(x + mixed)

    def _finished(self, x: Tensor) -> Tensor:
        if self.mlp is None or self.mlp_norm is None:
            return x
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class DecoderState:
    """What every layer knows of the tokens so far, for B rows."""

    def __init__(self, layers: Sequence[State]) -> None:
        self.layers = list(layers)

    @property
    def length(self) -> int:
        """Tokens so far."""
        return self.layers[0].length

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(state.nbytes for state in self.layers)

    def repeat(self, count: int) -> None:
        """Take each row ``count`` times: row r becomes ``r * count`` and those that follow."""
        for state in self.layers:
            state.repeat(count)

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, ``(R,)`` int64, in that order."""
        for state in self.layers:
            state.select(rows)


class DecoderLM(nn.Module):
    """A language model from tokens to the logits of what follows.

    >>> model = DecoderLM(DecoderConfig(vocabulary=8, width=16, blocks=1))
    >>> tokens = torch.tensor([[1, 2, 3]])
    >>> state = model.new_state(rows=1, columns=3)
    >>> parts = [model.extend(part, state) for part in tokens.split(2, dim=1)]
    >>> bool(torch.allclose(torch.cat(parts, 1), model(tokens), atol=1e-5))
    True
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        count = 2 * config.blocks if config.mixer.is_gated_unit else config.blocks
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(count))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.head: nn.Linear | None = None
        if not config.tied:
            self.head = nn.Linear(config.width, config.vocabulary, bias=False)

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Return the logits of what follows each token, ``(B, T, V)``.

        Padding on the right needs no mask: no token looks ahead.

        Args:
            tokens: ``(B, T)`` int64.
            mask: ``(B, T)`` bool, False at tokens that none may look at; None has none.

        Raises:
            ValueError: There are more than ``most_tokens``, or the mask has another shape.
        """
        if mask is not None and (mask.dtype != torch.bool or mask.shape != tokens.shape):
            raise ValueError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}: expected bool of the tokens' "
                f"shape {tuple(tokens.shape)}, False at padding"
            )
        self._check_length(tokens.shape[1])
        attend = None if mask is None else mask[:, None, None]
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, attend)
        return self._logits(x)

    def new_state(self, rows: int, columns: int) -> DecoderState:
        """Return the state before any token, of ``rows`` sequences of at most ``columns``."""
        self._check_length(columns)
        return DecoderState([block.new_state(rows, columns) for block in self._blocks()])

    def extend(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Append ``(B, n)`` tokens; return the logits after each of them, ``(B, n, V)``."""
        self._check_length(state.length + tokens.shape[1])
        x = self.embedding(tokens)
        for block, layer in zip(self._blocks(), state.layers, strict=True):
            x = block.extend(x, layer)
        return self._logits(x)

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _check_length(self, tokens: int) -> None:
        if tokens > self.config.most_tokens:
            raise ValueError(
                f"{tokens} tokens, but most_tokens={self.config.most_tokens}: shorten the "
                "sequence, or make the model with more"
            )

    def _logits(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.head is not None:
            logits: Tensor = self.head(x)
            return logits
        return x @ self.embedding.weight.t()
