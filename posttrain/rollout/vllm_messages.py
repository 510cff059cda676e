"""What is said to a vLLM server about completions, and what is taken from its answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from posttrain.rollout.batch import Sampling
from posttrain.rollout.completion import Completions

__all__ = ["Drawn", "as_completions", "read_answer", "request_of", "seed_of", "seed_sent"]

_SPREAD = 0x9E3779B97F4A7C15
"""2^64 / golden ratio; odd, so that multiplying by it modulo 2^64 loses nothing."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One completion."""

    tokens: list[int]
    log_probs: list[float]
    stopped: bool


def seed_sent(seed: int) -> int:
    """Return the seed of a request, an int64.

    vLLM draws completion g of a request with its seed + g, so seeds next to each other would share
    their noise: these are put far apart.
    """
    spread = seed * _SPREAD % (1 << 64)
    return spread - (1 << 64) if spread >= 1 << 63 else spread


def seed_of(sent: int) -> int:
    """Return the seed, modulo 2^64, for which ``sent`` was sent.

    >>> [seed_of(seed_sent(seed)) for seed in (0, 1, 2**63)] == [0, 1, 2**63]
    True
    """
    return sent * pow(_SPREAD, -1, 1 << 64) % (1 << 64)


def request_of(
    model: str, prompt: list[int], sampling: Sampling, stops: set[int], group_size: int, seed: int
) -> dict[str, Any]:
    """Return the body for one prompt. What is left out would be the server's choice."""
    return {
        "model": model,
        "prompt": prompt,
        "n": group_size if sampling.temperature else 1,  # vLLM refuses more when it is greedy
        "seed": seed_sent(seed),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": sorted(stops),
        "ignore_eos": True,  # the sampling's stop tokens are all that stops
        "logprobs": 0,  # of the sampled token alone
        "return_token_ids": True,
    }


def read_answer(
    answer: Any,  # noqa: ANN401 whatever JSON the server sent
    request: Mapping[str, Any],
    group_size: int,
    vocabulary: int,
) -> list[Drawn]:
    """Return the completions of a request.

    Raises:
        ValueError: They cannot be trusted; says what the answer has.
    """
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if [choice["index"] for choice in choices] != list(range(request["n"])):
            raise ValueError(f"{len(choices)} completions instead of {request['n']}")
        found = [_read(choice, request, vocabulary) for choice in choices]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"what is no completion: {type(error).__name__} {error}") from None
    return found if len(found) == group_size else found * group_size  # greedy: asked for once


def _read(choice: Mapping[str, Any], request: Mapping[str, Any], vocabulary: int) -> Drawn:
    tokens, prompt = choice["token_ids"], choice.get("prompt_token_ids")
    if prompt is not None and prompt != request["prompt"]:
        raise ValueError("completions of another prompt than was sent")
    if tokens is None:
        raise ValueError("no token ids, though return_token_ids was asked for: vLLM is too old")
    if any(not isinstance(token, int) or not 0 <= token < vocabulary for token in tokens):
        raise ValueError(
            f"a token that is not from 0 to {vocabulary - 1}: it serves a model of another "
            "vocabulary"
        )
    reason, limit = choice.get("finish_reason"), request["max_tokens"]
    stops = set(request["stop_token_ids"])
    stopped = bool(tokens) and tokens[-1] in stops
    whole = len(tokens) == limit or (stopped and len(tokens) < limit)
    if reason not in ("stop", "length") or not whole or not stops.isdisjoint(tokens[:-1]):
        raise ValueError(
            f"a completion of {len(tokens)} tokens that ended by {reason!r}, where a stop token or "
            f"max_tokens={limit} should end it: see that it runs with --generation-config vllm"
        )
    log_probs = (choice.get("logprobs") or {}).get("token_logprobs")
    if log_probs is None or len(log_probs) != len(tokens):
        count = 0 if log_probs is None else len(log_probs)
        raise ValueError(f"{count} log-probs of {len(tokens)} tokens")
    if any(not isinstance(x, int | float) or not -math.inf < x < 1e-3 for x in log_probs):
        raise ValueError("a log-prob that is none: see its --logprobs-mode, raw_logprobs is right")
    return Drawn(tokens, [float(x) for x in log_probs], stopped)


def as_completions(drawn: Sequence[Drawn], sampling: Sampling) -> Completions:
    """Put completions into the tensors that every engine fills."""
    into = Completions(len(drawn), sampling, torch.device("cpu"))
    if sampling.temperature not in (0.0, 1.0):
        into.tempered.fill_(math.nan)
    for row, one in enumerate(drawn):
        count = len(one.tokens)
        into.tokens[:count, row] = torch.tensor(one.tokens)
        into.log_probs[:count, row] = torch.tensor(one.log_probs)
        into.lengths[row] = count
        into.stopped[row] = one.stopped
    return into
