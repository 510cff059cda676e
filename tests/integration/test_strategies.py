"""Every strategy on two processes equals one process, for every kind of training."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from two_processes import on_two_processes
from warm import Warm

from launch.export import export

SCRIPT = Path(__file__).with_name("workloads.py")
NAMES = ("sft", "sft-muon", "own-forward", "lora", "grpo", "dpo", "ppo", "reinforce", "gan")
RESUMED = ("sft-muon", "lora", "gan")
STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp")
CUT_PARAMETERS = ("zero3", "fsdp")


def run(warmed: Warm, strategy: str, output: Path, *names: str) -> Path:
    """Run all workloads in one launch; every strategy is launched in the same way."""
    words = (strategy, str(output), *names)
    if strategy == "single":
        done = subprocess.run(
            [warmed.python, str(SCRIPT), *words],
            env=warmed.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    else:
        done = on_two_processes(warmed, SCRIPT, *words, cpu=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return output


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, warmed: Warm) -> Path:
    return run(warmed, "single", tmp_path_factory.mktemp("single") / "run")


@pytest.fixture(scope="module", params=STRATEGIES)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, warmed: Warm
) -> Path:
    return run(warmed, request.param, tmp_path_factory.mktemp("both") / request.param)


def records(output: Path, name: str) -> list[dict[str, Any]]:
    lines = (output / "stages" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.distributed
def test_every_training_equals_that_of_one_process(alone: Path, both: Path) -> None:
    for name in NAMES:
        ours, expected = records(both, name), records(alone, name)
        assert len(ours) == len(expected) == 12
        for a, b in zip(ours, expected, strict=True):
            for key in [key for key in b if key.startswith("loss")]:
                assert a[key] == pytest.approx(b[key], rel=1e-6, abs=1e-6), (name, a["step"], key)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5), (name, a["step"])
        weights, wanted = (torch.load(x / f"{name}.pt") for x in (both, alone))
        assert weights.keys() == wanted.keys()
        for key, weight in wanted.items():
            torch.testing.assert_close(weights[key], weight, rtol=0, atol=1e-5, msg=f"{name} {key}")


@pytest.mark.distributed
def test_each_process_holds_what_the_strategy_says(alone: Path, both: Path) -> None:
    for name in NAMES:
        ours, whole = records(both, name)[0], records(alone, name)[0]
        parameters = ours["bytes/parameters"] / whole["bytes/parameters"]
        optimizer = ours["bytes/optimizer"] / whole["bytes/optimizer"]
        assert parameters < 0.56 if both.name in CUT_PARAMETERS else parameters == 1, name
        assert optimizer == 1 if both.name == "ddp" else optimizer < 0.56, name
        assert not any("bytes/parameters" in record for record in records(both, name)[1:])


@pytest.mark.distributed
def test_a_checkpoint_of_any_strategy_is_exported_as_one_model(
    alone: Path, both: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    export(both / "stages/sft", tmp_path / "model")
    found = load_file(tmp_path / "model" / "model.safetensors")
    wanted = torch.load(alone / "sft.pt")
    assert found.keys() == wanted.keys() - {"lm_head.weight"}  # which is the embedding
    for key, weight in found.items():
        torch.testing.assert_close(weight, wanted[key], rtol=0, atol=1e-5)


@pytest.mark.distributed
@pytest.mark.parametrize("on", ["the same", "one process"])
def test_a_run_goes_on_from_its_pieces(both: Path, tmp_path: Path, on: str, warmed: Warm) -> None:
    """After step 10 of 12: on the same processes bit for bit, on one the same training.

    Muon's state, adapters alone, two models in turn with an average of one.
    """
    output = tmp_path / "run"
    for name in RESUMED:
        copy = output / "stages" / name
        shutil.copytree(both / "stages" / name, copy)
        shutil.rmtree(copy / "checkpoints" / "step-00000012")
    shutil.copy(both / "config.yaml", output)
    run(warmed, both.name if on == "the same" else "single", output, *RESUMED)
    for name in RESUMED:
        found, wanted = (torch.load(x / f"{name}.pt") for x in (output, both))
        for key, weight in wanted.items():
            if on == "the same":
                assert found[key].equal(weight), (name, key)
            torch.testing.assert_close(found[key], weight, rtol=0, atol=1e-5)
        assert [r["step"] for r in records(output, name)] == list(range(1, 13))
