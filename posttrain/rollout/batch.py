"""Sampled completions: as the engine returns them, and as the objectives take them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real

from torch import Tensor

from launch.batch import TensorBatch, shaped

__all__ = ["Rollout", "RolloutBatch", "Sampling"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How completions are drawn. The order is temperature, top-k, top-p."""

    max_tokens: int
    """Most tokens a completion may have, its stop token included."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest likeliest tokens whose probability reaches p; 1 keeps all."""
    stop_tokens: tuple[int, ...] = ()
    """Ids that end a completion; none means never to stop early, whatever the model says."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "top_k"):
            object.__setattr__(self, name, _integer(name, getattr(self, name)))
        for name in ("temperature", "top_p"):
            _check_real(name, getattr(self, name))
        object.__setattr__(self, "stop_tokens", _ids("stop_tokens", self.stop_tokens))
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens}: a completion needs at least one token")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature={self.temperature}: use 0 for greedy or a positive finite number"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: use 0 to keep all tokens, or a positive count")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: use a probability in (0, 1]; 1 keeps all tokens")


def _integer(name: str, value: object) -> int:
    """Return ``value`` as an int; NumPy's and torch's integers are taken, truth values are not."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # what is no integer raises
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is of type {type(value).__name__}: give an integer")
    return number


def _check_real(name: str, value: object) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is of type {type(value).__name__}: give a number")


def _ids(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise TypeError(
            f"{name}={value!r} is of type {type(value).__name__}: give a tuple of token ids, "
            "() for none"
        )
    return tuple(_integer(f"{name}[{i}]", token) for i, token in enumerate(value))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RolloutBatch(TensorBatch):
    """Sampled completions, right-padded. Column t of every field is about ``tokens[:, t]``."""

    tokens: Tensor = shaped("B T")
    """int64, prompt then completion."""
    mask: Tensor = shaped("B T")
    """bool, True where the policy chose the token: not prompt, tool output or padding."""
    old_log_probs: Tensor = shaped("B T")
    """float32 nats, under the policy before the update; 0 where ``mask`` is False."""
    advantages: Tensor = shaped("B T")
    """float32, 0 where ``mask`` is False."""
    ref_log_probs: Tensor | None = shaped("B T", default=None)
    """float32 nats, under the frozen reference; needed where the KL term has a weight."""
    engine_log_probs: Tensor | None = shaped("B T", default=None)
    """float32 nats, as the engine computed them while sampling."""
    chosen: Tensor | None = shaped("B T", default=None)
    """bool, tokens that an objective singled out of the whole batch before it was split."""
    values: Tensor | None = shaped("B T", default=None)
    """float32, the old critic's value of the state in which each token was chosen."""
    returns: Tensor | None = shaped("B T", default=None)
    """float32, what a critic is fitted to; 0 where ``mask`` is False."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rollout:
    """What ``Engine.generate`` returns; row ``p * group_size + g`` is completion g of prompt p."""

    tokens: Tensor
    """``(B, T)`` int64: prompt, completion, padding on the right."""
    mask: Tensor
    """``(B, T)`` bool, True at the tokens that were sampled, the stop token included. The first
    column after a prompt and a completion's last are; tool output may lie between."""
    old_log_probs: Tensor
    """``(B, T)`` float32 nats under the untempered policy; 0 where ``mask`` is False."""
    tempered_log_probs: Tensor
    """``(B, T)`` float32 nats of logits / temperature before top-k and top-p; the same tensor as
    ``old_log_probs`` at temperature 1."""
    finish_reasons: Sequence[str]
    """B times ``"stop"`` or ``"length"``."""
    tool_calls: Sequence[int] = ()
    """B counts of the calls that a tool answered; empty where there is none."""
    tool_errors: Sequence[int] = ()
    """B counts of those that failed."""

    def completions(self) -> list[list[int]]:
        """Return each row's sampled tokens, the stop token included."""
        return [row[keep].tolist() for row, keep in zip(self.tokens, self.mask, strict=True)]

    def continuations(self) -> list[list[int]]:
        """Return all that follows each row's prompt: what was sampled, and tool output between."""
        sampled = self.mask.int().cumsum(-1)
        inside = (sampled > 0) & ((sampled < sampled[:, -1:]) | self.mask)
        return [row[keep].tolist() for row, keep in zip(self.tokens, inside, strict=True)]
