import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from launch.errors import UsageError
from launch.optimizers import AdamW, MuonAdamW
from launch.placement import check_elementwise
from launch.runtime import Runtime, RuntimeConfig
from launch.strategies import (
    STRATEGIES,
    check_precision,
    check_strategy,
    choose,
    device_bytes,
    training_bytes,
)

GB = 10**9


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3", "fsdp"])
def test_one_process_cannot_share_anything(strategy: str) -> None:
    with pytest.raises(UsageError, match=f"strategy={strategy}, but only one process started"):
        check_strategy(strategy, 1, None)


@pytest.mark.parametrize(
    ("strategy", "settings", "said"),
    [
        ("zero4", {}, "strategy='zero4': use one of auto, single, ddp, zero1"),
        ("single", {}, "each would train a model of its own"),
        ("ddp", {"offload": True}, "offload=true with strategy=ddp"),
        ("fsdp", {"deepspeed": {"overlap_comm": True}}, "overlap_comm.*does not use DeepSpeed"),
    ],
)
def test_impossible_strategies_say_why(strategy: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_strategy(strategy, 2, 2, **settings)


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_accelerates_own_strategies_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "true")
    with pytest.raises(UsageError, match=f"{name} is set.*--runtime.strategy"):
        Runtime(RuntimeConfig())


def test_all_strategies_are_known() -> None:
    for strategy in STRATEGIES:
        if strategy != "single":
            check_strategy(strategy, 2, 2)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="precision='fp8': use fp32, bf16 or fp16"):
        check_precision("fp8", torch.device("cpu"))
    check_precision("bf16", torch.device("cpu"))


@pytest.mark.parametrize(
    ("world", "needs", "room", "expected"),
    [
        (1, (GB, GB, 2 * GB), GB, "single"),  # there is nobody to share with
        (8, (GB, GB, 2 * GB), 7 * GB, "ddp"),  # 4 of 4.2 GB
        (8, (GB, GB, 2 * GB), 6 * GB, "fsdp"),  # 4 of 3.6 GB
    ],
)
def test_auto_keeps_whole_copies_where_they_fit(
    world: int, needs: tuple[int, int, int], room: int, expected: str
) -> None:
    strategy, why = choose(world, torch.device("cuda"), needs, room)
    assert strategy == expected
    assert why.startswith(f"strategy {expected}: ")
    if world > 1:
        assert "take 4 GB" in why
        assert f"{room // GB} GB (cuda)" in why


def test_what_training_takes_follows_from_the_optimizer() -> None:
    """A matrix of 8 x 8 and a bias of 8, 288 bytes; AdamW keeps two of each, Muon one a matrix."""
    model = nn.Linear(8, 8)
    assert training_bytes(model, [AdamW().build(model)]) == (288, 288, 576)
    assert training_bytes(model, [MuonAdamW().build(model)]) == (288, 288, 256 + 64)
    model.bias.requires_grad_(False)
    assert training_bytes(model, [AdamW().build(model)]) == (288, 256, 512)


def test_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    whole = device_bytes(cpu)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert device_bytes(cpu) == whole // 4


def test_optimizers_that_need_whole_tensors_are_refused() -> None:
    class Own(torch.optim.SGD):
        elementwise = True

    model = nn.Linear(2, 2)
    for optimizer in (AdamW().build(model), MuonAdamW().build(model), Own(model.parameters())):
        check_elementwise(optimizer, "fsdp")
    with pytest.raises(UsageError, match="strategy=fsdp: Adafactor is not known to treat every"):
        check_elementwise(torch.optim.Adafactor(model.parameters()), "fsdp")


def test_the_first_record_tells_what_a_process_holds(tmp_path: Path) -> None:
    with Runtime(output=tmp_path / "run") as run:
        model = nn.Linear(8, 8)  # 72 parameters of 4 bytes
        prepared, optimizer = run.prepare(model, AdamW().build(model))
        for step in run.steps(2, state={"model": model, "optimizer": optimizer}):
            run.backward(prepared(torch.ones(2, 8)).sum())
            run.step(optimizer)
            run.log(step, {"loss": run.loss})
    first, second = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert first["bytes/parameters"] == 288
    assert first["bytes/optimizer"] == 2 * 288 + 2 * 4  # and the step of each of two parameters
    assert "bytes/parameters" not in second


def test_a_model_that_was_trained_is_not_kept_alive() -> None:
    def train(run: Runtime) -> tuple[weakref.ref[nn.Module], weakref.ref[torch.optim.Optimizer]]:
        model = nn.Linear(8, 8)
        prepared, optimizer = run.prepare(model, AdamW().build(model))
        for _ in run.steps(1, state={"model": model, "optimizer": optimizer}):
            run.backward(prepared(torch.ones(2, 8)).sum())
            run.step(optimizer)
        return weakref.ref(model), weakref.ref(optimizer)

    with Runtime() as run:
        kept = train(run)
        gc.collect()
        assert [ref() for ref in kept] == [None, None]
