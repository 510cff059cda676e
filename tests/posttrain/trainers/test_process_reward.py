from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from launch.errors import UsageError
from launch.optimizers import AdamW
from launch.runtime import Runtime
from launch.schedule import Constant
from posttrain.data.step_labels import StepDocument
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.process_reward_models import (
    ProcessRewardModel,
    process_model,
    token_process_model,
)
from posttrain.trainers import ProcessRewardConfig, train_process_reward_model

CONFIG = ProcessRewardConfig(
    steps=4,
    solutions_per_step=10,
    row_length=16,
    optimizer=AdamW(learning_rate=3e-3),
    schedule=Constant(),
)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    tokenizer = train_tokenizer([f"{a} + {a} - {a}\n" for a in range(9)], vocabulary=60)
    return tiny_model(tokenizer, layers=1, width=16, heads=2, seed=1)


@pytest.fixture(scope="module")
def scorer(lm: LanguageModel) -> ProcessRewardModel:
    return process_model(lm, seed=1)


@pytest.fixture(scope="module")
def solutions() -> list[StepDocument]:
    """Return two steps of three tokens each; a step is right until the first 9."""
    made = []
    for seed in range(160):
        draws = torch.randint(7, 12, (7,), generator=torch.Generator().manual_seed(seed)).tolist()
        first = float(9 not in draws[1:4])
        labels = [first, first * float(9 not in draws[4:7])]
        made.append(StepDocument(draws, [3, 6], labels))
    return made


def train(
    cfg: ProcessRewardConfig,
    scorer: ProcessRewardModel,
    documents: Sequence[StepDocument],
    output: Path | None = None,
    *,
    heldout: Sequence[StepDocument] = (),
    resume: bool = False,
) -> nn.Module:
    model = copy.deepcopy(scorer.model)
    with Runtime(output=output, seed=2, resume=resume) as run:
        train_process_reward_model(cfg, model, documents, run, heldout=heldout, head=scorer.head)
    return model


def records(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds", "speed/")
    return [{k: v for k, v in line.items() if not k.startswith(clock)} for line in lines]


@pytest.mark.parametrize("kind", ["scalar", "token"])
def test_it_learns_which_steps_are_right(
    kind: str,
    lm: LanguageModel,
    scorer: ProcessRewardModel,
    solutions: list[StepDocument],
    tmp_path: Path,
) -> None:
    chosen = scorer if kind == "scalar" else token_process_model(lm)
    cfg = replace(CONFIG, steps=60, solutions_per_step=20, heldout_every=30)
    train(cfg, chosen, solutions[:-40], tmp_path / "run", heldout=solutions[-40:])
    found = records(tmp_path / "run")
    assert found[-1]["loss"] < 0.5 * found[0]["loss"]
    looks = [record for record in found if "heldout/auc" in record]
    assert [record["step"] for record in looks] == [1, 30, 60]
    assert looks[-1]["heldout/auc"] > 0.85
    assert looks[-1]["heldout/accuracy"] > looks[0]["heldout/accuracy"]


def test_first_loss_is_that_of_the_probabilities(
    scorer: ProcessRewardModel, solutions: list[StepDocument], tmp_path: Path
) -> None:
    cfg = replace(CONFIG, steps=1, solutions_per_step=len(solutions))
    train(cfg, scorer, solutions, tmp_path / "run")
    found = scorer.probabilities([list(x.tokens) for x in solutions], [x.ends for x in solutions])
    losses, right = [], 0
    for document, row in zip(solutions, found, strict=True):
        for label, p in zip(document.labels, row, strict=True):
            losses.append(-label * math.log(p) - (1 - label) * math.log(1 - p))
            right += (p > 0.5) == (label > 0.5)
    (record,) = records(tmp_path / "run")
    assert record["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    assert record["accuracy"] == pytest.approx(right / len(losses))
    assert record["labels"] == 320


@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"micro_batch": 4}])
def test_micro_batches_and_unequal_numbers_of_steps_change_nothing(
    changes: dict[str, int], scorer: ProcessRewardModel, solutions: list[StepDocument]
) -> None:
    some = [
        StepDocument(x.tokens, x.ends[: 1 + i % 2], x.labels[: 1 + i % 2])
        for i, x in enumerate(solutions)
    ]
    whole = train(CONFIG, scorer, some)
    other = train(replace(CONFIG, **changes), scorer, some)
    torch.testing.assert_close(other.state_dict(), whole.state_dict(), rtol=1e-4, atol=2e-5)


def test_a_resumed_run_is_one_that_never_stopped(
    scorer: ProcessRewardModel, solutions: list[StepDocument], tmp_path: Path
) -> None:
    cfg = replace(CONFIG, steps=6, save_every=2, heldout_every=2)
    whole = train(cfg, scorer, solutions, tmp_path / "whole", heldout=solutions[:9])
    train(replace(cfg, steps=3), scorer, solutions, tmp_path / "parts", heldout=solutions[:9])
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00000003")  # killed after step 2
    again = train(cfg, scorer, solutions, tmp_path / "parts", heldout=solutions[:9], resume=True)
    for name, x in whole.state_dict().items():
        assert torch.equal(x, again.state_dict()[name]), name
    assert records(tmp_path / "parts")[-1] == records(tmp_path / "whole")[-1]


def test_what_cannot_be_learnt_from_is_refused(
    scorer: ProcessRewardModel, solutions: list[StepDocument]
) -> None:
    with pytest.raises(UsageError, match="there are no solutions to learn from"):
        train(CONFIG, scorer, [])
    with pytest.raises(UsageError, match="solution 0 has 7 tokens, but row_length=6"):
        train(replace(CONFIG, row_length=6), scorer, solutions)
    with pytest.raises(UsageError, match="solution 0 has no step with a label"):
        train(CONFIG, scorer, [StepDocument([5], [], [])])
    right = [StepDocument([5, 6], [1], [1.0])]
    with pytest.raises(UsageError, match=r"all 1 held-out steps are right: .* needs both"):
        train(CONFIG, scorer, solutions, heldout=right)
    with pytest.raises(ValueError, match=r"solutions_per_step=0: give at least 1"):
        replace(CONFIG, solutions_per_step=0)
