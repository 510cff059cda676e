"""What a saved model folder says: its config, and the names of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from torch import Tensor

from posttrain.decoder import HeadKind, unsupported

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["for_saving", "is_known", "plain_weights", "saved_weights", "write_settings"]


def is_known(model: PreTrainedModel) -> bool:
    """Return whether a model is of a kind whose weights this package knows by name."""
    kinds: tuple[HeadKind, ...] = get_args(HeadKind)
    return any(unsupported(model, kind) is None for kind in kinds)


def saved_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the weights of a known model by the names of a saved folder; of tied ones, one."""
    weights: dict[str, Tensor] = model.state_dict()
    if "lm_head.weight" in weights and model.lm_head.weight is model.model.embed_tokens.weight:
        del weights["lm_head.weight"]
    return weights


def plain_weights(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """Return the weights as a saved folder has them; None if it has them in another form.

    transformers renames or splits the weights of some models when it saves them.
    """
    if is_known(model):
        return saved_weights(model)
    from transformers.conversion_mapping import get_model_conversion_mapping

    if get_model_conversion_mapping(model, add_legacy=False):
        return None
    weights: dict[str, Tensor] = model.state_dict()
    return {name: x for name, x in weights.items() if name not in model.all_tied_weights_keys}


def write_settings(model: PreTrainedModel, folder: Path) -> None:
    """Write ``config.json``, and ``generation_config.json`` if the model generates."""
    model.config.architectures = [type(model).__name__]
    model.config.dtype = model.dtype
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


@contextmanager
def for_saving(model: PreTrainedModel) -> Iterator[None]:
    """Let the config say inside the block what it says to whoever loads the model."""
    caches = model.config.use_cache
    try:
        model.config.use_cache = True  # training has no use for it
        yield
    finally:
        model.config.use_cache = caches
