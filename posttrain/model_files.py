"""What can be seen of a model folder without loading it: errors before any work."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from launch.errors import UsageError

__all__ = ["check_model_folder", "check_safetensors"]

_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
_CAUSAL = ("ForCausalLM", "LMHeadModel")
_BITS = {"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "BOOL": 8, "C64": 64, "F4": 4}
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_OLD_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def check_model_folder(path: Path | str) -> None:
    """Look at a Hugging Face folder's files; weights are not read, only their lengths compared.

    Raises:
        UsageError: There is no config, no tokenizer or no weights, the config is not a causal
            language model's, or a file is damaged. One line that names the folder or file.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: give a Hugging Face model folder or a hub id")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise UsageError(
                f"{folder} holds an adapter, not a model: merge it into its base model first"
            )
        raise UsageError(f"{folder} has no config.json: it is not a Hugging Face model folder")
    _check_config(folder / "config.json")
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise UsageError(
            f"{folder} has no tokenizer (such as tokenizer.json): copy the one the model was "
            "trained with into it"
        )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            _read_json(folder / name)
    _check_weights(folder)


def _check_config(file: Path) -> None:
    config = _read_json(file)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UsageError(f"{file} names no model_type: it is not a transformers model's config")
    kinds = config.get("architectures")
    kinds = kinds if isinstance(kinds, list) else []
    if kinds and not any(str(kind).endswith(_CAUSAL) for kind in kinds):
        raise UsageError(
            f"{file.parent} holds a {', '.join(map(str, kinds))}, expected a causal language model "
            "(one whose architecture ends in ForCausalLM)"
        )


def _check_weights(folder: Path) -> None:
    if (folder / _WEIGHTS[0]).is_file():
        check_safetensors(folder / _WEIGHTS[0])
    elif (folder / _WEIGHTS[1]).is_file():
        index = _read_json(folder / _WEIGHTS[1])
        places = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(places, dict) or not places:
            raise UsageError(f"{folder / _WEIGHTS[1]} has no weight_map: copy the folder again")
        for name in sorted({str(place) for place in places.values()}):
            if not (folder / name).is_file():
                raise UsageError(f"{folder} lacks {name}, which its index names: copy it again")
            check_safetensors(folder / name)
    elif not any((folder / name).is_file() for name in _OLD_WEIGHTS):
        raise UsageError(f"{folder} has no weights (model.safetensors): copy them into it")


def check_safetensors(file: Path) -> None:
    """Compare a safetensors file's header with the file's length.

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
