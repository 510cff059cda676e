from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.errors import UsageError
from posttrain.data.chat import encode_prompt
from posttrain.data.tasks.base import Prompt
from posttrain.models import (
    Dtype,
    LanguageModel,
    check_model_folder,
    load_model,
    save_model,
    tiny_model,
    train_tokenizer,
)

TEXTS = [
    f"State the sum: {a} + {b} =\n<think>\n{a} + {b} = {a + b}\n</think>\n<answer>{a + b}</answer>"
    for a in range(10)
    for b in range(30)
]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model(train_tokenizer(TEXTS, vocabulary=120), layers=2, width=32, seed=3)


def test_the_tokenizer_gives_text_back_with_its_tags(lm: LanguageModel) -> None:
    assert len(lm.tokenizer) <= 120
    for text in TEXTS[::50]:
        tokens = lm.tokenizer.encode(text, add_special_tokens=False)
        assert lm.tokenizer.decode(tokens, skip_special_tokens=True) == text


def test_tags_and_numbers_are_tokens_of_their_own(lm: LanguageModel) -> None:
    pieces = [lm.tokenizer.decode([t]) for t in lm.tokenizer.encode("<answer>25</answer> 7\n")]
    assert pieces == ["<answer>", "25", "</answer>", " ", "7", "\n"]


def test_unknown_characters_become_unk(lm: LanguageModel) -> None:
    assert lm.tokenizer.unk_token_id in lm.tokenizer.encode("€")


def test_chats_go_through_the_template(lm: LanguageModel) -> None:
    prompt = Prompt(messages=({"role": "user", "content": "1 + 2 ="},), answer="3")
    tokens = encode_prompt(lm.tokenizer, prompt)
    assert lm.tokenizer.decode(tokens) == "<|user|>1 + 2 =<|end|><|assistant|>"
    assert lm.stop_tokens == (lm.tokenizer.convert_tokens_to_ids("<|end|>"),)
    assert lm.pad_token == lm.tokenizer.pad_token_id != lm.stop_tokens[0]


def test_training_a_tokenizer_twice_gives_the_same() -> None:
    first, again = (train_tokenizer(TEXTS, vocabulary=100).get_vocab() for _ in range(2))
    assert first == again


def test_more_tags_are_tokens_of_their_own_and_never_merged() -> None:
    # 6 special tokens, 4 tags, 2 more, the bytes of (, a and </tool>; tags are text, no patterns.
    texts = ["(a<tool>b)</tool>", "<tool>((</tool>"] * 3
    tags = ("<tool>", "b)")
    with pytest.raises(ValueError, match=r"at least 20, .* 6 tags and the 8 different bytes"):
        train_tokenizer(texts, vocabulary=19, tags=tags)
    tokenizer = train_tokenizer(texts, vocabulary=60, tags=tags)
    for tag in tags:
        assert tokenizer.encode(tag) == [tokenizer.convert_tokens_to_ids(tag)]
        others = [token for token in tokenizer.get_vocab() if token != tag]
        assert not [token for token in others if tag in token]
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]


def test_weights_depend_on_the_seed_alone(lm: LanguageModel) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = tiny_model(lm.tokenizer, layers=2, width=32, seed=3)
    assert torch.equal(torch.rand(3), expected)
    other = tiny_model(lm.tokenizer, layers=2, width=32, seed=4)
    for name, parameter in lm.model.state_dict().items():
        assert torch.equal(parameter, again.model.state_dict()[name])
    assert not torch.equal(lm.model.lm_head.weight, other.model.lm_head.weight)


