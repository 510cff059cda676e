import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from launch.optimizers import AdamW
from launch.runtime import Runtime
from posttrain.data.packing import Document
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.trainers import SFTConfig, train_sft

TEXTS = [f"{a} plus {b} is {a + b}" for a in range(10) for b in range(10)]
CONFIG = SFTConfig(
    steps=4, documents_per_step=10, row_length=24, optimizer=AdamW(learning_rate=1e-2)
)


@pytest.fixture(scope="module")
def made() -> LanguageModel:
    return tiny_model(train_tokenizer(TEXTS, vocabulary=80), layers=1, width=16, heads=2, seed=1)


@pytest.fixture(scope="module")
def documents(made: LanguageModel) -> list[Document]:
    rows = [made.tokenizer.encode(text) for text in TEXTS]
    return [Document(tokens=row, mask=[i > 1 for i in range(len(row))]) for row in rows]


def train(
    cfg: SFTConfig, made: LanguageModel, documents: list[Document], output: Path | None = None
) -> nn.Module:
    model = copy.deepcopy(made.model)
    with Runtime(output=output, seed=2) as run:
        train_sft(cfg, model, documents, run)
    return model


def test_train_sft_lowers_the_loss(
    made: LanguageModel, documents: list[Document], tmp_path: Path
) -> None:
    train(replace(CONFIG, steps=60), made, documents, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"micro_batch": 2}, {"row_length": 64}])
def test_micro_batches_and_packing_change_nothing(
    made: LanguageModel, documents: list[Document], changes: dict[str, int]
) -> None:
    whole = train(CONFIG, made, documents)
    other = train(replace(CONFIG, **changes), made, documents)
    torch.testing.assert_close(other.state_dict(), whole.state_dict(), rtol=1e-4, atol=2e-5)


def test_first_loss_is_the_mean_over_counted_tokens(
    made: LanguageModel, documents: list[Document], tmp_path: Path
) -> None:
    cfg = replace(CONFIG, steps=1, documents_per_step=100, shuffle=False)
    train(cfg, made, documents, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    total, count = 0.0, 0
    for document in documents:  # one by one, through transformers' own forward
        tokens = torch.tensor([list(document.tokens)])
        with torch.no_grad():
            log_probs = made.model(tokens).logits[0, :-1].log_softmax(-1)
        wanted = torch.tensor(list(document.mask))[1:]
        total -= log_probs.gather(-1, tokens[0, 1:, None])[wanted].sum().item()
        count += int(wanted.sum())
    assert record["tokens"] == count
    assert record["loss"] == pytest.approx(total / count, rel=1e-5)


def test_document_longer_than_a_row_is_an_error(made: LanguageModel) -> None:
    long = Document(tokens=[1] * 30, mask=[True] * 30)
    with pytest.raises(ValueError, match=r"30.*24"):
        train(CONFIG, made, [long])


@pytest.mark.parametrize("name", ["steps", "documents_per_step", "row_length", "micro_batch"])
def test_config_refuses_counts_below_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0"):
        replace(CONFIG, **{name: 0})
