"""Mixed precision: float32 weights, loss curves like float32's, overflows left out by all."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from two_processes import on_two_processes
from warm import Warm

from launch.backends import Precision
from launch.runtime import Runtime, RuntimeConfig
from launch.schedule import Linear, set_learning_rate

SCRIPT = Path(__file__).with_name("overflow.py")


def curve(precision: Precision, output: Path) -> list[dict[str, float]]:
    """Train a small classifier for 60 steps; return its records."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.Tanh(), nn.Linear(32, 4))
    x = torch.randn(256, 8)
    labels = (x[:, :4] + x[:, 4:].roll(1, 1)).argmax(1)
    with Runtime(RuntimeConfig(precision=precision), output=output) as run:
        prepared, optimizer = run.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
        for step in run.steps(60, state={"model": model, "optimizer": optimizer}):
            rate = set_learning_rate(optimizer, Linear()(step - 1, 60))
            run.backward(nn.functional.cross_entropy(prepared(x).float(), labels))
            run.step(optimizer, 1.0)
            run.log(step, {"loss": run.loss, "learning_rate": rate})
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(s["exp_avg"].dtype == torch.float32 for s in optimizer.state.values())
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_loss_curves_of_lower_precisions_follow_that_of_float32(
    tmp_path: Path, precision: Precision
) -> None:
    """bfloat16 keeps 8 bits of a number and float16 11: a relative error of .4% and .05%."""
    full, lower = curve("fp32", tmp_path / "full"), curve(precision, tmp_path / "lower")
    assert full[-1]["loss"] < 0.35 * full[0]["loss"]
    largest = max(abs(a["loss"] - b["loss"]) for a, b in zip(full, lower, strict=True))
    assert 0 < largest < (0.02 if precision == "bf16" else 0.003)


def test_a_step_that_is_left_out_is_counted_and_moves_no_schedule(tmp_path: Path) -> None:
    records = []
    with Runtime(RuntimeConfig(precision="fp16"), output=tmp_path / "run") as run:
        model = nn.Linear(1, 1, bias=False)
        nn.init.ones_(model.weight)
        prepared, optimizer = run.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        for step in run.steps(4, state={"model": model, "optimizer": optimizer}):
            rate = set_learning_rate(optimizer, Linear()(step - 1, 4))
            before = model.weight.item()
            gradient = 1e36 if step == 2 else 0.1  # times the loss scale, too large
            run.backward(prepared(torch.ones(1, 1)).float().sum() * gradient)
            run.step(optimizer)
            figures = {"rate": rate, "moved": before - model.weight.item()}
            records.append(run.log(step, figures))
    assert [r["skipped_steps"] for r in records] == [0, 1, 1, 1]
    assert [r["rate"] for r in records] == pytest.approx([0.1, 0.2 / 3, 0.1 / 3, 0])
    assert [r["moved"] for r in records] == pytest.approx([0.01, 0, 0.01 / 3, 0], rel=1e-3)


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_an_overflow_on_one_process_is_left_out_on_all(
    tmp_path: Path, strategy: str, warmed: Warm
) -> None:
    done = on_two_processes(warmed, SCRIPT, strategy, str(tmp_path / "found.json"), cpu=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["skipped"] == [[0, 1, 1], [0, 1, 1]]
    assert found["moved"] == [True, False, True]
