"""Language models with their tokenizers: small ones made from nothing, and checkpoints.

transformers is imported inside functions: it takes seconds, and checks before work need none of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from launch.errors import UsageError
from launch.replacing import folder_to_read, replaced_folder
from posttrain.decoder import HeadKind
from posttrain.model_files import MODEL_KINDS, check_model_folder
from posttrain.model_settings import for_saving, is_known, saved_weights, write_settings
from posttrain.model_weights import describe_misfit, harmless

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Dtype",
    "LanguageModel",
    "check_model_folder",
    "load_checkpoint",
    "load_model",
    "quiet",
    "save_model",
    "tiny_model",
    "train_tokenizer",
]

Dtype = Literal["float32", "bfloat16", "float16"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.*",
    "additional_chat_templates",
    "*.model",
    "dict.txt",
    "byte_maps.json",
)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A model with its tokenizer, and what about them is settled once for all."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pad_token: int
    """Stands where there is nothing; masks never look at it, so it may equal a stop token."""
    stop_tokens: tuple[int, ...]
    """Ids that end a turn; sampling stops at them."""


def tiny_model(
    tokenizer: PreTrainedTokenizerBase,
    *,
    layers: int = 4,
    width: int = 64,
    heads: int = 4,
    key_heads: int | None = None,
    inner: int | None = None,
    positions: int = 2048,
    seed: int = 0,
) -> LanguageModel:
    """Make a small Llama with random weights and tied embeddings.

    A Llama, because for it transformers' ``AutoTokenizer`` takes the folder's own tokenizer; for a
    Qwen2 it puts Qwen's way of splitting text in place of the one that the tokenizer learnt with.

    Args:
        tokenizer: Of ``train_tokenizer``, or any.
        layers: Decoder layers.
        width: D, of the residual stream.
        heads: Of queries; divides ``width`` into even parts.
        key_heads: Of keys and values, a divisor of ``heads``; by default as many as of queries.
        inner: Width of the feed-forward part; by default ``3 * width``.
        positions: Most tokens of a sequence.
        seed: The weights depend on it alone; the global random state is left as it is.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    key_heads = heads if key_heads is None else key_heads
    inner = 3 * width if inner is None else inner
    sizes = {"layers": layers, "width": width, "heads": heads, "key_heads": key_heads}
    for name, size in (sizes | {"inner": inner, "positions": positions}).items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name}={size!r}: expected a whole number of at least 1")
    if heads % key_heads:
        raise ValueError(
            f"key_heads={key_heads} with heads={heads}: each head of keys and values serves the "
            "same number of heads of queries, so key_heads must divide heads"
        )
    if width % heads or (width // heads) % 2:
        raise ValueError(
            f"width={width} with heads={heads}: each head needs the same even number of features, "
            "because rotary positions turn them in pairs"
        )
    stops = _stop_tokens(tokenizer, None)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        pad_token_id=pad,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        use_cache=False,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return LanguageModel(model, tokenizer, pad, stops)


def train_tokenizer(
    texts: Sequence[str], *, vocabulary: int = 256, tags: Sequence[str] = ()
) -> PreTrainedTokenizerBase:
    """Learn a byte-pair encoding from texts, with a chat template.

    Numbers are kept apart from all else, so a token is a whole number or none. Between them,
    merges cross the bounds of words (as in SuperBPE, Liu et al. 2025, arXiv:2503.13423): what a
    task says again and again becomes a token or two. The tags ``<think>``,
    ``</think>``, ``<answer>`` and ``</answer>`` are tokens of their own, but not special ones:
    decoding keeps them.

    Args:
        texts: At least one; characters that occur in none of them become ``<unk>``.
        vocabulary: Most tokens in all, the special ones included.
        tags: More tags that are tokens of their own, such as those of a tool.

    Raises:
        TypeError: ``texts`` is one text, or holds something else than texts.
        ValueError: There are no texts, or their bytes alone need a larger vocabulary.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from posttrain.data.chat import CHAT_TEMPLATE, CHAT_TOKENS

    special = ["<pad>", "<unk>", *CHAT_TOKENS]
    tags = (*_TAGS, *tags)
    pieces = _pieces(texts, tags)
    known = len(set("".join(pieces).encode()))
    least = len(special) + len(tags) + known
    if not isinstance(vocabulary, int) or vocabulary < least:
        raise ValueError(
            f"vocabulary={vocabulary!r}: use a whole number of at least {least}, which is what "
            f"{len(special)} special tokens, {len(tags)} tags and the {known} different bytes of "
            "these texts need"
        )
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(tags),
        special_tokens=special,
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(pieces, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in tags])
    with quiet():
        made = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            unk_token="<unk>",
            eos_token="<|end|>",
            extra_special_tokens=[token for token in CHAT_TOKENS if token != "<|end|>"],
            clean_up_tokenization_spaces=False,
        )
        made.chat_template = CHAT_TEMPLATE
    return made


def _pieces(texts: Sequence[str], tags: Sequence[str]) -> list[str]:
    """Return what stands between the tags of texts, after a look at what they are."""
    if isinstance(texts, str | bytes):
        raise TypeError(
            f"texts is one {type(texts).__name__}: give a list of texts, such as [text]"
        )
    texts = list(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {index} is a {type(text).__name__}, expected str")
    if not texts:
        raise ValueError("there are no texts to learn a tokenizer from: give at least one")
    around_tags = re.compile("|".join(map(re.escape, tags)))
    return [piece for text in texts for piece in around_tags.split(text)]


def load_model(path_or_hub_id: Path | str, *, dtype: Dtype = "float32") -> LanguageModel:
    """Load a causal language model and its tokenizer from a folder or the hub.

    Args:
        path_or_hub_id: A folder as ``save_model`` or transformers writes it, or a hub id.
        dtype: Of the parameters.

    Raises:
        UsageError: It cannot be loaded, or its weights are not those that its config promises,
            so that some would stay random; one line says why.
    """
    return load_checkpoint(path_or_hub_id, "ForCausalLM", dtype=dtype)


def load_checkpoint(
    path_or_hub_id: Path | str, kind: HeadKind, *, dtype: Dtype = "float32"
) -> LanguageModel:
    """Load a model with any of the heads that this package knows, as ``load_model`` does."""
    if dtype not in _DTYPES:
        raise UsageError(f"dtype={dtype!r}: use one of {', '.join(_DTYPES)}")
    name = str(path_or_hub_id)
    stored = folder_to_read(Path(name))
    if stored.exists():
        name = str(stored)
        check_model_folder(name, kind)
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"{name} does not exist: give a model folder or a hub id")
    import transformers

    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(name)
            model, loaded = getattr(transformers, f"AutoModel{kind}").from_pretrained(
                name,
                dtype=_DTYPES[dtype],
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except Exception as error:  # transformers, safetensors and the hub raise what they like
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if not Path(name).exists():
            raise UsageError(
                f"there is no folder {name}, and as a hub id it could not be had: {reason}"
            ) from error
        raise UsageError(
            f"{name} cannot be loaded as a {MODEL_KINDS[kind]} with its tokenizer: {reason}"
        ) from error
    misfit = describe_misfit(
        sorted(loaded["missing_keys"]),
        sorted(key for key in loaded["unexpected_keys"] if not harmless(key)),
        sorted((key, list(stored), list(own)) for key, stored, own in loaded["mismatched_keys"]),
    )
    if misfit is not None:
        raise UsageError(
            f"{name} has weights that do not fit its config.json ({type(model).__name__}): "
            f"{misfit}. Take config and weights from the same model"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UsageError(
            f"{name} has a tokenizer of {len(tokenizer)} tokens, but a model of {rows}: "
            "they do not belong together"
        )
    model.config.use_cache = False
    stops = _stop_tokens(tokenizer, model)
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    pad = tokenizer.pad_token_id
    return LanguageModel(model, tokenizer, 0 if pad is None else pad, stops)


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path | str
) -> None:
    """Write an ordinary Hugging Face folder, whole or not at all.

    An older model's folder is replaced; what else stands in it is kept.

    Raises:
        UsageError: Something else than a model stands there, or it could not be written, for
            example because the disk is full. What stood there is intact.
    """
    with replaced_folder(Path(folder), kind="model", own=_MODEL_FILES) as new:
        try:
            with quiet(), for_saving(model):
                _write_weights(model, new)
                tokenizer.save_pretrained(new)
        except Exception as error:  # tokenizers raises nothing narrower where the disk is full
            raise OSError(str(error)) from error


def _write_weights(model: PreTrainedModel, folder: Path) -> None:
    """Write config and weights as ``save_pretrained`` does, which loads deepspeed for seconds."""
    if not is_known(model):
        model.save_pretrained(folder)
        return
    from safetensors.torch import save_file

    weights = {name: x.contiguous() for name, x in saved_weights(model).items()}
    write_settings(model, folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _stop_tokens(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None
) -> tuple[int, ...]:
    """Return every id that ends a turn: the tokenizer's first, then the model's own."""
    found = [tokenizer.eos_token_id]
    own = () if model is None else (getattr(model, "generation_config", None), model.config)
    for settings in own:
        more = getattr(settings, "eos_token_id", None)
        found += more if isinstance(more, list | tuple) else [more]
    return tuple(dict.fromkeys(token for token in found if isinstance(token, int)))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' warnings and progress bars off the console inside the block."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