def test_heads_must_divide_the_width(lm: LanguageModel) -> None:
    for width, heads in ((30, 4), (12, 4)):
        with pytest.raises(ValueError, match=f"width={width} with heads={heads}"):
            tiny_model(lm.tokenizer, width=width, heads=heads)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"heads": 4, "key_heads": 3}, "key_heads=3 with heads=4"),
        ({"heads": 4, "key_heads": 8}, "key_heads=8 with heads=4"),
        ({"key_heads": 0}, "key_heads=0: expected a whole number of at least 1"),
        ({"layers": 0}, "layers=0: expected"),
        ({"layers": -1}, "layers=-1: expected"),
        ({"layers": 1.5}, "layers=1.5: expected"),
        ({"positions": 0}, "positions=0: expected"),
        ({"heads": 0}, "heads=0: expected"),
        ({"width": 0}, "width=0: expected"),
        ({"inner": 0}, "inner=0: expected"),
    ],
)
def test_sizes_that_make_no_model(lm: LanguageModel, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny_model(lm.tokenizer, **settings)


def test_texts_that_teach_no_tokenizer() -> None:
    with pytest.raises(ValueError, match="there are no texts"):
        train_tokenizer([])
    with pytest.raises(TypeError, match="texts is one str"):
        train_tokenizer("one text")
    with pytest.raises(TypeError, match="text 1 is a int, expected str"):
        train_tokenizer(["a", 3])  # type: ignore[list-item]  # a wrong one


def test_the_least_vocabulary_is_named_and_enough() -> None:
    # <pad>, <unk> and four of the chat, four tags, and the bytes of a, b, space and the two of é.
    texts = ["<think>a b</think>é"] * 3
    with pytest.raises(ValueError, match=r"vocabulary=14: .* at least 15.* 5 different bytes"):
        train_tokenizer(texts, vocabulary=14)
    tokenizer = train_tokenizer(texts, vocabulary=15)
    assert len(tokenizer) == 15
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]


@pytest.mark.parametrize(
    ("loaded", "saved"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("float32", "float16")]
)
def test_the_config_says_the_type_that_was_written(
    lm: LanguageModel, tmp_path: Path, loaded: Dtype, saved: str
) -> None:
    save_model(lm.model, lm.tokenizer, tmp_path / "first")
    again = load_model(tmp_path / "first", dtype=loaded)
    save_model(again.model.to(getattr(torch, saved)), again.tokenizer, tmp_path / "second")
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert config["dtype"] == saved
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "second", dtype="auto")
    assert model.dtype == getattr(torch, saved)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_saved_files_have_ordinary_permissions(
    lm: LanguageModel, tmp_path: Path, mask: int, mode: int
) -> None:
    before = os.umask(mask)
    try:
        save_model(lm.model, lm.tokenizer, tmp_path / "model")
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys(modes, mode)
    assert "model.safetensors" in modes


MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "gpt2"}, "missing: transformer.wte.weight and"),
    ({"model_type": "qwen2"}, "missing: model.layers.0.self_attn.q_proj.bias and 5 more"),
    ({"model_type": "bert"}, "LlamaForCausalLM has model_type 'llama'"),
    (
        {"model_type": "bert", "architectures": ["BertLMHeadModel"]},
        r"missing: bert.* and \d+ more; unexpected: model.embed_tokens.weight and 19 more",
    ),
    ({"num_hidden_layers": 3}, "2 layers are stored, but num_hidden_layers is 3; missing: "),
    ({"num_hidden_layers": 1}, "2 layers are stored, but num_hidden_layers is 1; unexpected: "),
    ({"hidden_size": 64}, r"model.embed_tokens.weight .* shape \[\d+, 32\], promised is \[\d+, 64"),
    ({"vocab_size": 999}, r"model.embed_tokens.weight .* has shape .* promised is \[999, 32\]"),
    ({"tie_word_embeddings": False}, "missing: lm_head.weight"),
]


