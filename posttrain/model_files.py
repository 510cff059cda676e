"""What can be seen of a model folder without loading it: errors before any work."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from launch.errors import UsageError
from launch.replacing import folder_to_read
from posttrain.decoder import HeadKind
from posttrain.model_weights import find_misfit

__all__ = ["MODEL_KINDS", "check_model_folder", "check_safetensors", "lacks_chat_template"]

_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
_TEMPLATES = (
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
    "tekken.json",  # which has its own
)
MODEL_KINDS: dict[HeadKind, str] = {
    "ForCausalLM": "causal language model",
    "ForSequenceClassification": "reward model",
    "ForTokenClassification": "process reward model",
}
"""How the names of transformers' classes end, and what is made of them here."""
_CAUSAL = ("ForCausalLM", "LMHeadModel")
_BITS = {"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "BOOL": 8, "C64": 64, "F4": 4}
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_OLD_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def check_model_folder(path: Path | str, kind: HeadKind = "ForCausalLM") -> None:
    """Look at a Hugging Face folder's files; of the weights only names and shapes are read.

    Raises:
        UsageError: There is no config, no tokenizer or no weights, the config is not that of a
            model of this kind, it promises other tensors than there are, or a file is damaged. One
            line that names the folder or file.
    """
    folder = folder_to_read(Path(path))
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: give a Hugging Face model folder or a hub id")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise UsageError(
                f"{folder} holds an adapter, not a model: merge it into its base model first"
            )
        raise UsageError(f"{folder} has no config.json: it is not a Hugging Face model folder")
    config = _read_config(folder / "config.json", kind)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise UsageError(
            f"{folder} has no tokenizer (such as tokenizer.json): copy the one the model was "
            "trained with into it"
        )
    _check_tokenizer(folder)
    shapes = _read_shapes(folder)
    causal = kind == "ForCausalLM"  # others are compared when they are loaded
    misfit = find_misfit(config, shapes) if causal and shapes is not None else None
    if misfit is not None:
        raise UsageError(
            f"{folder} has weights that do not fit its config.json (model_type "
            f"{config['model_type']}): {misfit}. Take config and weights from the same model"
        )


def lacks_chat_template(folder: Path) -> bool:
    """Return whether a folder's tokenizer has no chat template; False where files cannot tell."""
    if not folder.is_dir() or any((folder / name).exists() for name in _TEMPLATES):
        return False
    file = folder / "tokenizer_config.json"
    return not (file.is_file() and _read_json(file).get("chat_template"))


def _read_config(file: Path, kind: HeadKind) -> dict[str, Any]:
    config = _read_json(file)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UsageError(f"{file} names no model_type: it is not a transformers model's config")
    kinds = config.get("architectures")
    kinds = kinds if isinstance(kinds, list) else []
    endings = _CAUSAL if kind == "ForCausalLM" else (kind,)
    if kinds and not any(str(name).endswith(endings) for name in kinds):
        raise UsageError(
            f"{file.parent} holds a {', '.join(map(str, kinds))}, expected a {MODEL_KINDS[kind]} "
            f"(one whose architecture ends in {kind})"
        )
    return config


def _check_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    if file.is_file() and not isinstance(_read_json(file), dict):
        raise UsageError(f"{file} holds no JSON object: copy the tokenizer again")
    file = folder / "tokenizer.json"
    if file.is_file():
        tokenizer = _read_json(file)
        if not isinstance(tokenizer, dict) or not isinstance(tokenizer.get("model"), dict):
            raise UsageError(
                f"{file} holds no tokenizer (a JSON object with a model): copy the one the model "
                "was trained with"
            )


def _read_shapes(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """Return every stored tensor's shape, or None where only old weights without a header are."""
    if (folder / _WEIGHTS[0]).is_file():
        return check_safetensors(folder / _WEIGHTS[0])
    if (folder / _WEIGHTS[1]).is_file():
        return _read_shards(folder, folder / _WEIGHTS[1])
    if not any((folder / name).is_file() for name in _OLD_WEIGHTS):
        raise UsageError(f"{folder} has no weights (model.safetensors): copy them into it")
    return None


def _read_shards(folder: Path, file: Path) -> dict[str, tuple[int, ...]]:
    index = _read_json(file)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise UsageError(f"{file} has no weight_map: copy the folder again")
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted({str(place) for place in places.values()}):
        if not (folder / name).is_file():
            raise UsageError(f"{folder} lacks {name}, which its index names: copy it again")
        shapes |= check_safetensors(folder / name)
    lost = sorted(set(places) - set(shapes))
    if lost:
        raise UsageError(
            f"{file} names {lost[0]}, which {places[lost[0]]} does not hold: copy the folder again"
        )
    return shapes


def check_safetensors(file: Path) -> dict[str, tuple[int, ...]]:
    """Compare a safetensors file's header with the file's length.

    Returns:
        The shape of each tensor.

    Raises:
        UsageError: It is cut short, or its header does not parse or contradicts itself.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if len(first) < 8 or length > size - 8 or length < 2:
            raise UsageError(_damaged(file, f"its header is cut off at {size} bytes"))
        text = stream.read(length)
    try:
        header = json.loads(text)
    except ValueError:
        raise UsageError(_damaged(file, "its header is not JSON")) from None
    if not isinstance(header, dict):
        raise UsageError(_damaged(file, "its header is not a JSON object"))
    header.pop("__metadata__", None)
    ends = [8 + length]
    for name, entry in header.items():
        end = _end(entry)
        if end is None:
            raise UsageError(_damaged(file, f"the header's entry of {name} contradicts itself"))
        ends.append(8 + length + end)
    if max(ends) != size:
        raise UsageError(_damaged(file, f"it has {size} bytes, its header says {max(ends)}"))
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def _end(entry: Any) -> int | None:  # noqa: ANN401 whatever the JSON holds
    """Return where a tensor's bytes end, or None if type, shape and offsets do not fit."""
    try:
        kind, shape = entry["dtype"], entry["shape"]
        begin, end = entry["data_offsets"]
        bits = _BITS.get(kind) or int("".join(c for c in kind if c.isdigit()))
        fits = begin >= 0 and (end - begin) * 8 == math.prod(shape) * bits
    except (TypeError, KeyError, ValueError):
        return None
    return int(end) if fits else None


def _damaged(file: Path, why: str) -> str:
    return f"{file} is damaged: {why}; copy or download it again"


def _read_json(file: Path) -> Any:  # noqa: ANN401 whatever the JSON holds
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{file} does not parse as JSON: {reason}") from None
