import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from launch import checkpoint
from launch.errors import UsageError


def write(folder: Path, step: int, value: float = 0.0) -> Path:
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, value)
    temporary, final = folder / ".tmp", folder / checkpoint.checkpoint_name(step)
    temporary.mkdir(parents=True)
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoint.save_state(temporary, {"model": model, "optimizer": optimizer}, {"step": step})
    checkpoint.complete(temporary, final)
    return final


def test_complete_checkpoint_is_whole_and_gives_its_state_back(tmp_path: Path) -> None:
    folder = write(tmp_path, 3, 1.5)
    assert checkpoint.damage(folder) is None
    model = nn.Linear(2, 2)
    checkpoint.load_state(folder, {"model": model})
    assert model.weight.tolist() == [[1.5, 1.5], [1.5, 1.5]]
    assert checkpoint.read_progress(folder) == {"step": 3}
    assert not (tmp_path / ".tmp").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "progress.json"])
def test_damage_names_a_file_that_is_short_changed_or_gone(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, 1)
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert f"{name} has {len(content) - 1} bytes instead of {len(content)}" == checkpoint.damage(
        folder
    )
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert checkpoint.damage(folder) == f"{name} has changed since it was written"
    path.unlink()
    assert checkpoint.damage(folder) == f"{name} is missing"


def test_damage_of_the_marker(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    (folder / "COMPLETE").write_text("{}")
    assert checkpoint.damage(folder) == "its COMPLETE marker names no file"
    (folder / "COMPLETE").write_text('["x"')
    assert checkpoint.damage(folder) == "its COMPLETE marker cannot be read"
    (folder / "COMPLETE").write_text("")
    assert checkpoint.damage(folder) == "its COMPLETE marker cannot be read"
    (folder / "COMPLETE").unlink()
    assert "no COMPLETE marker" in str(checkpoint.damage(folder))


def test_marker_lists_every_file(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    names = {path.name for path in folder.iterdir()}
    assert names == {"COMPLETE", *json.loads((folder / "COMPLETE").read_text())}


def test_prune_keeps_the_newest_whole_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    (tmp_path / "step-00000003" / "COMPLETE").unlink()  # damaged: does not count as kept
    checkpoint.prune(tmp_path, keep=2)
    assert checkpoint.steps_of(tmp_path) == [4, 3, 2]
    checkpoint.prune(tmp_path, keep=5)
    assert checkpoint.steps_of(tmp_path) == [4, 3, 2]


def test_random_state_round_trip_through_a_file(tmp_path: Path) -> None:
    torch.save(checkpoint.random_state(), tmp_path / "random.pt")
    first = (torch.rand(3), np.random.rand(3), random.random())  # noqa: NPY002 the state kept
    checkpoint.set_random_state(torch.load(tmp_path / "random.pt", weights_only=True))
    second = (torch.rand(3), np.random.rand(3), random.random())  # noqa: NPY002 the state kept
    assert first[0].tolist() == second[0].tolist()
    assert first[1].tolist() == second[1].tolist()
    assert first[2] == second[2]


def test_load_state_names_what_the_checkpoint_lacks(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    with pytest.raises(
        UsageError, match=r"has no ema\.safetensors: it was written by another kind"
    ):
        checkpoint.load_state(folder, {"ema": nn.Linear(1, 1)})


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Linear(2, 3), r"weight is \[2, 2\] instead of \[3, 2\]"),
        (nn.Linear(2, 2, bias=False), "it has bias as well"),
        (nn.Sequential(nn.Linear(2, 2)), r"it has no 0\.weight"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_its_first_parameter(
    tmp_path: Path, model: nn.Module, said: str
) -> None:
    folder = write(tmp_path, 1)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(UsageError, match=rf"model\.safetensors is of another model .*: {said}; "):
        checkpoint.load_state(folder, {"model": model})
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
