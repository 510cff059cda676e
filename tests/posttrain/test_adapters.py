"""LoRA: exact beside peft's own forward, its own reference with the adapters off, and its files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from launch.errors import UsageError
from launch.optimizers import AdamW, MuonAdamW
from posttrain.adapters import (
    LoRA,
    adapters_off,
    has_adapters,
    merge_adapters,
    save_adapter,
    trained_state,
    with_adapters,
)
from posttrain.decoder import has_dropout, unsupported
from posttrain.log_probs import shared_prompt_log_probs, token_log_probs
from posttrain.models import LanguageModel, save_model, tiny_model, train_tokenizer
from posttrain.rollout import Engine, Sampling
from posttrain.rollout.graph_engine import GraphEngine

TOKENS = torch.randint(1, 97, (4, 12), generator=torch.Generator().manual_seed(3))
BUILT = ("llama-biases-tied", "qwen3-wide-heads", "mistral-sliding", "gpt2")


def adapted(model: nn.Module, lora: LoRA | None = None, *, moved: bool = True) -> LanguageModel:
    """Return a model with adapters that have learnt something, if ``moved``."""
    lm = with_adapters(LanguageModel(model, None, 0, ()), lora or LoRA(rank=3, alpha=5.0), seed=1)  # type: ignore[arg-type]  # no tokenizer is needed
    drawn = torch.Generator().manual_seed(2)
    for name, p in lm.model.named_parameters():
        if moved and ".lora_B." in name:
            p.data = 0.3 * torch.randn(p.shape, generator=drawn)
    return lm


def tiny() -> LanguageModel:
    tokenizer = train_tokenizer(["one and one is two", "two and two is four"] * 4, vocabulary=96)
    return tiny_model(tokenizer, layers=2, width=16, heads=2)


def by_forward(model: nn.Module) -> Tensor:
    """Return ``(B, T)`` log-probabilities by transformers' and peft's own forward."""
    log_probs = model(TOKENS).logits.log_softmax(-1)[:, :-1]
    chosen = log_probs.gather(-1, TOKENS[:, 1:, None]).squeeze(-1)
    return torch.cat((chosen.new_zeros(len(chosen), 1), chosen), 1)


@pytest.mark.parametrize("name", BUILT)
def test_log_probs_and_gradients_are_those_of_peft(
    model_of: Callable[[str], nn.Module], name: str
) -> None:
    model = adapted(model_of(name)).model
    if name != "gpt2":
        assert unsupported(model) is None
    weights = torch.randn(TOKENS.shape, generator=torch.Generator().manual_seed(4))
    found = []
    for log_probs in (by_forward(model), token_log_probs(model, TOKENS)):
        model.zero_grad()
        (log_probs * weights).sum().backward()
        trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        assert all(".lora_" in n for n in trained)
        found.append((log_probs.detach(), trained))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=1e-5)
    for n, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][n], gradient, rtol=1e-4, atol=2e-5)


def test_some_of_the_projections(model_of: Callable[[str], nn.Module]) -> None:
    model = adapted(
        model_of("llama-rope-linear"), LoRA(rank=2, targets=("v_proj", "up_proj"))
    ).model
    kinds = {
        n.split(".lora_")[0].rpartition(".")[2]
        for n, _ in model.named_parameters()
        if ".lora_" in n
    }
    assert kinds == {"v_proj", "up_proj"}
    mask = torch.ones_like(TOKENS, dtype=torch.bool)
    with torch.no_grad():
        truth = by_forward(model)
        torch.testing.assert_close(token_log_probs(model, TOKENS), truth, rtol=0, atol=1e-5)
        first = TOKENS[:1].expand(4, -1).clone()
        first[:, 6:] = TOKENS[:, 6:]
        lengths = torch.tensor([6])
        shared = shared_prompt_log_probs(model, first, mask, group_size=4, prompt_lengths=lengths)
        torch.testing.assert_close(shared, token_log_probs(model, first), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen2-sliding", "gpt2"])
def test_new_or_off_adapters_change_no_bit(model_of: Callable[[str], nn.Module], name: str) -> None:
    base = model_of(name)
    with torch.no_grad():
        truth = token_log_probs(base, TOKENS)
        assert torch.equal(token_log_probs(adapted(base, moved=False).model, TOKENS), truth)
        model = adapted(base).model
        assert not torch.equal(token_log_probs(model, TOKENS), truth)
        with adapters_off(model):
            assert torch.equal(token_log_probs(model, TOKENS), truth)
        assert not torch.equal(token_log_probs(model, TOKENS), truth)
    assert not has_adapters(base)
    assert all(p.requires_grad for p in base.parameters())
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if ".lora_" in n}


def test_the_base_weights_are_shared_not_copied(model_of: Callable[[str], nn.Module]) -> None:
    base = model_of("llama-biases-tied")
    model = adapted(base).model
    places = {p.data_ptr() for p in base.parameters()}
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert {p.data_ptr() for p in frozen} == places
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("name", ["qwen3-wide-heads", "gpt2"])
@pytest.mark.filterwarnings("ignore:sampling runs through model.forward")
def test_the_engine_samples_the_adapted_model(
    model_of: Callable[[str], nn.Module], name: str
) -> None:
    model = adapted(model_of(name)).model
    engine = Engine(model)
    for _ in range(2):
        rollout = engine.generate([[5, 6, 7], [8, 9]], Sampling(max_tokens=9), 3)
        with torch.no_grad():
            ours = token_log_probs(model, rollout.tokens, rollout.mask)
        torch.testing.assert_close(rollout.old_log_probs, ours, rtol=0, atol=1e-4)
        for p in trained_state(model).state_dict().values():
            p.mul_(-1.5)  # an update is seen by the next call


def test_the_graph_engine_takes_over_what_adapters_have_learnt(
    model_of: Callable[[str], nn.Module],
) -> None:
    base = model_of("llama-biases-tied")
    model = adapted(base).model
    kept = {name: p.clone() for name, p in base.named_parameters()}
    engine, truth = GraphEngine(model), Engine(model)
    for _ in range(2):
        with adapters_off(model):
            engine.generate([[5, 6, 7]], Sampling(max_tokens=3), 2)
        found, expected = (
            x.generate([[5, 6, 7], [8, 9]], Sampling(max_tokens=9), 3) for x in (engine, truth)
        )
        assert torch.equal(found.tokens, expected.tokens)
        torch.testing.assert_close(found.old_log_probs, expected.old_log_probs, rtol=0, atol=1e-4)
        for p in trained_state(model).state_dict().values():
            p.mul_(-1.5)
    assert all(torch.equal(p, kept[name]) for name, p in base.named_parameters())


@pytest.mark.parametrize("name", BUILT)
def test_merged_weights_are_an_ordinary_model(
    model_of: Callable[[str], nn.Module], name: str
) -> None:
    lm = adapted(model_of(name))
    merged = merge_adapters(lm).model
    assert has_adapters(lm.model)
    assert type(merged) is type(lm.model)
    assert [n for n, _ in merged.named_parameters()] == [
        n for n, _ in model_of(name).named_parameters()
    ]
    with torch.no_grad():
        torch.testing.assert_close(by_forward(merged), by_forward(lm.model), rtol=0, atol=1e-5)


def test_a_merged_weight_worked_by_hand() -> None:
    lm = with_adapters(tiny(), LoRA(rank=1, alpha=3.0, targets=("q_proj",)))
    layer = lm.model.model.layers[0].self_attn.q_proj
    before = layer.base_layer.weight.clone()
    with torch.no_grad():
        layer.lora_A["default"].weight.fill_(0.5)
        layer.lora_B["default"].weight.zero_()[2] = 4.0
    change = merge_adapters(lm).model.model.layers[0].self_attn.q_proj.weight - before
    assert torch.equal(change[[0, 1, 3]], torch.zeros(3, 16))
    # (alpha / rank) B A = 3 * 4 * .5 = 6 in row 2
    torch.testing.assert_close(change[2], torch.full((16,), 6.0), rtol=1e-6, atol=0)


RELOADED = """
import json, sys, warnings
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, merged = sys.argv[1:]
tokens = torch.arange(4, 14)[None]
with torch.no_grad():
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    own = model(tokens).logits
    whole = AutoModelForCausalLM.from_pretrained(merged)(tokens).logits
