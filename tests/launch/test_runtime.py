import copy
import json
import math
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from two_processes import on_two_processes
from warm import Warm

from launch import checkpoint
from launch.batch import TensorBatch, shaped
from launch.errors import UsageError
from launch.metrics import Mean, Rate
from launch.runtime import Runtime, RuntimeConfig

SCRIPT = Path(__file__).with_name("step_contract.py")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("alone") / "out.pt"
    subprocess.run([sys.executable, str(SCRIPT), str(path), "14", "0:14"], check=True, timeout=120)
    return dict(torch.load(path))


@pytest.mark.distributed
@pytest.mark.parametrize("held", ["0:10", "0:14"], ids=["ten and four", "all and none"])
def test_two_processes_with_unequal_rows_equal_one(
    tmp_path: Path, alone: dict[str, Any], held: str, warmed: Warm
) -> None:
    done = on_two_processes(warmed, SCRIPT, str(tmp_path / "out.pt"), "3", held)
    assert done.returncode == 0, done.stderr[-2000:]
    both = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(both["state"], alone["state"], rtol=1e-5, atol=1e-6)
    for a, b in zip(both["records"], alone["records"], strict=True):
        assert a.pop("parts") == (4 if held == "0:10" else 5)  # as many as the fuller one needs
        b = {name: x for name, x in b.items() if name != "parts"}
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(both["gathered"], alone["gathered"], rtol=0, atol=0)
    assert both["seeds"] == alone["seeds"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rows(TensorBatch):
    x: Tensor = shaped("B")


def sum_of_squares(weight: Tensor, rows: Rows) -> Tensor:
    return (weight * rows.x).square().sum()


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 100])
def test_micro_batches_do_not_change_the_gradient_or_the_norm(rows: int) -> None:
    # f(w) = sum (w x)^2 with w = 2 and x = 1 ... 5: f' = 2 w sum x^2 = 220, f = 220
    run, weight = Runtime(), nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    batch = Rows(x=torch.arange(1.0, 6.0, dtype=torch.float64))
    for part in run.micro_batches(batch, rows):
        run.backward(sum_of_squares(weight, part))
    norm = run.step(optimizer, max_norm=11.0)
    assert norm.item() == 220.0
    assert run.loss.item() == 220.0
    assert weight.item() == pytest.approx(2.0 - 11.0)
    assert weight.grad is None


