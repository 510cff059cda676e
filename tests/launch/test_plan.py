from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from launch.cli import main
from launch.live_bytes import live_bytes
from launch.optimizers import AdamW, MuonAdamW
from launch.plan import Moment, Placement, Workload, fastest, lay_out, state_bytes
from launch.plan_devices import DEVICES, Exchange, Stage, seconds_sent, seconds_worked

# 100 bytes of weights and gradients, 200 of optimizer state, units of 10
WORK = Workload(
    parameters=100,
    gradients=100,
    optimizer=200,
    reference=40,
    unit=10,
    moments=(
        Moment(name="rollout", kv_cache=7, logits=3, gathered=True),
        Moment(name="backward pass", gradients=60, activations=50),
        Moment(name="update", gradients=100),
    ),
    passes=2,
    forwards=1,
)


def placed(work: Workload = WORK, gpus: int = 4, memory: float = 1e9) -> dict[str, Placement]:
    found = lay_out(lambda count: work, gpus, memory, DEVICES["h100"])
    return {x.strategy: x for x in found}


def test_what_a_strategy_shards_is_what_its_paper_says() -> None:
    totals = {name: (x.total, x.peak) for name, x in placed().items()}
    assert totals == {
        # P 100 + O 200 + reference 40, and 100 at the update: 440; 60 + 50 before it: 450
        "single": (450, "backward pass"),
        # and a bucket for every gradient, 100
        "ddp": (550, "backward pass"),
        # P 100 + (O 200 + copy 100)/4 + reference 40 + bucket 100 + 110
        "zero1": (425, "backward pass"),
        # gradients 60/4
        "zero2": (100 + 75 + 40 + 100 + 15 + 50, "backward pass"),
        # (P 100 + O 200 + copy 100 + reference 40)/4 + 15 + 50, two units and their gradients 40;
        # at the rollout all weights are gathered: 110 + 100 + 10
        "zero3": (220, "rollout"),
        "fsdp": (195, "rollout"),  # without the copy
    }


def test_parts_are_the_most_of_each_and_the_total_is_of_one_moment() -> None:
    single = placed()["single"]
    assert single.parts["kv_cache"] == 7
    assert single.parts["gradients"] == 100
    assert single.parts["activations"] == 50
    assert sum(single.parts.values()) == 500
    assert single.total == 450


def test_what_fits_is_fastest_first_and_plainest_of_equals() -> None:
    found = list(placed(memory=440).values())
    assert [x.strategy for x in found if x.fits] == ["zero1", "zero2", "zero3", "fsdp"]
    best = fastest(found)
    assert best is not None
    assert best.strategy == "zero1"
    assert fastest(list(placed(memory=10).values())) is None
    alone = fastest(list(placed(gpus=1).values()))
    assert alone is not None
    assert alone.strategy == "single"


def test_what_is_sent_grows_with_the_passes_of_sharded_strategies() -> None:
    h100 = DEVICES["h100"]
    # 4 devices in a machine: 3/4 of the bytes at 70% of 450 GB/s, and 20 us a call
    assert seconds_sent(Exchange(420e9, 10), 4, h100) == pytest.approx(1.0 + 200e-6)
    # 16 devices: 15/16, over a network of 50 GB/s
    assert seconds_sent(Exchange(28e9, 0), 16, h100) == pytest.approx(0.75)
    assert seconds_sent(Exchange(1e12, 10), 1, h100) == 0.0
    big = replace(WORK, parameters=10**9, gradients=10**9, unit=10**9)
    sent = {name: x.seconds * (4 / 3) * 315 for name, x in placed(big).items()}
    assert sent["single"] == 0
    assert sent["ddp"] == pytest.approx(2, abs=0.1)  # GB: an all-reduce is two
    assert sent["zero2"] == pytest.approx(3, abs=0.1)  # a reduction in each of 2 passes
    assert sent["zero3"] == pytest.approx(8, abs=0.1)  # 2 reductions, 4 + 1 + 1 gathers


def test_work_is_bound_by_arithmetic_or_by_memory() -> None:
    h100 = DEVICES["h100"]
    assert seconds_worked(Stage("update", 67e12 * 0.4), h100) == pytest.approx(1.0)
    assert seconds_worked(Stage("update", 989e12 * 0.4, half=True), h100) == pytest.approx(1.0)
    assert seconds_worked(Stage("decoding", 1.0, 3.35e12 * 0.6), h100) == pytest.approx(1.0)


def test_optimizer_state_is_what_the_optimizers_make() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "inner": nn.Linear(4, 3)})
    for config in (AdamW(), MuonAdamW()):
        optimizer = config.build(model)
        sum(p.sum() for p in model.parameters()).backward()
        optimizer.step()
        parts = getattr(optimizer, "parts", [optimizer])
        states = [x for part in parts for state in part.state.values() for x in state.values()]
        real = sum(x.numel() * 4 for x in states if isinstance(x, torch.Tensor) and x.dim())
        assert state_bytes(config, model) == (real, "")
        optimizer.zero_grad()


def test_live_bytes_see_what_is_there_together() -> None:
    with live_bytes() as seen:
        x = torch.zeros(1 << 18)  # 1 MiB
        y = x + 1
        del x
        z = y * 2
        del y
    assert 2 << 20 <= seen.peak < (2 << 20) + 4096
    assert 1 << 20 <= seen.stays < (1 << 20) + 4096
    assert len(z) == 1 << 18


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus", "0"], "gpus: got 0, expected at least 1"),
        (["--gpus", "many"], "gpus"),
        (["--memory", "0"], "memory: got 0"),
        (["--memory", "-4"], "memory: got -4"),
        (["--device", "h10"], "unknown device h10"),
        (["--micro_batch", "0"], "micro_batch=0"),
        (["--training.micro_batch", "2"], "training"),
        (["--model", "no/such/folder"], "no/such/folder"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "sft", *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err


def test_a_recipe_that_cannot_be_planned_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "ppo-cartpole"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "ppo-cartpole cannot be planned" in err


def test_json_holds_every_strategy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "sft-mini", "--gpus", "2", "--memory", "24", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert list(plan["strategies"]) == ["single", "ddp", "zero1", "zero2", "zero3", "fsdp"]
    assert plan["recommended"] in plan["strategies"]
    assert plan["memory"] == 24_000_000_000
    for found in plan["strategies"].values():
        assert found["fits"]
        assert 0 < found["total"] <= sum(found["parts"].values())
        assert found["seconds"] > 0


def test_the_table_recommends_or_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "sft-mini"]) == 0
    assert "--runtime.strategy single" in capsys.readouterr().out
    assert main(["plan", "sft-mini", "--memory", "0.001"]) == 0
    assert "None fits" in capsys.readouterr().out
