"""Passes without gradient, rollouts and arithmetic of a language model's step, for planning."""

from __future__ import annotations

from dataclasses import dataclass

from launch.plan import Moment
from launch.plan_devices import Stage
from posttrain.decoder_layout import rounded
from posttrain.plan import Numbers, Pass, Shape, chunk_bytes

__all__ = ["Drawn", "decoding", "frozen_pass", "frozen_stage", "rollout", "update_stages"]

_PREFILL = {"cpu": 4096, "cuda": 32768}
"""Prompt tokens at a time, as in ``posttrain.rollout.decoding``."""
_CACHE_BYTES = 4 << 30
"""Beyond this, prompts are taken in turns, as in ``posttrain.rollout.engine``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A rollout of one process."""

    prompts: int
    group_size: int
    prompt_length: int
    """Tokens of the longest."""
    max_tokens: int
    tempered: bool = False
    """Whether the temperature is not 1."""


def rollout(shape: Shape, drawn: Drawn, numbers: Numbers) -> list[Moment]:
    """Return the moments of a rollout: while prompts are run, and at its last token.

    The cache has ``2 L H_kv K`` numbers for every token of a completion, and, where several share
    a prompt, once for the prompt's. Adapters are merged into copies of the weights.
    """
    e, prompts = numbers.weight, _at_once(shape, drawn, numbers)
    rows = prompts * drawn.group_size
    shared = drawn.group_size > 1
    token = 2 * shape.layers * shape.keys * e
    columns = min(64, drawn.max_tokens) + (0 if shared else drawn.prompt_length)
    of_prompts = prompts * drawn.prompt_length * token if shared else 0
    full = drawn.max_tokens + (0 if shared else drawn.prompt_length)
    copies = shape.layers * shape.joined * shape.width * e
    if not shape.whole:
        copies += shape.layers * (shape.layer - shape.joined * shape.width) * e
    n = rounded(min(prompts * drawn.prompt_length, max(_PREFILL[numbers.device], 1)))
    row = shape.vocabulary * 4
    return [
        Moment(
            name="rollout, running prompts",
            activations=n * (4 * shape.width + shape.joined + 3 * shape.inner) * e,
            kv_cache=of_prompts + rows * columns * token,
            copies=copies,
            gathered=True,
        ),
        Moment(
            name="rollout, first token",
            kv_cache=of_prompts + rows * columns * token,
            logits=(prompts + rows) * row,
            copies=copies,
            gathered=True,
        ),
        Moment(
            name="rollout, last token",
            activations=rows * (4 * shape.width + shape.joined + 3 * shape.inner) * e,
            kv_cache=of_prompts + rows * full * token,
            logits=(2 + drawn.tempered + bool(shape.vocabulary % 32)) * rows * row,
            copies=copies,
            gathered=True,
        ),
    ]


def _at_once(shape: Shape, drawn: Drawn, numbers: Numbers) -> int:
    token = 2 * shape.layers * shape.keys * numbers.weight
    group = token * drawn.group_size * (drawn.prompt_length + drawn.max_tokens)
    return min(drawn.prompts, max(1, _CACHE_BYTES // group))


def frozen_pass(
    shape: Shape, step: Pass, numbers: Numbers, *, name: str, reference: int = 0
) -> Moment:
    """Return the moment of a pass without gradient, which keeps one layer's values at a time.

    ``reference`` is the bytes of a frozen copy that is on the device for this pass alone.
    """
    e, n = numbers.product, rounded(step.tokens)
    forward = shape.layers * shape.joined * shape.width * numbers.weight
    if numbers.half:
        forward += 2 * (shape.layers * shape.layer + shape.table)
    return Moment(
        name=name,
        activations=n * (4 * shape.width * 4 + (shape.joined + 3 * shape.inner) * e),
        logits=(3 if step.entropy else 2) * chunk_bytes(shape, rounded(step.wanted), numbers),
        copies=forward,
        reference=reference,
    )


def _forward_flops(shape: Shape, step: Pass) -> tuple[float, float]:
    """Return a forward pass's FLOP in layers and in the head.

    Two a number and token, and ``4 H K`` for each pair of a query and a key that it may look at;
    half of those of a row are.
    """
    matrices = 2.0 * shape.layers * shape.layer * step.tokens
    pairs = step.rows * step.length * (step.before + step.length / 2)
    attention = 4.0 * shape.layers * shape.queries * pairs
    head = 2.0 * shape.table * step.wanted if shape.head else 0.0
    return matrices + attention, head


def update_stages(
    shape: Shape, step: Pass, numbers: Numbers, *, passes: float, checkpoints: bool
) -> tuple[Stage, ...]:
    """Return the work of ``passes`` forward and backward passes and of the optimizer.

    Six operations a number and token (Kaplan et al. 2020, arXiv:2001.08361, eq. 2.2); eight where
    layers are computed again, and in the head, whose logits always are. Gradients of frozen
    weights are not computed: four then. The optimizer reads and writes weights, gradients and
    state once.
    """
    layers, head = _forward_flops(shape, step)
    times = (3 if shape.whole else 2) + checkpoints
    flops = passes * (times * layers + (4 if shape.whole else 3) * head)
    state = 7.0 * shape.trained * numbers.weight
    return (Stage("update", flops, half=numbers.product == 2), Stage("optimizer", 0.0, state))


def frozen_stage(shape: Shape, step: Pass, numbers: Numbers, *, passes: float) -> Stage:
    """Return the work of passes without gradient."""
    return Stage(
        "frozen pass", passes * sum(_forward_flops(shape, step)), half=numbers.product == 2
    )


def decoding(shape: Shape, drawn: Drawn, numbers: Numbers) -> tuple[Stage, Stage]:
    """Return the work of a rollout: prompts, bound by arithmetic, and tokens, by memory.

    Every token reads all weights once for all rows of a turn, and each row's cache, on average
    half of what it will be. Rollouts are in the weights' type, without autocast.
    """
    numbers_read = shape.layers * shape.layer + shape.table
    rows, tokens = drawn.prompts * drawn.group_size, drawn.max_tokens
    turns = -(-drawn.prompts // max(1, _at_once(shape, drawn, numbers)))
    cached = 2 * shape.layers * shape.keys * numbers.weight
    read = float(turns * tokens * numbers_read * numbers.weight)
    read += cached * tokens * (drawn.prompts * drawn.prompt_length + rows * tokens / 2)
    half = numbers.weight == 2
    prompts = 2.0 * numbers_read * drawn.prompts * drawn.prompt_length
    return (
        Stage("prompts", prompts, half=half),
        Stage("decoding", 2.0 * numbers_read * rows * tokens, read, half=half),
    )
