"""The jobs with adapters: they learn, stop and resume, and leave folders that reload."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest
import torch

from launch.cli import main
from launch.config import to_yaml
from launch.errors import UsageError
from launch.optimizers import AdamW
from launch.runtime import Runtime
from posttrain.adapters import LoRA
from posttrain.log_probs import token_log_probs
from posttrain.models import load_model, save_model
from posttrain.recipes.jobs import GRPOJob, PreferenceJob, SFTJob
from posttrain.recipes.sources import Pretrained
from posttrain.recipes.tiny import dpo_mini, grpo_mini, sft_mini
from posttrain.rollout import Sampling

Job: TypeAlias = SFTJob | PreferenceJob | GRPOJob
LORA = LoRA(rank=4, alpha=16.0)


def jobs(folder: Path) -> dict[str, Job]:
    """Return small jobs on a checkpoint; GRPO compares with a reference."""
    source = sft_mini()
    made = source.model.load(source.data.texts(500), 0)
    save_model(made.model, made.tokenizer, folder)
    common = {
        "model": Pretrained(path=str(folder)),
        "lora": LORA,
        "steps": 4,
        "save_every": 2,
        "optimizer": AdamW(learning_rate=1e-2),
    }
    grpo = grpo_mini()
    return {
        "sft": replace(source, **common),
        "dpo": replace(dpo_mini(), **common, warm_up=None),
        "grpo": replace(
            grpo,
            **common,
            warm_up=None,
            kl_in_reward=0.01,
            prompts_per_step=3,
            sampling=Sampling(max_tokens=8),
        ),
    }


def run(job: Job, output: Path, *, resume: bool = False) -> None:
    with Runtime(job.runtime, output=output, config_yaml=to_yaml(job), resume=resume) as runtime:
        job.check()
        job.run(runtime)


def records(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds", "speed/")
    return [{k: v for k, v in line.items() if not k.startswith(clock)} for line in lines]


@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
def test_a_resumed_job_equals_one_never_stopped(kind: str, tmp_path: Path) -> None:
    job = jobs(tmp_path / "start")[kind]
    output = tmp_path / "run"
    run(job, output)
    expected = records(output), (output / "adapter/adapter_model.safetensors").read_bytes()
    last = output / "checkpoints/step-00000004"
    whole = (tmp_path / "start/model.safetensors").stat().st_size
    assert sum(file.stat().st_size for file in last.glob("model*")) < whole / 4
    shutil.rmtree(last)
    shutil.rmtree(output / "adapter")
    run(job, output, resume=True)
    assert (
        records(output),
        (output / "adapter/adapter_model.safetensors").read_bytes(),
    ) == expected
    assert not (output / "base").exists()  # the checkpoint that it started from is the base


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
def test_what_a_job_leaves_is_base_adapter_and_their_sum(tmp_path: Path) -> None:
    from peft import PeftModel

    job = replace(sft_mini(), lora=LORA, steps=3)
    run(job, tmp_path)
    base, merged = load_model(tmp_path / "base"), load_model(tmp_path / "model")
    tokens = torch.randint(1, 40, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        start = token_log_probs(base.model, tokens)
        whole = token_log_probs(merged.model, tokens)
        both = PeftModel.from_pretrained(base.model, str(tmp_path / "adapter"))
        ours = both(tokens).logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])
    torch.testing.assert_close(ours.squeeze(-1), whole[:, 1:], rtol=0, atol=1e-5)
    assert not torch.allclose(start, whole, atol=1e-3)
    said = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["peft_type"]) == (4, 16.0, "LORA")
    assert said["base_model_name_or_path"] == str(tmp_path / "base")


def test_adapters_learn_courtesy(tmp_path: Path) -> None:
    job = replace(dpo_mini(), lora=LoRA(rank=8, alpha=16.0), steps=20)
    run(replace(job, optimizer=AdamW(learning_rate=5e-3, eps=1e-6)), tmp_path)
    ranked = [x["heldout/ranking"] for x in records(tmp_path) if "heldout/ranking" in x]
    # 128 held-out pairs: .1 is more than twice the standard error of a share
    assert ranked[-1] > ranked[0] + 0.1


def test_dropout_is_for_supervised_training_alone(tmp_path: Path) -> None:
    made = jobs(tmp_path / "start")
    dropping = LoRA(dropout=0.1)
    for kind in ("dpo", "grpo"):
        with pytest.raises(UsageError, match=r"lora.dropout=0.1: .* use 0"):
            replace(made[kind], lora=dropping).check()
    run(replace(made["sft"], lora=dropping, steps=1), tmp_path / "run")


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs(tmp_path / "start")
    (tmp_path / "chat.jsonl").write_text('{"prompt": "1 + 1 =", "completion": "2"}\n')
    start = ["run", "sft", "--model", str(tmp_path / "start"), "--steps", "1"]
    start += ["--data", str(tmp_path / "chat.jsonl"), "--row_length", "64"]
    flags = ["--lora", "8", "--lora.targets", "[q_proj, v_proj]"]
    assert main([*start, "--output", str(tmp_path / "run"), *flags]) == 0
    said = (tmp_path / "run/config.yaml").read_text()
    assert "rank: 8" in said
    assert "alpha: 16" in said
    capsys.readouterr()
    for wrong, reason in (
        (["--lora", "0"], "rank=0: an adapter needs"),
        (["--lora", "8", "--lora.targets", "[q]"], "'q' matches no linear layer"),
    ):
        assert main([*start, "--output", str(tmp_path / "wrong"), *wrong]) == 2
        error = capsys.readouterr().err.strip()
        assert reason in error
        assert len(error.splitlines()) == 1
