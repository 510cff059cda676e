from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from launch.errors import UsageError
from posttrain.model_files import check_model_folder, check_safetensors, lacks_chat_template


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from safetensors.torch import save_file

    made = tmp_path / "model"
    made.mkdir()
    config = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    (made / "config.json").write_text(json.dumps(config))
    (made / "tokenizer.json").write_text('{"model": {}}')
    weights = {
        "a": torch.zeros(3, 4),
        "b": torch.zeros(5, dtype=torch.bfloat16),
        "c": torch.ones(2, dtype=torch.bool),
        "d": torch.zeros(0, 3),
        "e": torch.tensor(1.0),
    }
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    return made


def header(file: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    """Rewrite a safetensors file's header."""
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    entries = json.loads(data[8 : 8 + length])
    change(entries)
    text = json.dumps(entries).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def refused(folder: Path, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        check_model_folder(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_whole_folder_passes(folder: Path) -> None:
    check_model_folder(folder)
    check_model_folder(str(folder))


def test_no_folder_and_no_config(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "none", "is not a folder")
    (folder / "config.json").unlink()
    refused(folder, "has no config.json")
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "holds an adapter")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "does not parse as JSON"),
        ("[]", "names no model_type"),
        ('{"architectures": ["LlamaForCausalLM"]}', "names no model_type"),
        (
            '{"model_type": "bert", "architectures": ["BertForMaskedLM"]}',
            "holds a BertForMaskedLM, expected a causal language model",
        ),
        (
            '{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}',
            "holds a T5ForConditionalGeneration",
        ),
    ],
)
def test_a_config_of_something_else(folder: Path, config: str, message: str) -> None:
    (folder / "config.json").write_text(config)
    refused(folder, message)


def test_no_tokenizer_or_a_damaged_one(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"a": ')
    refused(folder, "tokenizer.json does not parse")
    (folder / "tokenizer.json").unlink()
    refused(folder, "has no tokenizer")


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"model": 3}', '{"model": null}'])
def test_a_tokenizer_that_is_none(folder: Path, text: str) -> None:
    (folder / "tokenizer.json").write_text(text)
    refused(folder, "tokenizer.json holds no tokenizer")


def test_tokenizer_settings_may_be_empty_but_are_an_object(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{}")
    check_model_folder(folder)
    (folder / "tokenizer_config.json").write_text("[]")
    refused(folder, "tokenizer_config.json holds no JSON object")


def test_a_chat_template_is_found_in_either_place(folder: Path, tmp_path: Path) -> None:
    assert lacks_chat_template(folder)
    (folder / "tokenizer_config.json").write_text('{"chat_template": null}')
    assert lacks_chat_template(folder)
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert not lacks_chat_template(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert not lacks_chat_template(folder)
    assert not lacks_chat_template(tmp_path / "a-hub-id")


def test_weights_of_another_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    refused(
        folder,
        r"do not fit its config.json \(model_type gpt2\): missing: transformer.wte.weight and 3 "
        r"more; unexpected: a and 4 more",
    )
    (folder / "config.json").write_text(
        '{"model_type": "bert", "architectures": ["Qwen2ForCausalLM"]}'
    )
    refused(folder, "Qwen2ForCausalLM has model_type 'qwen2', but the config says 'bert'")


def test_old_weights_have_no_header_to_compare(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    check_model_folder(folder)


def test_no_weights_or_lost_shards(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    refused(folder, "has no weights")
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}')
    refused(folder, "lacks model-2.safetensors")
    index.write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    check_model_folder(folder)
    index.write_text('{"weight_map": {"a": "model-1.safetensors", "z": "model-1.safetensors"}}')
    refused(folder, "names z, which model-1.safetensors does not hold")
    index.write_text("{}")
    refused(folder, "has no weight_map")


@pytest.mark.parametrize("keep", [0, 5, 8, 60, -1])
def test_a_file_cut_short(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(folder, "model.safetensors is damaged: (its header is cut off|it has .* bytes)")


def test_a_file_with_something_behind_it(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"x")
    refused(folder, "is damaged: it has")


def test_shapes_come_back(folder: Path) -> None:
    shapes = check_safetensors(folder / "model.safetensors")
    assert shapes == {"a": (3, 4), "b": (5,), "c": (2,), "d": (0, 3), "e": ()}


def test_a_header_that_is_no_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[9] = 0xFF
    file.write_bytes(bytes(data))
    refused(folder, "header is not JSON")
    file.write_bytes(struct.pack("<Q", 2) + b"[]")
    refused(folder, "not a JSON object")


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": [3, 5]},
        {"dtype": "F16"},
        {"dtype": 7},
        {"data_offsets": [0]},
        {"data_offsets": [-4, 44]},
        {"shape": None},
    ],
)
def test_a_header_that_contradicts_itself(folder: Path, entry: dict[str, object]) -> None:
    header(folder / "model.safetensors", lambda entries: entries["a"].update(entry))
    with pytest.raises(UsageError, match="entry of a contradicts itself"):
        check_safetensors(folder / "model.safetensors")
