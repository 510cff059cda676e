"""How far a model's positions reach, and rotary frequencies that change with the length.

Scaled rotary positions have no end. Two kinds of scaling, ``dynamic`` and ``longrope``, choose
their frequencies by the length of what is run: beyond some length, keys of a shorter pass are
turned wrongly for a longer one, and what a row computes depends on the longest row beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import nn

__all__ = ["forget_lengths", "most_positions", "same_frequencies_up_to"]

Untyped: TypeAlias = Any  # a transformers config or a part of one: their attributes have no types


def _scalings(config: Untyped) -> list[Mapping[str, Untyped]]:
    """Return the config's rotary parameters, one mapping or one per type of layer."""
    found = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in found:
        return [found]
    return [part for part in found.values() if isinstance(part, Mapping)]


def most_positions(config: Untyped) -> int | None:
    """Return how many tokens the model was made for; None if its positions are scaled further.

    That is the size of a table of learned positions, or what plain rotary ones were trained on.
    """
    if any(part.get("rope_type", "default") != "default" for part in _scalings(config)):
        return None
    most = getattr(config, "max_position_embeddings", None)
    return most if isinstance(most, int) else None


def same_frequencies_up_to(config: Untyped) -> int | None:
    """Return the length from which on rotary frequencies depend on it; None if they never do."""
    lengths = []
    for part in _scalings(config):
        kind = part.get("rope_type", "default")
        if "dynamic" in kind:
            lengths.append(config.max_position_embeddings)
        elif kind == "longrope":
            lengths.append(part["original_max_position_embeddings"])
    return min(lengths, default=None)


def forget_lengths(model: nn.Module) -> None:
    """Let the next pass choose its frequencies by its own length, not by an earlier, longer one."""
    for module in model.modules():
        for name in vars(module):
            if name.endswith("max_seq_len_cached"):
                setattr(module, name, 0)
