from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launch.errors import UsageError
from posttrain.models import LanguageModel, save_model, tiny_model, train_tokenizer
from posttrain.reward_models import RewardModel, last_columns, load_reward_model, outcome_model

TEXTS = [f"{a} + {b} = {a + b}" for a in range(10) for b in range(10)]
ROWS = [[7, 8, 9, 10, 11], [12, 9], [7, 8, 10]]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model(train_tokenizer(TEXTS, vocabulary=80), layers=2, width=32, heads=2, seed=3)


@pytest.fixture(scope="module")
def scorer(lm: LanguageModel) -> RewardModel:
    return outcome_model(lm, seed=1)


def test_a_new_model_has_the_backbone_of_the_language_model_and_a_head_of_its_seed(
    lm: LanguageModel, scorer: RewardModel
) -> None:
    before = lm.model.model.state_dict()
    torch.testing.assert_close(scorer.model.model.state_dict(), before, rtol=0, atol=0)
    assert scorer.model.score.weight.shape == (1, 32)
    # 32 draws of deviation 1 / sqrt(33) = 0.174; their own deviation errs by an eighth of it
    assert 0.1 < scorer.model.score.weight.std().item() < 0.25
    head = scorer.model.score.weight
    assert torch.equal(outcome_model(lm, seed=1).model.score.weight, head)
    assert not torch.equal(outcome_model(lm, seed=2).model.score.weight, head)
    own = {p.data_ptr() for p in lm.model.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in scorer.model.parameters())


def test_scores_do_not_depend_on_the_rows_beside(scorer: RewardModel) -> None:
    together = scorer.scores(ROWS)
    alone = torch.cat([scorer.scores([row]) for row in ROWS])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
    assert scorer.scores([]).shape == (0,)
    assert not together.requires_grad


def test_a_saved_model_scores_the_same_in_a_new_process_and_in_transformers(
    scorer: RewardModel, tmp_path: Path
) -> None:
    save_model(scorer.model, scorer.tokenizer, tmp_path / "model")
    code = (
        "import torch\n"
        "from posttrain.reward_models import load_reward_model\n"
        f"scorer = load_reward_model({str(tmp_path / 'model')!r})\n"
        f"print([x.hex() for x in scorer.scores({ROWS}).tolist()], scorer.stop_tokens)\n"
        "from transformers import AutoModelForSequenceClassification\n"
        f"peer = AutoModelForSequenceClassification.from_pretrained({str(tmp_path / 'model')!r})\n"
        "rows = torch.zeros(3, 5).long()\n"
        f"for row, tokens in zip(rows, {ROWS}): row[:len(tokens)] = torch.tensor(tokens)\n"
        "print(*peer(rows).logits[:, 0].tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    ours, theirs = done.stdout.splitlines()
    scores = scorer.scores(ROWS)
    assert ours == f"{[x.hex() for x in scores.tolist()]} {scorer.stop_tokens}"
    peers = torch.tensor([float(x) for x in theirs.split()])
    torch.testing.assert_close(peers, scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([], "row 0 is empty"),
        ([999], "row 0 has ids from 999 to 999, but the model's go from 0 to"),
        ([1] * 3_000, "row 0 has 3000 tokens, beyond the model's 2048 positions"),
    ],
)
def test_rows_that_cannot_be_scored_are_named(
    row: list[int], said: str, scorer: RewardModel
) -> None:
    with pytest.raises(ValueError, match=said):
        scorer.scores([row])


def test_folders_of_another_kind_are_refused(lm: LanguageModel, tmp_path: Path) -> None:
    save_model(lm.model, lm.tokenizer, tmp_path / "policy")
    with pytest.raises(UsageError, match=r"policy holds a LlamaForCausalLM, expected a reward mod"):
        load_reward_model(tmp_path / "policy")
    two = outcome_model(lm)
    two.model.score = torch.nn.Linear(32, 2, bias=False)
    two.model.config.num_labels = 2
    save_model(two.model, two.tokenizer, tmp_path / "two")
    with pytest.raises(UsageError, match="two gives 2 numbers, expected one"):
        load_reward_model(tmp_path / "two")
    with pytest.raises(UsageError, match=r"/none does not exist"):
        load_reward_model(tmp_path / "none")


def test_the_score_is_at_the_last_token_even_if_it_is_the_padding(lm: LanguageModel) -> None:
    # Llama's chat models pad with a stop token; a mask found by comparing would lose it.
    same = replace(lm, pad_token=11)
    scorer = outcome_model(same, seed=1)
    assert scorer.model.config.pad_token_id == 11
    full, cut = scorer.scores([[7, 8, 9, 10, 11], [7, 8, 9, 10]])
    assert full != cut


def test_last_columns_are_those_of_the_last_true() -> None:
    mask = torch.tensor([[False, True, True, False], [True, False, True, True], [False] * 4])
    expected = [[False, False, True, False], [False, False, False, True], [False] * 4]
    assert last_columns(mask).tolist() == expected
