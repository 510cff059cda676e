r"""What a language model's training step keeps in memory, moment by moment, and what it computes.

Korthikanti et al. 2022, arXiv:2205.05198, section 4.1, count what a layer keeps for its backward
pass. Here it is counted for the decoder of this package, which keeps other things: see ``kept``.
All figures are of one process, without sharding, which ``launch.plan`` adds.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from launch.plan import Moment
from posttrain.decoder import HeadKind, Untyped, unsupported
from posttrain.decoder_layout import rounded
from posttrain.log_probs_head import chunks

__all__ = ["Numbers", "Pass", "Shape", "chunk_bytes", "kept", "read_shape", "update"]

_SHORT = 128
"""Most keys of a sequence whose scores are kept as matrices, on a CPU."""
_PORTABLE = 1 << 12
"""Tokens that a model without a decoder of its own runs at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The sizes of a decoder."""

    layers: int
    width: int
    """D."""
    queries: int
    """Features of all query heads, H K."""
    keys: int
    """Features of all key heads, H_kv K; values have as many."""
    heads: int
    inner: int
    """Of the feed-forward part, I."""
    vocabulary: int
    parameters: int
    trained: int
    tied: bool = False
    """Whether embeddings and head are one matrix."""
    head: bool = True
    """Whether logits are computed; a reward model's head has one row."""
    qk_norm: bool = False
    own: bool = True
    """Whether the package's decoder computes it, or its own ``forward``."""

    @property
    def joined(self) -> int:
        """Features of queries, keys and values together, F."""
        return self.queries + 2 * self.keys

    @property
    def layer(self) -> int:
        """Numbers of a layer's matrices."""
        return self.width * (self.joined + self.queries + 3 * self.inner)

    @property
    def table(self) -> int:
        """Numbers of the embeddings, and of the head."""
        return self.vocabulary * self.width

    @property
    def whole(self) -> bool:
        """Whether the model itself is trained, not adapters."""
        return self.trained == self.parameters


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """The types of what is computed, and where."""

    weight: int = 4
    """Bytes of a weight."""
    half: bool = False
    """Whether products are computed in 16 bits beside float32 weights (autocast)."""
    device: str = "cpu"

    @property
    def product(self) -> int:
        """Bytes of what a matrix product returns."""
        return 2 if self.half else self.weight

    @property
    def dense(self) -> bool:
        """Whether attention has a mask of its own: everywhere but in float32 on a CPU."""
        return self.device != "cpu" or self.product != 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """A micro-batch's forward and backward pass."""

    rows: int
    """Sequences that attention sees."""
    length: int
    """Tokens of the longest, a shared prompt not included."""
    before: int = 0
    """Tokens of the longest shared prompt."""
    tokens: int
    """All that are computed, N."""
    wanted: int
    """Those whose log-probability is asked for, M."""
    entropy: bool = False
    slots: int = 0
    """Tokens with the padding that attention adds to rows of unequal length; 0 is none."""


def read_shape(model: Untyped, *, head: HeadKind = "ForCausalLM") -> Shape:
    """Read the sizes of a model, which may be on the meta device."""
    config = model.config
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    embedding = model.get_input_embeddings()
    out = model.get_output_embeddings()
    own = unsupported(model, head) is None
    return Shape(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        queries=heads * width,
        keys=keys * width,
        heads=heads,
        inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        vocabulary=embedding.weight.shape[0],
        parameters=_count(model, trained=False),
        trained=_count(model, trained=True),
        tied=out is not None and out.weight is embedding.weight,
        head=head == "ForCausalLM",
        qk_norm=own and hasattr(model.model.layers[0].self_attn, "q_norm"),
        own=own,
    )


def _count(model: nn.Module, *, trained: bool) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def kept(shape: Shape, step: Pass, numbers: Numbers) -> tuple[int, int]:
    r"""Return the bytes that a layer keeps for its backward pass: up to attention, and after it.

    Features a token, in float32, with D the width, F = (H + 2 H_kv) K, Q = H K, I the inner width::

        up to attention   2 D + F + Q + H      x, norm(x); rotated q, k, v; output; log-sum-exps
                          (up to 128 keys on a CPU: 2 D + F + H keys, all weights, instead)
        after it          2 D + Q + 3 I        attended; x, norm(x); gate, up, gate * up

    The last layer computes what comes after attention for the wanted tokens alone. With autocast
    the residual stream stays float32, what products take and return has 16 bits, and norms are
    cast for each product. Attention with a mask of its own keeps that: rows x keys^2.
    """
    d, f, q, i = shape.width, shape.joined, shape.queries, shape.inner
    e, keys = numbers.product, step.length + step.before
    stream = 4 * d + 2 * d if numbers.half else 2 * d * e
    between = f * e + (f * e if shape.qk_norm else 0)
    short = not numbers.dense and keys <= _SHORT
    between += shape.heads * (keys * e if short else 4)
    between += 0 if short else q * e
    before = step.tokens * stream + max(step.slots, step.tokens) * between
    if numbers.dense:
        before += step.rows * step.length * keys * e
    again = 2 * d if numbers.half else 0  # the norm is cast for gate and for up
    return before, stream + again + (q + 3 * i) * e


