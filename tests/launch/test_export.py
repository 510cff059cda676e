"""Exports: the bytes of a checkpoint under the names that a model's library expects."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import launch.export as module
from launch import checkpoint
from launch.checkpoint import checkpoint_name
from launch.cli import main
from launch.errors import UsageError
from launch.export import SHAPES, export, parse_size
from launch.runtime import Runtime


class Weights(nn.Module):
    """Tensors under names of their own."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, x in tensors.items():
            self.register_buffer(name, x)


SIXTEEN = {name: torch.full((4, 4), float(i)) for i, name in enumerate("abc")}


def save(run: Path, step: int, tensors: Mapping[str, Tensor]) -> Path:
    temporary, final = run / "checkpoints/.tmp", run / "checkpoints" / checkpoint_name(step)
    temporary.mkdir(parents=True)
    checkpoint.save_state(temporary, {"model": Weights(tensors)}, {"step": step})
    checkpoint.complete(temporary, final)
    return final


def describe(run: Path, shapes: Mapping[str, list[int]]) -> None:
    temporary = run / ".architecture"
    (temporary / "templates").mkdir(parents=True)
    (temporary / "config.json").write_text('{"kind": "test"}')
    (temporary / "templates/chat").write_text("{{ x }}")
    (temporary / SHAPES).write_text(json.dumps(shapes))
    checkpoint.complete(temporary, run / "architecture")


def made(run: Path, tensors: Mapping[str, Tensor], *steps: int) -> Path:
    describe(run, {name: list(x.shape) for name, x in tensors.items()})
    for step in steps:
        save(run, step, tensors)
    return run


def files(folder: Path) -> list[str]:
    return sorted(x.relative_to(folder).as_posix() for x in folder.rglob("*") if x.is_file())