@pytest.mark.parametrize("max_norm", [None, 1e-3, 1e3])
def test_clipping_is_torchs(max_norm: float | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    twin = copy.deepcopy(model)
    unused = nn.Parameter(torch.ones(2))  # without a gradient
    x = torch.randn(5, 3)
    run = Runtime()
    run.backward(model(x).square().sum())
    norm = run.step(torch.optim.SGD([*model.parameters(), unused], lr=0.1), max_norm=max_norm)
    twin(x).square().sum().backward()
    limit = math.inf if max_norm is None else max_norm
    assert torch.equal(norm, nn.utils.clip_grad_norm_(twin.parameters(), limit))
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
    assert torch.equal(unused, torch.ones(2))


def test_micro_batches_of_an_empty_batch_are_one_empty_batch() -> None:
    assert [len(part) for part in Runtime().micro_batches(Rows(x=torch.zeros(0)), 4)] == [0]
    with pytest.raises(ValueError, match="micro-batches of 0 rows"):
        next(Runtime().micro_batches(Rows(x=torch.zeros(1)), 0))


def test_runtime_without_arguments_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Runtime() as run:
        for step in run.steps(3, state={"model": model}, save_every=1):
            run.backward(model(torch.ones(1, 1)).sum())
            run.log(step, {"norm": run.step(optimizer)})
            run.note("a", "b")
            run.samples(step, [{"x": 1}])
    assert list(tmp_path.iterdir()) == []


def test_log_combines_means_and_rates(tmp_path: Path) -> None:
    with Runtime(output=tmp_path / "run") as run:
        with run.phase("generate"):
            pass
        figures = run.log(1, {"a": Mean(torch.tensor(3.0), 4), "b": Mean(1.0, 0), "c": 2})
        assert figures == {"a": 0.75, "b": 0.0, "c": 2.0}
        assert run.log(2, {"speed/tokens": Rate(10)})["speed/tokens"] > 0
    first, second = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert first.pop("seconds") >= 0
    assert first.pop("seconds/generate") >= 0
    assert first == {"step": 1, "a": 0.75, "b": 0.0, "c": 2.0}
    assert second["step"] == 2


def train(output: Path, steps: int, *, resume: bool = False, stop_after: int = 0) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with Runtime(output=output, resume=resume) as run:
        state = {"model": model, "optimizer": optimizer}
        for step in run.steps(steps, state=state, save_every=2):
            x = torch.randn(8, 3, generator=run.stream("data", step))
            run.backward(model(x).square().mean())  # dropout draws from the global stream
            norm = run.step(optimizer, max_norm=1.0)
            run.log(step, {"loss": run.loss, "grad_norm": norm})
            if step == stop_after:
                break
    return model


def records(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in lines]


@pytest.mark.parametrize("stop_after", [1, 4, 5, 7])
def test_resumed_run_equals_one_never_stopped(tmp_path: Path, stop_after: int) -> None:
    whole = train(tmp_path / "whole", 7)
    train(tmp_path / "cut", 7, stop_after=stop_after)
    resumed = train(tmp_path / "cut", 7, resume=True)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    kept = sorted(p.name for p in (tmp_path / "cut" / "checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000007"]


def test_damaged_checkpoint_is_skipped_with_a_warning_that_names_it(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 7)
    train(tmp_path / "cut", 7, stop_after=5)
    newest = tmp_path / "cut" / "checkpoints" / "step-00000004" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-3])
    with pytest.warns(RuntimeWarning, match=r"step-00000004 is skipped: model\.safetensors has"):
        resumed = train(tmp_path / "cut", 7, resume=True)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")


def test_half_written_checkpoint_and_record_are_no_trouble(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 7)
    train(tmp_path / "cut", 7, stop_after=3)
    left = tmp_path / "cut" / "checkpoints" / ".step-00000004.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    resumed = train(tmp_path / "cut", 7, resume=True)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert not left.exists()


def test_full_disk_leaves_the_old_checkpoints_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "run", 2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("launch.checkpoint.sums", full)
    with pytest.raises(UsageError, match=r"step 4 could not be written .*No space left.*--resume"):
        train(tmp_path / "run", 6, resume=True)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    resumed = train(tmp_path / "run", 7, resume=True)
    torch.testing.assert_close(
        resumed.state_dict(), train(tmp_path / "whole", 7).state_dict(), rtol=0, atol=0
    )


def test_loss_that_is_not_finite_names_step_and_rows_and_saves_them(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.SGD([weight], lr=1.0)

    def train(run: Runtime) -> None:
        for _ in run.steps(1, state={}):
            for part in run.micro_batches(Rows(x=torch.tensor([1.0, 2.0, 3.0, float("nan")])), 2):
                run.backward(sum_of_squares(weight, part))
            run.step(optimizer)

    named = r"step 1: the loss is not finite .*process 0: rows 2 to 3"
    with Runtime(output=tmp_path / "run") as run, pytest.raises(UsageError, match=named):
        train(run)
    assert weight.item() == 1.0
    (saved,) = torch.load(tmp_path / "run" / "not-finite-step-1-process-0.pt")
    assert saved["x"][0].item() == 3.0


def test_fp16_leaves_out_a_step_that_overflows() -> None:
    run = Runtime(RuntimeConfig(precision="fp16"))
    weight = nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    run.backward(weight * 1.0)
    norm = run.step(optimizer)
    assert norm.item() == 1.0
    assert (weight.item(), run.skipped_steps) == (0.5, 0)
    run.backward(weight * 1e36)  # finite itself, but not times the loss scale
    run.step(optimizer)
    assert (weight.item(), run.skipped_steps) == (0.5, 1)


def test_bf16_computes_in_bf16_and_keeps_float32_weights() -> None:
    run = Runtime(RuntimeConfig(precision="bf16"))
    model = nn.Linear(4, 4)
    prepared, optimizer = run.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))
    out = prepared(torch.ones(1, 4))
    assert out.dtype == torch.bfloat16
    run.backward(out.float().sum())
    run.step(optimizer)
    assert model.weight.dtype == torch.float32


