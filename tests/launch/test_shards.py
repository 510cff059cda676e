"""What one number of processes has written, any other reads: without processes, piece by piece."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from launch.errors import UsageError
from launch.optimizers import AdamW, MuonAdamW
from launch.placement import Piece
from launch.runtime import Runtime
from launch.shards import load, taken
from launch.stored import Stored

WEIGHT = torch.arange(15.0).view(5, 3)
BIAS = torch.tensor([7.0])


class Part:
    """The elements of a weight and a bias that one process has."""

    def __init__(self, begin: int, end: int, *, bias: bool, filled: bool = True) -> None:
        weight = WEIGHT.reshape(-1)[begin:end].clone() if filled else torch.zeros(end - begin)
        own = BIAS.clone() if filled else torch.zeros(1)
        self.weight = Piece(weight, begin, (5, 3), alone=True)
        self.bias = Piece(own if bias else own[:0], 0 if bias else 1, (1,), alone=True)

    def pieces(self) -> dict[str, Piece]:
        return {"weight": self.weight, "bias": self.bias}

    def state_dict(self) -> dict[str, Tensor]:
        raise AssertionError("what is in pieces is not asked for its state")

    def load_state_dict(self, state_dict: dict[str, Tensor], /) -> None:
        raise AssertionError("what is in pieces is not given a state")


def parts(cuts: Sequence[int], *, filled: bool) -> list[Part]:
    runs = itertools.pairwise(cuts)
    return [Part(a, b, bias=a == 0, filled=filled) for a, b in runs]


def write(folder: Path, cuts: Sequence[int]) -> None:
    found = parts(cuts, filled=True)
    for rank, part in enumerate(found):
        for file in taken("average", part, rank=rank, world=len(found)):
            file.into(folder)


@pytest.mark.parametrize("after", [(0, 15), (0, 9, 15), (0, 4, 8, 15), (0, 0, 15, 15)])
@pytest.mark.parametrize("before", [(0, 15), (0, 9, 15), (0, 5, 5, 15)])
def test_pieces_are_read_by_any_number_of_processes(
    tmp_path: Path, before: Sequence[int], after: Sequence[int]
) -> None:
    write(tmp_path, before)
    for part in parts(after, filled=False):
        load(tmp_path, "average", part)
        begin, count = part.weight.begin, part.weight.data.numel()
        assert part.weight.data.tolist() == list(range(begin, begin + count))
        assert part.bias.data.tolist() in ([7.0], [])


def test_whole_tensors_come_of_pieces(tmp_path: Path) -> None:
    write(tmp_path, (0, 9, 15))
    stored = Stored(tmp_path, "average")
    assert stored.whole("weight").equal(WEIGHT)
    assert stored.read("weight", 7, 4).tolist() == [7, 8, 9, 10]
    assert stored.shapes == {"weight": [5, 3], "bias": [1]}


def test_a_missing_process_is_named(tmp_path: Path) -> None:
    write(tmp_path, (0, 9, 15))
    (tmp_path / "average-00002-of-00002.safetensors").unlink()
    with pytest.raises(UsageError, match=r"9 of the 15 elements of weight .* is missing"):
        Stored(tmp_path, "average").whole("weight")


def test_a_state_is_copied_when_it_is_taken(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    (file,) = taken("model", model)
    assert file.size == 4 * (4 + 2)
    nn.init.zeros_(model.weight)
    file.into(tmp_path)
    load(tmp_path, "model", model)
    assert model.weight.equal(before)


@pytest.mark.parametrize("config", [AdamW(weight_decay=0.1), MuonAdamW()])
def test_a_prepared_optimizer_is_kept_by_the_names_of_its_parameters(
    tmp_path: Path, config: AdamW | MuonAdamW
) -> None:
    """Loaded into a fresh one, three steps more are those of one that was never stopped."""

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        _, optimizer = run.prepare(model, config.build(model))
        return model, optimizer

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
            torch.manual_seed(step)
            run.backward(model(torch.randn(5, 3)).square().sum())
            run.step(optimizer)

    with Runtime() as run:
        whole, optimizer = made()
        train(whole, optimizer, range(2))
        for name, thing in (("model", whole), ("optimizer", optimizer)):
            for file in taken(name, thing):
                file.into(tmp_path)
        assert (tmp_path / "optimizer.safetensors").exists()
        assert "0.weight/" in "".join(Stored(tmp_path, "optimizer").shapes)
        train(whole, optimizer, range(2, 5))
        again, other = made()
        load(tmp_path, "model", again)
        load(tmp_path, "optimizer", other)
        train(again, other, range(2, 5))
        for a, b in zip(whole.parameters(), again.parameters(), strict=True):
            assert a.equal(b)


def test_an_optimizer_of_other_groups_is_refused(tmp_path: Path) -> None:
    with Runtime() as run:
        model = nn.Linear(3, 3)
        _, optimizer = run.prepare(model, AdamW(weight_decay=0.1).build(model))
        for file in taken("optimizer", optimizer):
            file.into(tmp_path)
        _, other = run.prepare(model, AdamW().build(model))
        with pytest.raises(UsageError, match=r"\[2\] parameter groups, and this one has \[1\]"):
            load(tmp_path, "optimizer", other)
