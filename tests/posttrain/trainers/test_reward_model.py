from __future__ import annotations

import copy
import json
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
from posttrain.data.packing import Document
from posttrain.data.preferences import Pair, PairWithMargin
from posttrain.models import tiny_model, train_tokenizer
from posttrain.objectives import DPO, BradleyTerry
from posttrain.reward_models import RewardModel, outcome_model
from posttrain.trainers import RewardModelConfig, train_reward_model

SUMS = [(a, b) for a in range(6) for b in range(6)]
TEXTS = [f"{a} plus {b} is {a + b}, exactly" for a, b in SUMS]
CONFIG = RewardModelConfig(
    objective=BradleyTerry(centring=0.01),
    steps=4,
    pairs_per_step=10,
    row_length=24,
    optimizer=AdamW(learning_rate=3e-3),
    schedule=Constant(),
)


@pytest.fixture(scope="module")
def scorer() -> RewardModel:
    tokenizer = train_tokenizer(TEXTS, vocabulary=80)
    return outcome_model(tiny_model(tokenizer, layers=1, width=16, heads=2, seed=1), seed=1)


@pytest.fixture(scope="module")
def pairs(scorer: RewardModel) -> list[Pair]:
    def document(prompt: str, completion: str) -> Document:
        start, rest = (scorer.tokenizer.encode(text) for text in (prompt, completion))
        return Document(start + rest, [False] * len(start) + [True] * len(rest))

    return [
        (
            document(f"{a} plus {b} is", f" {a + b}"),
            document(f"{a} plus {b} is", f" {a}, exactly" if b else f" {a} exactly"),
        )
        for a, b in SUMS
    ]


def train(
    cfg: RewardModelConfig,
    scorer: RewardModel,
    pairs: Sequence[Pair],
    output: Path | None = None,
    *,
    heldout: Sequence[Pair] = (),
    resume: bool = False,
) -> nn.Module:
    model = copy.deepcopy(scorer.model)
    with Runtime(output=output, seed=2, resume=resume) as run:
        train_reward_model(cfg, model, pairs, run, heldout=heldout)
    return model


def records(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds", "speed/")
    return [{k: v for k, v in line.items() if not k.startswith(clock)} for line in lines]


def test_it_learns_and_looks_at_held_out_pairs_on_schedule(
    scorer: RewardModel, pairs: list[Pair], tmp_path: Path
) -> None:
    cfg = replace(CONFIG, steps=30, heldout_every=10)
    train(cfg, scorer, pairs[:-8], tmp_path / "run", heldout=pairs[-8:])
    found = records(tmp_path / "run")
    assert found[-1]["loss"] < 0.5 * found[0]["loss"]
    assert found[-1]["accuracy"] > 0.9
    looks = [record for record in found if "heldout/accuracy" in record]
    assert [record["step"] for record in looks] == [1, 10, 20, 30]
    assert looks[-1]["heldout/loss"] < looks[0]["heldout/loss"]
    assert looks[-1]["heldout/margin"] > looks[0]["heldout/margin"] + 1


def test_first_loss_is_that_of_the_scores_at_the_last_tokens(
    scorer: RewardModel, pairs: list[Pair], tmp_path: Path
) -> None:
    cfg = replace(CONFIG, steps=1, pairs_per_step=len(pairs), objective=BradleyTerry())
    train(cfg, scorer, pairs, tmp_path / "run")
    chosen, rejected = (
        torch.stack([scorer.scores([list(pair[i].tokens)])[0] for pair in pairs]) for i in (0, 1)
    )
    (record,) = records(tmp_path / "run")
    losses = (1 + (rejected - chosen).exp()).log()
    assert record["loss"] == pytest.approx(losses.mean().item(), abs=1e-6)
    assert record["reward/chosen"] == pytest.approx(chosen.mean().item(), abs=1e-6)
    assert record["reward/rejected"] == pytest.approx(rejected.mean().item(), abs=1e-6)
    assert record["accuracy"] == pytest.approx((chosen > rejected).float().mean().item())


@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"micro_batch": 4}, {"row_length": 64}])
def test_micro_batches_change_nothing(
    changes: dict[str, int], scorer: RewardModel, pairs: list[Pair]
) -> None:
    whole = train(CONFIG, scorer, pairs)
    other = train(replace(CONFIG, **changes), scorer, pairs)
    torch.testing.assert_close(other.state_dict(), whole.state_dict(), rtol=1e-4, atol=2e-5)


def test_a_margin_asks_for_more(scorer: RewardModel, pairs: list[Pair], tmp_path: Path) -> None:
    cfg = replace(CONFIG, steps=1, pairs_per_step=len(pairs), objective=BradleyTerry())
    train(cfg, scorer, pairs, tmp_path / "plain")
    wide = [PairWithMargin(*pair, 2.0) for pair in pairs]
    train(cfg, scorer, wide, tmp_path / "wide")
    plain, asked = (records(tmp_path / name)[0] for name in ("plain", "wide"))
    assert asked["reward/margin"] == pytest.approx(plain["reward/margin"], abs=1e-6)
    # Every margin is small beside 2, where the loss has slopes between 1/2 and 1.
    assert plain["loss"] + 1 < asked["loss"] < plain["loss"] + 2


def test_a_resumed_run_is_one_that_never_stopped(
    scorer: RewardModel, pairs: list[Pair], tmp_path: Path
) -> None:
    cfg = replace(CONFIG, steps=6, save_every=2, heldout_every=2)
    whole = train(cfg, scorer, pairs, tmp_path / "whole", heldout=pairs[:5])
    train(replace(cfg, steps=3), scorer, pairs, tmp_path / "parts", heldout=pairs[:5])
    for name in ("metrics.jsonl", "checkpoints/step-00000003"):  # as if killed after step 2
        path = tmp_path / "parts" / name
        if path.is_dir():
            shutil.rmtree(path)
    again = train(cfg, scorer, pairs, tmp_path / "parts", heldout=pairs[:5], resume=True)
    for name, x in whole.state_dict().items():
        assert torch.equal(x, again.state_dict()[name]), name
    assert records(tmp_path / "parts")[-1] == records(tmp_path / "whole")[-1]


def test_what_cannot_be_learnt_from_is_refused(scorer: RewardModel, pairs: list[Pair]) -> None:
    with pytest.raises(UsageError, match="there are no pairs to learn from"):
        train(CONFIG, scorer, [])
    with pytest.raises(UsageError, match=r"pair 0: the chosen document has .* row_length=2"):
        train(replace(CONFIG, row_length=2), scorer, pairs)
    with pytest.raises(ValueError, match="objective is DPO, which compares no scores"):
        # DPO has the two methods as well, but reads log-probabilities of a policy.
        RewardModelConfig(objective=DPO())