def test_world_size_is_compared_with_what_was_asked() -> None:
    with pytest.raises(UsageError, match="2 processes were asked for, but 1 started"):
        Runtime(processes=2)
    with pytest.raises(UsageError, match="strategy=ddp, but only one process started"):
        Runtime(RuntimeConfig(strategy="ddp"))


def test_stage_has_a_folder_and_a_seed_of_its_own(tmp_path: Path) -> None:
    with Runtime(output=tmp_path / "run", seed=1) as run:
        with run.stage("1-sft", "steps: 3\n") as stage:
            stage.log(1, {"loss": 2.0})
            first = stage.seed
        with run.stage("2-grpo") as stage:
            assert stage.seed != first
    folder = tmp_path / "run" / "stages" / "1-sft"
    assert (folder / "config.yaml").read_text() == "steps: 3\n"
    assert records(folder) == [{"step": 1, "loss": 2.0}]


def test_progress_is_entitled_with_the_stage(capsys: pytest.CaptureFixture[str]) -> None:
    def steps(run: Runtime, **title: str) -> str:
        for step in run.steps(1, state={}, **title):
            run.log(step, {})
        return capsys.readouterr().err.partition(" 1/1")[0]

    with Runtime() as run:
        assert steps(run) == "training"
        assert steps(run, title="mine") == "mine"
        with run.stage("1-sft") as stage:
            assert steps(stage) == "1-sft"


@pytest.mark.parametrize(("world", "count"), [(1, 5), (2, 5), (3, 2), (4, 64)])
def test_shares_are_contiguous_and_even(world: int, count: int) -> None:
    run, shares = Runtime(), []
    for rank in range(world):
        run.backend.rank, run.backend.world_size = rank, world
        shares.append(run.share(count))
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_seed_that_keys_the_streams_counts_and_replaces_the_one_before() -> None:
    def draw(run: Runtime) -> float:
        return float(torch.rand((), generator=run.stream("noise")))

    run = Runtime(seed=3)
    plain = draw(run)
    run.key_by(0)
    first = draw(run)
    run.key_by(1)
    second = draw(run)
    run.key_by(0)
    assert len({plain, first, second}) == 3
    assert draw(run) == first


@pytest.mark.distributed
def test_processes_that_disagree_on_the_config_all_end(warmed: Warm) -> None:
    done = on_two_processes(warmed, SCRIPT.with_name("disagree.py"))
    said = "process 1 was given another config than process 0: start all with the same command"
    for rank in (0, 1):
        assert f"process {rank}: {said}" in done.stdout
    assert "nobody noticed" not in done.stderr


def test_a_large_checkpoint_is_written_while_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are held back until step 3: till then the checkpoint of step 1 is not there."""
    may_write, seen = threading.Event(), []
    sums = checkpoint.sums

    def held_back(folder: Path) -> dict[str, list[int]]:
        assert may_write.wait(30)
        return sums(folder)

    monkeypatch.setattr("launch.saving._SMALL", 0)
    monkeypatch.setattr("launch.checkpoint.sums", held_back)
    model = nn.Linear(2, 2)
    with Runtime(output=tmp_path / "run") as run:
        prepared, optimizer = run.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        state = {"model": model, "optimizer": optimizer}
        for step in run.steps(4, state=state, save_every=2):
            if step == 3:
                weight = model.weight.detach().clone()
                may_write.set()
                while run._saver is not None and run._saver.is_writing:
                    time.sleep(0.01)
            seen.append(sorted(x.name for x in (tmp_path / "run/checkpoints").glob("step-*")))
            run.backward(prepared(torch.ones(1, 2)).sum())
            run.step(optimizer)
    assert seen == [[], [], [], ["step-00000002"]]
    kept = nn.Linear(2, 2)
    checkpoint.load_state(tmp_path / "run/checkpoints/step-00000002", {"model": kept})
    assert kept.weight.equal(weight)  # as it was after step 2, not as it is now
    assert not kept.weight.equal(model.weight)