def damaged(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return path


def test_the_file_is_the_one_that_safetensors_writes(tmp_path: Path) -> None:
    tensors = {
        "zeta": torch.randn(3, 5),
        "narrow": torch.randn(7).bfloat16(),
        "count": torch.tensor(2**40),
        "alpha": torch.randn(2, 1, 2),
        "größe": torch.randn(3),
    }
    run = made(tmp_path / "run", tensors, 3)
    assert export(run, tmp_path / "out") == run / "checkpoints/step-00000003"
    assert files(tmp_path / "out") == ["config.json", "model.safetensors", "templates/chat"]
    assert (tmp_path / "out/config.json").read_text() == '{"kind": "test"}'
    save_file(tensors, tmp_path / "expected", metadata={"format": "pt"})
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()


def test_a_tensor_of_several_names_has_the_one_that_is_asked_for(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    run = tmp_path / "run"
    describe(run, {"embed": [2, 3]})
    path = save(run, 1, {"embed": shared, "another": shared})
    assert list(load_file(path / "model.safetensors")) == ["another"]
    export(run, tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    assert list(found) == ["embed"]
    assert torch.equal(found["embed"], shared)


def test_shards_hold_as_much_as_may_be_and_an_index_says_where(tmp_path: Path) -> None:
    # Each tensor is 4 * 4 * 4 = 64 bytes: two fit into 128, one into 127 or into 1.
    run = made(tmp_path / "run", SIXTEEN, 1)
    export(run, tmp_path / "two", shard_size=128)
    export(run, tmp_path / "three", shard_size=127)
    export(run, tmp_path / "least", shard_size=1)
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    assert files(tmp_path / "two")[1:4] == [first, second, "model.safetensors.index.json"]
    index = json.loads((tmp_path / "two/model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": 192},
        "weight_map": {"a": first, "b": first, "c": second},
    }
    for folder in ("two", "three", "least"):
        shards = sorted((tmp_path / folder).glob("*.safetensors"))
        assert len(shards) == (2 if folder == "two" else 3)
        found = {name: x for shard in shards for name, x in load_file(shard).items()}
        assert {name: x.tolist() for name, x in found.items()} == {
            name: x.tolist() for name, x in SIXTEEN.items()
        }


def test_the_newest_whole_checkpoint_is_taken_or_the_step_that_is_asked_for(
    tmp_path: Path,
) -> None:
    run = made(tmp_path / "run", SIXTEEN, 2, 4, 6)
    assert export(run, tmp_path / "a").name == checkpoint_name(6)
    assert export(run, tmp_path / "b", step=2).name == checkpoint_name(2)
    damaged(run / "checkpoints/step-00000006/model.safetensors")
    with pytest.warns(RuntimeWarning, match=r"step-00000006 is skipped: model\.safetensors has ch"):
        assert export(run, tmp_path / "c").name == checkpoint_name(4)
    with pytest.raises(UsageError, match=r"step-00000006 is damaged: model\.safetensors has ch"):
        export(run, tmp_path / "d", step=6)
    with pytest.raises(UsageError, match=r"has no checkpoint of step 5; there are 2, 4, 6$"):
        export(run, tmp_path / "d", step=5)
    damaged(run / "checkpoints/step-00000004/progress.json")
    damaged(run / "checkpoints/step-00000002/progress.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UsageError, match="no whole checkpoint left: all 3 are damaged"):
            export(run, tmp_path / "d")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a": SIXTEEN["a"], "c": SIXTEEN["c"]}, "it has no b"),
        (SIXTEEN | {"b": torch.zeros(2), "c": torch.zeros(2)}, r"b is \[2\] instead of \[4, 4\]"),
        (SIXTEEN | {"d": torch.zeros(2)}, "it has d as well"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_the_first_tensor_that_differs(
    tmp_path: Path, tensors: Mapping[str, Tensor], said: str
) -> None:
    run = made(tmp_path / "run", SIXTEEN)
    save(run, 1, tensors)
    with pytest.raises(UsageError, match=f"step-00000001 is of another model than .*: {said}"):
        export(run, tmp_path / "out")
    assert files(tmp_path) == [name for name in files(tmp_path) if name.startswith("run/")]


def test_a_stage_takes_the_architecture_of_its_run_unless_it_has_its_own(tmp_path: Path) -> None:
    run = made(tmp_path / "run", SIXTEEN)
    inner = run / "stages/6-student/stages/outputs"
    save(inner, 1, SIXTEEN)
    export(inner, tmp_path / "inherited")
    with pytest.raises(UsageError, match=r"no checkpoint$"):  # a stage's stage is not searched
        export(run, tmp_path / "none")
    other = {"x": torch.ones(2)}
    made(run / "stages/6-student", other, 1)
    export(run / "stages/6-student", tmp_path / "own")
    assert list(load_file(tmp_path / "own/model.safetensors")) == ["x"]
    with pytest.raises(UsageError, match=r"export one of its stages, such as .*6-student$"):
        export(run, tmp_path / "none")


def test_what_cannot_be_exported_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made(Path("run"), SIXTEEN, 1)
    save(Path("plain"), 1, SIXTEEN)
    made(Path("cut"), SIXTEEN, 1)
    damaged(Path("cut/architecture/config.json"))
    for name, file in (("lora", "model.pt"), ("agent", "policy.pt")):
        describe(Path(name), {})
        temporary = Path(name, "checkpoints/.tmp")
        temporary.mkdir(parents=True)
        torch.save({}, temporary / file)
        checkpoint.complete(temporary, Path(name, "checkpoints", checkpoint_name(1)))
    Path("full").mkdir()
    Path("full/mine").write_text("mine")
    Path("file").write_text("mine")

    def said(*arguments: str) -> str:
        assert main(["export", *arguments]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    assert "needs a DIR" in said("run")
    assert "there is no run folder absent" in said("absent", "out")
    assert "full exists and is no empty folder" in said("run", "full")
    assert "file exists and is no empty folder" in said("run", "file")
    assert "plain has no architecture/" in said("plain", "out")
    assert "architecture is damaged: config.json has changed" in said("cut", "out")
    assert "holds adapters, not a whole model: take lora/model" in said("lora", "out")
    assert "holds no model: there is no model.safetensors" in said("agent", "out")
    assert "shard_size: got '-1MB'" in said("run", "out", "--shard_size", "-1MB")
    assert "step: " in said("run", "out", "--step", "last")
    assert "full has no checkpoint" in said("full", "out")
    assert "unknown flag --stepp" in said("run", "out", "--stepp", "1")
    assert not Path("out").exists()
    assert files(Path("full")) == ["mine"]
    Path("empty").mkdir()
    assert main(["export", "run", "empty", "--step=1", "--shard_size", "100B"]) == 0
    assert "step-00000001 is in empty" in capsys.readouterr().out
    assert len(files(Path("empty"))) == 6  # config, template, three shards and their index


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path / "run", SIXTEEN, 1)

    def full(*arguments: object) -> Iterator[bytes]:
        yield b"\0" * 8
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_blocks", full)
    with pytest.raises(UsageError, match=r"out cannot be written: .*No space left on device"):
        export(run, tmp_path / "out")
    assert [x.name for x in tmp_path.iterdir()] == ["run"]


def test_memory_stays_far_below_a_shard(tmp_path: Path) -> None:
    # Four tensors of 50 MB: an export that read a shard would need 50 MB, or 100 MB here.
    rows = {name: torch.full((12_500, 1_000), float(i)) for i, name in enumerate("abcd")}
    run = made(tmp_path / "run", rows, 1)
    del rows
    tracemalloc.start()
    try:
        export(run, tmp_path / "out", shard_size=100_000_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    sizes = [x.stat().st_size for x in (tmp_path / "out").glob("*.safetensors")]
    assert min(sizes) > 100_000_000
    assert peak < 20_000_000
    found = load_file(sorted((tmp_path / "out").glob("*.safetensors"))[1])
    assert {name: (float(x.min()), float(x.max())) for name, x in found.items()} == {
        "c": (2.0, 2.0),
        "d": (3.0, 3.0),
    }
    shutil.rmtree(run)
    shutil.rmtree(tmp_path / "out")


def test_sizes_are_numbers_with_a_unit() -> None:
    assert [parse_size(x) for x in ("1", "2KB", " 3 mb", "0.5GB", "7b")] == [
        1,
        2_000,
        3_000_000,
        500_000_000,
        7,
    ]
    for wrong in ("", "MB", "0", "-1", "5 TB", "nan", "inf GB"):
        with pytest.raises(UsageError, match="expected a number of bytes"):
            parse_size(wrong)


# -- what a run keeps ----------------------------------------------------------------------------


def test_a_run_keeps_its_architecture_once_and_before_the_first_checkpoint(tmp_path: Path) -> None:
    calls = []

    def write(folder: Path) -> None:
        calls.append(folder)
        (folder / "config.json").write_text("{}")

    state = {"model": nn.Linear(1, 1)}
    path = tmp_path / "run/architecture"
    with Runtime(output=tmp_path / "run") as run:
        run.keep_architecture(write)
        assert not path.exists()
        with run.stage("one") as stage:  # the stage saves, the run does not
            stage.save(1, state)
        assert checkpoint.damage(path) is None
        run.save(2, state)
    for _ in range(2):
        with Runtime(output=tmp_path / "run", resume=True) as run:
            run.keep_architecture(write)
            run.save(3, state)
    assert len(calls) == 1
    damaged(path / "config.json")
    with Runtime(output=tmp_path / "run", resume=True) as run:
        run.keep_architecture(write)
        run.save(4, state)
    assert len(calls) == 2
    assert checkpoint.damage(path) is None
    assert {x.name for x in (tmp_path / "run").iterdir()} == {
        ".lock",
        "architecture",
        "checkpoints",
        "config.yaml",
        "stages",
    }


def test_an_architecture_that_cannot_be_written_has_no_name(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise OSError(28, os.strerror(28))

    with Runtime(output=tmp_path) as run:
        run.keep_architecture(write)
        with pytest.raises(UsageError, match=r"architecture could not be .*No space left"):
            run.save(1, {"model": nn.Linear(1, 1)})
    assert not list(tmp_path.glob("*architecture*"))
    assert not list(tmp_path.glob(".architecture*"))
    with Runtime() as run:  # a run without a folder keeps nothing
        run.keep_architecture(write)
        run.save(1, {})


def test_overwriting_a_run_removes_its_architecture(tmp_path: Path) -> None:
    describe(tmp_path, {})
    save(tmp_path, 1, SIXTEEN)
    with Runtime(output=tmp_path, overwrite=True):
        assert not (tmp_path / "architecture").exists()
