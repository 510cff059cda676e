"""What runs of language models keep for ``monro export`` makes ``save_model``'s folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from launch import checkpoint
from launch.cli import main
from launch.config import to_yaml
from launch.errors import UsageError
from launch.export import export
from launch.runtime import Runtime
from posttrain.adapters import LoRA
from posttrain.architecture import keep_architecture
from posttrain.models import load_model, save_model, tiny_model, train_tokenizer
from posttrain.recipes.jobs import GRPOJob, SFTJob
from posttrain.recipes.reward_jobs import RewardModelJob
from posttrain.recipes.tiny import grpo_mini, reward_model_mini, sft_mini
from posttrain.reward_models import load_reward_model
from posttrain.rollout import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RELOAD = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = torch.tensor([tokenizer.encode("State the sum: 3 + 4 =")])
    print(tokens.tolist(), model(tokens).logits.double().flatten().tolist())
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {x.name: x.read_bytes() for x in folder.iterdir()}


def run(job: SFTJob | GRPOJob | RewardModelJob, output: Path) -> None:
    with Runtime(job.runtime, output=output, config_yaml=to_yaml(job)) as runtime:
        job.check()
        job.run(runtime)


def pairs(one: nn.Module, other: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(one.parameters(), other.parameters(), strict=True)


def sft() -> SFTJob:
    return replace(sft_mini(), steps=2, save_every=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with a checkpoint after each."""
    output = tmp_path_factory.mktemp("sft") / "run"
    run(sft(), output)
    return output


def test_the_last_checkpoint_is_the_model_that_the_run_left(finished: Path, tmp_path: Path) -> None:
    export(finished, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(finished / "model")


def test_an_earlier_checkpoint_is_the_model_of_its_step(finished: Path, tmp_path: Path) -> None:
    export(finished, tmp_path / "out", step=1)
    found, expected = (load_model(x).model for x in (tmp_path / "out", finished / "model"))
    differ = [not torch.equal(x, y) for x, y in pairs(found, expected)]
    assert all(differ)
    checkpoint.load_state(finished / "checkpoints/step-00000001", {"model": expected})
    assert all(torch.equal(x, y) for x, y in pairs(found, expected))


def test_a_sharded_export_gives_the_same_logits_in_a_new_process(
    finished: Path, tmp_path: Path
) -> None:
    assert main(["export", str(finished), str(tmp_path / "out"), "--shard_size", "100KB"]) == 0
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    folders = [str(tmp_path / "out"), str(finished / "model")]
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, *folders], capture_output=True, text=True, check=True
    )
    one, other = done.stdout.splitlines()
    assert one == other
    assert len(one) > 1_000


def test_the_folder_of_every_kind_of_model_is_that_of_save_model(
    any_model: PreTrainedModel, tmp_path: Path
) -> None:
    tokenizer = train_tokenizer(["a b c"], vocabulary=20)
    with Runtime(output=tmp_path / "run") as runtime:
        keep_architecture(any_model, tokenizer, runtime)
        any_model.config.use_cache = False
        runtime.save(1, {"model": any_model})
        assert any_model.config.use_cache is False
    export(tmp_path / "run", tmp_path / "out")
    save_model(any_model, tokenizer, tmp_path / "expected")
    found, expected = contents(tmp_path / "out"), contents(tmp_path / "expected")
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


def test_stages_and_their_run_are_exported_each_by_its_own_step(tmp_path: Path) -> None:
    job = grpo_mini()
    assert job.warm_up is not None
    warm_up = replace(job.warm_up, training=replace(job.warm_up.training, steps=3, save_every=2))
    job = replace(
        job, warm_up=warm_up, steps=1, prompts_per_step=2, sampling=Sampling(max_tokens=4),
        probe_every=0,
    )  # fmt: skip
    run(job, tmp_path / "run")
    stage = tmp_path / "run/stages/1-warm-up"
    export(stage, tmp_path / "warm", step=2)
    export(stage, tmp_path / "warmer")
    export(tmp_path / "run", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "run/model")
    weights = [
        load_model(tmp_path / x).model.get_input_embeddings().weight for x in ("warm", "warmer")
    ]
    assert not torch.equal(*weights)


def test_a_reward_model_is_exported_with_its_head(tmp_path: Path) -> None:
    job = replace(reward_model_mini(), steps=1, warm_up=None)
    run(job, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "run/model")
    assert load_reward_model(tmp_path / "out") is not None


def test_a_run_of_adapters_points_to_the_merged_model(tmp_path: Path) -> None:
    run(replace(sft(), lora=LoRA(rank=2)), tmp_path / "run")
    with pytest.raises(UsageError, match=r"holds adapters.*take .*run/model, into which"):
        export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "run/architecture").exists()


def test_a_checkpoint_of_a_wider_model_names_its_first_parameter(
    finished: Path, tmp_path: Path
) -> None:
    tokenizer = train_tokenizer(["a b c"], vocabulary=20)
    narrow, wide = (tiny_model(tokenizer, layers=1, width=w, heads=2).model for w in (8, 16))
    with Runtime(output=tmp_path / "run") as runtime:
        keep_architecture(narrow, tokenizer, runtime)
        runtime.save(1, {"model": wide})
    rows = len(tokenizer)
    with pytest.raises(
        UsageError,
        match=rf"another model .*: model\.embed_tokens\.weight is \[{rows}, 16\] instead of "
        rf"\[{rows}, 8\]",
    ):
        export(tmp_path / "run", tmp_path / "out")


def test_shapes_are_those_of_the_saved_weights(finished: Path) -> None:
    from safetensors.torch import load_file

    shapes = json.loads((finished / "architecture/shapes.json").read_text())
    saved = load_file(finished / "model/model.safetensors")
    assert shapes == {name: list(x.shape) for name, x in saved.items()}
