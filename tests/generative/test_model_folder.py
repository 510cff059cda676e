"""A saved model is the same model in another process, and a broken folder is named."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from generative.attention.transformer import Transformer, TransformerConfig
from generative.model_folder import load_model, new_model, save_model
from launch.errors import UsageError

SMALL = TransformerConfig(vocabulary=7, width=8, layers=1, heads=2, hidden=16, most_tokens=9)
SOURCE, TARGET = torch.tensor([[1, 2, 3]]), torch.tensor([[0, 2]])
ELSEWHERE = """
import sys, torch
from generative.model_folder import load_model
model = load_model(sys.argv[1])
torch.save(model(torch.tensor([[1, 2, 3]]), torch.tensor([[0, 2]])).detach(), sys.argv[2])
"""


def test_reloads_in_another_process(tmp_path: Path) -> None:
    model = new_model(SMALL, 3)
    save_model(model, tmp_path / "model")
    save_model(model, tmp_path / "model")  # takes the place of the older one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    done = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "model"), str(tmp_path / "logits")]
    subprocess.run(done, check=True)
    assert torch.equal(torch.load(tmp_path / "logits"), model(SOURCE, TARGET))
    again = load_model(tmp_path / "model")
    assert isinstance(again, Transformer)
    assert again.config == SMALL
    assert not again.training


def test_weights_follow_the_seed_and_leave_the_global_state() -> None:
    before = torch.get_rng_state()
    one, same, other = new_model(SMALL, 1), new_model(SMALL, 1), new_model(SMALL, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.embedding.weight, same.embedding.weight)
    assert not torch.equal(one.embedding.weight, other.embedding.weight)


def test_broken_folders_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with pytest.raises(UsageError, match="model is not a folder"):
        load_model(folder)
    save_model(new_model(SMALL, 0), folder)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("width: 8", "width: 16"))
    with pytest.raises(UsageError, match=r"model.safetensors does not fit the model in config"):
        load_model(folder)
    (folder / "config.yaml").write_text(text.replace("width: 8", "wide: 8"))
    with pytest.raises(UsageError, match=r"config.yaml: unknown key model.wide"):
        load_model(folder)
    (folder / "config.yaml").write_text(text)
    (folder / "model.safetensors").write_bytes(b"12345678")
    with pytest.raises(UsageError, match=r"model.safetensors is damaged"):
        load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"has no model.safetensors"):
        load_model(folder)
    with pytest.raises(UsageError, match="Linear cannot be saved: it keeps no config"):
        save_model(torch.nn.Linear(2, 2), folder)