def update(
    shape: Shape, step: Pass, numbers: Numbers, *, passes: int, checkpoints: bool
) -> list[Moment]:
    """Return the moments of an update of ``passes`` micro-batches at which memory may be highest.

    From the second micro-batch on, all gradients are there, and each new one beside them. That of
    tied embeddings comes from both ends of the backward pass. Those of the joined queries, keys
    and values are held until its end, where they are taken apart.
    """
    if not shape.own:
        return _portable_update(shape, step, numbers, passes=passes, checkpoints=checkpoints)
    layers, d, e = shape.layers, shape.width, numbers.product
    n, m = rounded(step.tokens), rounded(step.wanted)
    x = 4 if numbers.half else e  # of the residual stream
    before, after = kept(shape, step, numbers)
    layer, last = before + n * after, before + m * after
    inputs = layers * n * d * x
    turns = n * (shape.queries + shape.keys) * 4  # complex64, half as many
    held = inputs if checkpoints else (layers - 1) * layer + last
    ends = turns + 2 * m * d * x  # input and output of the last norm
    last_held = inputs - n * d * x + last if checkpoints else held
    logits = chunk_bytes(shape, m, numbers)
    forward, backward = _copies(shape, numbers)
    found = _gradients(shape, numbers, passes)
    return [
        Moment(
            name="forward pass",
            gradients=found.before,
            activations=held + ends,
            logits=(3 if step.entropy else 2) * logits,
            copies=forward,
        ),
        Moment(
            name="backward pass of the head",
            gradients=found.head,
            activations=held + ends + m * d * x,
            logits=3 * logits,
            copies=backward,
        ),
        Moment(
            name="backward pass of the last layer",
            gradients=found.last,
            activations=last_held + turns + m * (3 * shape.inner * e + 2 * d * x),
            copies=backward,
        ),
        Moment(
            name="backward pass of the first layer",
            gradients=found.first,
            activations=layer + turns + n * (3 * shape.inner * e + 2 * d * x),
            copies=backward // layers,
        ),
        Moment(name="backward pass of the embeddings", gradients=found.ends, activations=n * d * x),
        Moment(name="update", gradients=found.every),
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Gradients:
    """Bytes of gradients as the backward pass goes on."""

    before: int
    head: int
    last: int
    first: int
    ends: int
    every: int


def _gradients(shape: Shape, numbers: Numbers, passes: int) -> _Gradients:
    every = shape.trained * numbers.weight
    before = every if passes > 1 else 0
    w = numbers.weight if shape.whole else 0  # adapters are small; what they adapt has none
    embedding, head = shape.table * w, shape.table * w if shape.head else 0
    joined = shape.joined * shape.width * w
    matrix = max(shape.inner, shape.joined) * shape.width * w  # one is laid out anew at a time
    if passes > 1:
        buffered = head if shape.tied else 0
        first = every + buffered + (shape.layers - 1) * joined
        ends = every + buffered + shape.layers * joined + embedding
    else:
        buffered = head
        first = every - joined - (0 if shape.tied else embedding)
        ends = every + (embedding if shape.tied else 0)
    return _Gradients(
        before=before,
        head=before + 2 * head,  # the sum over chunks, and a chunk's
        last=before + buffered + matrix,
        first=first + matrix,
        ends=ends,
        every=every,
    )


def _copies(shape: Shape, numbers: Numbers) -> tuple[int, int]:
    """Return bytes of weights joined or cast for a pass, as it goes forward and back."""
    joined = shape.layers * shape.joined * shape.width * numbers.weight
    if not numbers.half:
        return joined, joined
    cast = 2 * shape.layers * shape.layer
    return joined + cast + (2 * shape.table if shape.head else 0), cast


def chunk_bytes(shape: Shape, wanted: int, numbers: Numbers) -> int:
    """Return the bytes of the logits that exist at a time."""
    if not shape.head:
        return 0
    rows = chunks(wanted, shape.vocabulary, numbers.device)[0]
    return (rows.stop - rows.start) * shape.vocabulary * 4


def _portable_update(
    shape: Shape, step: Pass, numbers: Numbers, *, passes: int, checkpoints: bool
) -> list[Moment]:
    """Return the moments of a model that runs through its own ``forward``.

    Some rows at a time are run, and run again in the backward pass. Of these a layer keeps
    ``34 D + 5 H T`` bytes a token in 16 bits (Korthikanti et al. 2022, arXiv:2205.05198, eq. 2).
    """
    n = min(step.tokens, max(_PORTABLE, step.length + step.before))
    keys = step.length + step.before
    layer = n * (34 * shape.width + 5 * shape.heads * keys) * numbers.product // 2
    stream = n * shape.width * numbers.product
    held = shape.layers * stream + layer if checkpoints else shape.layers * layer
    found = _gradients(shape, numbers, passes)
    cast = 2 * shape.parameters if numbers.half else 0
    states = step.wanted * shape.width * 4
    logits = chunk_bytes(shape, step.wanted, numbers)
    return [
        Moment(
            name="backward pass of the head",
            gradients=found.head,
            activations=held + states,
            logits=3 * logits,
            copies=cast,
        ),
        Moment(name="backward pass", gradients=found.ends, activations=held + states, copies=cast),
        Moment(name="update", gradients=found.every),
    ]