@pytest.mark.parametrize(("change", "said"), MISFITS)
@pytest.mark.parametrize("seen", [True, False])
def test_no_weight_is_left_random(
    lm: LanguageModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    said: str,
    seen: bool,
) -> None:
    save_model(lm.model, lm.tokenizer, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | change))
    if not seen:  # as with a model of the hub, whose files are not looked at before
        monkeypatch.setattr("posttrain.models.check_model_folder", lambda *_: None)
        said = r"(do not fit|layers|has shape|missing|unexpected|cannot be loaded)"
    with pytest.raises(UsageError, match=said) as caught:
        load_model(tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert re.search("do not fit its config.json", str(caught.value))


def test_tensors_that_were_lost_or_are_too_many(lm: LanguageModel, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_model(lm.model, lm.tokenizer, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    lost = {k: x for k, x in weights.items() if k != "model.layers.1.mlp.up_proj.weight"}
    save_file(lost, file, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"missing: model.layers.1.mlp.up_proj.weight\. "):
        load_model(tmp_path / "model")
    save_file(weights | {"v_head.weight": torch.ones(1)}, file, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"unexpected: v_head.weight\. "):
        load_model(tmp_path / "model")
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(weights | old, file, metadata={"format": "pt"})
    assert torch.equal(load_model(tmp_path / "model").model.lm_head.weight, lm.model.lm_head.weight)


def test_a_saved_model_comes_back(lm: LanguageModel, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(lm.model, lm.tokenizer, folder)
    (folder / "model-00001-of-00002.safetensors").write_text("of an earlier model")
    (folder / "README.md").write_text("mine")
    save_model(lm.model, lm.tokenizer, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (folder / "model-00001-of-00002.safetensors").exists()
    assert (folder / "README.md").read_text() == "mine"
    check_model_folder(folder)
    loaded = load_model(folder)
    assert (loaded.pad_token, loaded.stop_tokens) == (lm.pad_token, lm.stop_tokens)
    assert loaded.model.config.use_cache is False
    assert loaded.tokenizer.chat_template == lm.tokenizer.chat_template
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(TEXTS[7])) == TEXTS[7]
    for name, parameter in lm.model.state_dict().items():
        assert torch.equal(parameter, loaded.model.state_dict()[name])
    assert load_model(folder, dtype="bfloat16").model.dtype == torch.bfloat16


def test_untied_and_other_models_come_back(lm: LanguageModel, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    small = {"vocab_size": len(lm.tokenizer), "hidden_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2}
    models = [
        LlamaForCausalLM(LlamaConfig(intermediate_size=16, tie_word_embeddings=False, **small)),
        GPT2LMHeadModel(GPT2Config(**small)),
    ]
    for model in models:
        save_model(model, lm.tokenizer, tmp_path / "other")
        loaded = load_model(tmp_path / "other").model
        assert type(loaded) is type(model)
        for name, parameter in model.state_dict().items():
            assert torch.equal(parameter, loaded.state_dict()[name])


@pytest.mark.slow
def test_a_saved_model_is_an_ordinary_folder_in_a_new_process(
    lm: LanguageModel, tmp_path: Path
) -> None:
    save_model(lm.model, lm.tokenizer, tmp_path / "model")
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"folder = {str(tmp_path / 'model')!r}\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        "tokens = tokenizer('1 + 2 =', return_tensors='pt')\n"
        "print(model.generate(**tokens, max_new_tokens=3, do_sample=False).tolist())\n"
        "print(tokenizer.encode('1 + 2 ='))\n"
        "print(tokenizer.encode('12 + 34 = 46\\n'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    encoded = lm.tokenizer.encode("1 + 2 =")
    assert str(encoded) in done.stdout
    assert str(lm.tokenizer.encode("12 + 34 = 46\n")) in done.stdout  # split as it was learnt
    assert str(encoded)[:-1] in done.stdout.splitlines()[0]


def test_a_model_that_cannot_be_written_leaves_the_old_one(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    save_model(lm.model, lm.tokenizer, folder)
    before = (folder / "model.safetensors").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UsageError, match=r"model cannot be written: .*No space left"):
        save_model(lm.model, lm.tokenizer, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "model.safetensors").read_bytes() == before


def test_load_model_says_in_one_line_what_is_wrong(lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"/nowhere/at/all does not exist"):
        load_model("/nowhere/at/all")
    save_model(lm.model, lm.tokenizer, tmp_path / "model")
    with pytest.raises(UsageError, match="dtype='int8'"):
        load_model(tmp_path / "model", dtype="int8")  # type: ignore[arg-type]  # a wrong one
    larger = train_tokenizer(TEXTS, vocabulary=125)
    larger.add_tokens([f"more{i}" for i in range(30)])
    larger.save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match="do not belong together"):
        load_model(tmp_path / "model")