print(json.dumps([own.tolist(), whole.tolist()]))
"""


def test_folders_reload_in_a_new_process(tmp_path: Path) -> None:
    base = tiny()
    save_model(base.model, base.tokenizer, tmp_path / "base")
    lm = adapted(base.model)
    save_adapter(lm.model, tmp_path / "adapter")
    save_model(merge_adapters(lm).model, base.tokenizer, tmp_path / "model")
    folders = [str(tmp_path / name) for name in ("base", "adapter", "model")]
    done = subprocess.run(
        [sys.executable, "-c", RELOADED, *folders], capture_output=True, text=True, check=True
    )
    with torch.no_grad():
        truth = lm.model(torch.arange(4, 14)[None]).logits
    for found in json.loads(done.stdout.splitlines()[-1]):
        torch.testing.assert_close(torch.tensor(found), truth, rtol=0, atol=1e-5)


def test_optimizers_and_checkpoints_hold_the_adapters_alone() -> None:
    model = with_adapters(tiny(), LoRA(rank=2)).model
    own = {id(p) for n, p in model.named_parameters() if ".lora_" in n}
    for config in (AdamW(weight_decay=0.1), MuonAdamW()):
        groups = config.build(model).param_groups
        assert {id(p) for group in groups for p in group["params"]} == own
    state = trained_state(model).state_dict()
    assert len(state) == len(own) == 2 * 7 * 2  # layers, projections, A and B
    other = with_adapters(tiny(), LoRA(rank=2), seed=9).model
    trained_state(other).load_state_dict(state)
    assert all(torch.equal(p, trained_state(other).state_dict()[n]) for n, p in state.items())
    fewer = with_adapters(tiny(), LoRA(rank=2, targets=("q_proj",))).model
    with pytest.raises(UsageError, match="adapters of other layers"):
        trained_state(fewer).load_state_dict(state)


def test_the_seed_alone_decides_and_the_global_stream_stays() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (
        trained_state(with_adapters(tiny(), LoRA(), seed=seed).model).state_dict()
        for seed in (4, 4, 5)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(x, again[name]) for name, x in first.items())
    assert any(not torch.equal(x, other[name]) for name, x in first.items())


def test_half_precision_has_adapters_in_single(model_of: Callable[[str], nn.Module]) -> None:
    model = adapted(model_of("qwen2-sliding").bfloat16()).model
    assert {p.dtype for p in trained_state(model).state_dict().values()} == {torch.float32}
    with torch.no_grad():
        truth, ours = by_forward(model.float()), token_log_probs(model, TOKENS)
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-5)


def test_dropout_is_left_to_the_models_own_forward() -> None:
    model = with_adapters(tiny(), LoRA(dropout=0.5)).model
    for _, p in model.named_parameters():
        p.data.add_(0.05)
    assert has_dropout(model)
    tokens = TOKENS % 40
    with torch.no_grad():
        assert not torch.equal(token_log_probs(model, tokens), token_log_probs(model, tokens))
        assert not has_dropout(model.eval())
        assert torch.equal(token_log_probs(model, tokens), token_log_probs(model, tokens))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 0}, "rank=0: an adapter needs a rank of at least 1"),
        ({"alpha": 0.0}, "alpha=0.0: give a positive"),
        ({"dropout": 1.0}, "dropout=1.0: give a share"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LoRA(**settings)  # type: ignore[arg-type]  # of several types


@pytest.mark.parametrize("target", ["qproj", "proj", "lm_head", "embed_tokens", ""])
def test_targets_that_match_nothing_are_named(target: str) -> None:
    with pytest.raises(UsageError, match=f"{target!r} matches no linear layer.*down_proj, gate_"):
        with_adapters(tiny(), LoRA(targets=("q_proj", target)))


def test_adapters_on_adapters_are_refused() -> None:
    with pytest.raises(UsageError, match="has adapters already: merge them first"):
        with_adapters(with_adapters(tiny(), LoRA()), LoRA())


def test_peft_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError) as error:
        with_adapters(tiny(), LoRA())
    assert str(error.value) == "LoRA needs peft, which is not installed: pip install monro[lora]"


def two_adapters(model: nn.Module) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), model, "second")


def hooked(model: nn.Module) -> None:
    model.model.layers[1].mlp.up_proj.base_layer.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (two_adapters, "q_proj has the adapters default, second rather than one"),
        (hooked, "up_proj has a hook or another forward in its adapter"),
    ],
)
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`", "ignore:.*adapter")
def test_the_decoder_refuses_what_is_no_plain_adapter(
    change: Callable[[nn.Module], None], reason: str
) -> None:
    model = with_adapters(tiny(), LoRA()).model
    change(model)
    assert reason in str(unsupported(model))
