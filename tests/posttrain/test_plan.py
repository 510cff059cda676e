"""A plan against what a training step really holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launch.live_bytes import live_bytes
from launch.optimizers import AdamW
from launch.plan import lay_out
from launch.plan_devices import device
from launch.runtime import Runtime, RuntimeConfig
from posttrain.log_probs import token_log_probs
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.plan import Numbers, Pass, kept, read_shape, update
from posttrain.plan_passes import Drawn, rollout
from posttrain.recipes.jobs import SFTJob
from posttrain.recipes.sources import Pretrained
from posttrain.rollout import Engine, Sampling

ROOT = Path(__file__).parent.parent.parent
TEXTS = ["a b c d e 0 1 2 3 4 5 6 7 8 9"] * 4


def model(**sizes: int) -> LanguageModel:
    return tiny_model(train_tokenizer(TEXTS, vocabulary=64), **sizes)


def test_a_layer_keeps_the_features_that_the_docstring_counts() -> None:
    shape = read_shape(model(layers=2, width=8, heads=2, key_heads=1, inner=24).model)
    assert (shape.queries, shape.keys, shape.joined) == (8, 4, 16)
    step = Pass(rows=1, length=200, tokens=200, wanted=200)
    # up to attention, per token: 2 D 16, F 16, Q 8, H 2 = 42; after: 2 D 16, Q 8, 3 I 72 = 96
    assert kept(shape, step, Numbers()) == (200 * 42 * 4, 96 * 4)
    short = Pass(rows=2, length=100, tokens=200, wanted=200)
    # 16 + 16 + 2 heads x 100 weights
    assert kept(shape, short, Numbers()) == (200 * 232 * 4, 96 * 4)


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("length", [60, 300])
def test_activations_are_what_a_step_keeps(length: int, checkpoints: bool) -> None:
    """Weights are next to nothing here, so this holds the activations alone to their count."""
    lm = model(layers=6, width=64, heads=4, key_heads=2, inner=192)
    rows = 3000 // length
    tokens = torch.randint(4, 12, (rows, length + 1))
    with Runtime(RuntimeConfig(activation_checkpointing=checkpoints)) as run:
        prepared, optimizer = run.prepare(lm.model, AdamW().build(lm.model))
        run.backward(token_log_probs(prepared, tokens).sum() * 0)
        run.step(optimizer)
        with live_bytes() as seen:
            run.backward(-token_log_probs(prepared, tokens).mean())
            run.step(optimizer)
    shape = read_shape(lm.model)
    step = Pass(rows=rows, length=length, tokens=rows * length, wanted=rows * length)
    moments = update(shape, step, Numbers(), passes=1, checkpoints=checkpoints)
    planned = max(x.gradients + x.activations + x.logits + x.copies for x in moments)
    assert planned == pytest.approx(seen.peak, rel=0.15)


def test_a_rollout_s_cache_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.rollout.engine._compiles", lambda model, decoder: False)
    lm = model(layers=4, width=64, heads=4, inner=128)
    prompts, sampling = [[5] * 40 for _ in range(8)], Sampling(max_tokens=256)
    with live_bytes() as seen:
        Engine(lm.model).generate(prompts, sampling, 4)
    drawn = Drawn(prompts=8, group_size=4, prompt_length=40, max_tokens=256)
    moments = rollout(read_shape(lm.model), drawn, Numbers())
    # 4 layers x 2 x 64 features x 4 bytes: 32 x 256 own tokens and 8 x 40 of prompts
    assert max(x.kv_cache for x in moments) == (32 * 256 + 8 * 40) * 2048
    planned = max(x.activations + x.kv_cache + x.logits + x.copies for x in moments)
    assert planned == pytest.approx(seen.peak, rel=0.15)


def test_a_model_of_seven_billion_is_planned_from_its_config(tmp_path: Path) -> None:
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "config.json"):
        job = SFTJob(model=Pretrained(path=str(path)), micro_batch=1)
        found = lay_out(
            lambda count, job=job: job.workload(count, "cuda"), 64, 80e9, device("h100")
        )
        by = {x.strategy: x for x in found}
        assert by["single"].parts["parameters"] == 4 * 7_615_616_512  # Qwen2.5-7B's count
        assert by["single"].parts["optimizer"] == 8 * 7_615_616_512
        assert by["zero3"].parts["parameters"] == 7_615_616_512 * 4 // 64
        assert not by["ddp"].fits
        assert by["fsdp"].fits


def test_a_model_of_two_hundred_megabytes_is_planned_within_fifteen_per_cent() -> None:
    lm = model(layers=8, width=768, heads=12, key_heads=4, inner=2048)
    weights = sum(p.numel() * 4 for p in lm.model.parameters())
    assert weights > 200e6
    tokens = torch.randint(4, 12, (2, 129))
    with Runtime() as run, live_bytes() as seen:
        prepared, optimizer = run.prepare(lm.model, AdamW().build(lm.model))
        for _ in range(2):
            run.backward(-token_log_probs(prepared, tokens).mean())
            run.step(optimizer)
    step = Pass(rows=2, length=128, tokens=256, wanted=256)
    moments = update(read_shape(lm.model), step, Numbers(), passes=1, checkpoints=False)
    planned = max(x.gradients + x.activations + x.logits + x.copies for x in moments)
    assert 3 * weights + planned == pytest.approx(weights + seen.peak, rel=0.05)


@pytest.mark.slow
def test_plans_of_jobs_are_within_fifteen_per_cent_of_what_lives() -> None:
    """Trainers on models of 200 MB; `benchmarks/bench_plan.py` has more cases."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    cases = ["sft, activation", "49k, tied", "grpo, 2 x 4"]
    command = [sys.executable, "-m", "benchmarks.bench_plan", "--only", *cases]
    out = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    found = json.loads(out.stdout.decode().splitlines()[-1])
    ratios = {name: x["ratio"] for name, x in found.items() if isinstance(x, dict) and "ratio" in x}
    assert len(ratios) == len(cases)
    assert {name: r for name, r in ratios.items() if abs(r - 1) > 0.15} == {}
