"""The model of a job without its weights: its sizes are what a plan needs of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from launch.errors import UsageError
from posttrain.adapters import LoRA, with_adapters
from posttrain.models import LanguageModel, quiet
from posttrain.recipes.sources import ModelSource, Pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Bare", "bare_model"]

_BYTES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Bare:
    """A model whose parameters have shapes and no values, and its tokenizer if it is there."""

    model: PreTrainedModel
    lm: LanguageModel | None
    """With the tokenizer; None if there is none."""


def bare_model(source: ModelSource, texts: Sequence[str], lora: LoRA | None, seed: int) -> Bare:
    """Return a job's model on the meta device, so that one of any size can be planned anywhere.

    Of a checkpoint the folder's config.json is enough, or the file itself. A model made from
    nothing is small: it is made.

    Raises:
        UsageError: There is no such folder or file, or it holds no causal language model's config.
    """
    if not isinstance(source, Pretrained):
        lm: LanguageModel | None = source.load(texts, seed)
        assert lm is not None
        model = lm.model
    else:
        model = _from_config(source)
        tokenizer = _tokenizer(Path(source.path))
        stop = getattr(tokenizer, "eos_token_id", None)
        stops = (stop,) if isinstance(stop, int) else ()
        lm = None if tokenizer is None else LanguageModel(model, tokenizer, 0, stops)
    if lora is not None:
        lora.check()
        whole = LanguageModel(model, None, 0, ()) if lm is None else lm
        model = with_adapters(whole, lora, seed=seed).model
    return Bare(model, lm)


def _from_config(source: Pretrained) -> PreTrainedModel:
    if not source.path:
        raise UsageError("no model is given: add --model FOLDER, or its config.json")
    path = Path(source.path)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(
            f"{file} does not exist: a plan needs a local model folder, or its config.json"
        )
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(str(file))
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=_BYTES[source.dtype]
            )
    except Exception as error:  # transformers raises what it likes
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"{file} is no causal language model's config: {reason}") from error
    return model.train()


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """Return a folder's tokenizer, or None if it has none that can be loaded."""
    if not folder.is_dir():
        return None
    from transformers import AutoTokenizer

    try:
        with quiet():
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder))
    except Exception:  # there is none, or it needs a package: lengths are assumed then
        return None
    if found.pad_token_id is None and found.eos_token is not None:
        found.pad_token = found.eos_token
    return found
