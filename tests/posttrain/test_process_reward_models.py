from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launch.errors import UsageError
from posttrain.models import LanguageModel, save_model, tiny_model, train_tokenizer
from posttrain.process_reward_models import (
    ProcessRewardModel,
    load_process_reward_model,
    process_model,
    token_process_model,
)
from posttrain.reward_models import load_reward_model

TEXTS = [f"{a} + {b} - {a} = {b}" for a in range(10) for b in range(10)]
ROWS, ENDS = [[7, 8, 9, 10, 11], [12, 9], [7, 8, 10]], [[1, 4], [1], []]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model(train_tokenizer(TEXTS, vocabulary=80), layers=2, width=32, heads=2, seed=3)


@pytest.fixture(scope="module")
def scorer(lm: LanguageModel) -> ProcessRewardModel:
    return process_model(lm, seed=1)


def test_a_saved_model_gives_the_same_in_a_new_process(
    scorer: ProcessRewardModel, tmp_path: Path
) -> None:
    save_model(scorer.model, scorer.tokenizer, tmp_path / "model")
    code = (
        "from posttrain.process_reward_models import load_process_reward_model\n"
        f"scorer = load_process_reward_model({str(tmp_path / 'model')!r})\n"
        f"found = scorer.probabilities({ROWS}, {ENDS})\n"
        "print([[x.hex() for x in row] for row in found])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    expected = scorer.probabilities(ROWS, ENDS)
    assert done.stdout.strip() == str([[x.hex() for x in row] for row in expected])
    assert [len(row) for row in expected] == [2, 1, 0]
    assert all(0 < x < 1 for row in expected for x in row)
    with pytest.raises(UsageError, match="LlamaForTokenClassification, expected a reward model"):
        load_reward_model(tmp_path / "model")


def test_a_step_does_not_see_what_follows(scorer: ProcessRewardModel) -> None:
    [[first, _]] = scorer.probabilities([[7, 8, 9, 10, 11]], [[1, 4]])
    [[alone]] = scorer.probabilities([[7, 8]], [[1]])
    assert first == pytest.approx(alone, abs=1e-6)


def test_two_tokens_of_a_language_model_are_a_probability(lm: LanguageModel) -> None:
    scorer = token_process_model(lm)
    good, bad = (lm.tokenizer.encode(text)[0] for text in "+-")
    with torch.no_grad():
        logits = lm.model(torch.tensor([ROWS[0]])).logits[0, 4, [good, bad]]
    [[_, found]] = scorer.probabilities(ROWS[:1], ENDS[:1])
    assert found == pytest.approx(logits.softmax(-1)[0].item(), abs=1e-5)


def test_what_are_not_two_tokens_is_refused(lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"good='\?' is the tokens \[\d+\]: give text of one"):
        token_process_model(lm, good="?")
    with pytest.raises(ValueError, match=r"bad='1 2' is the tokens \[.*, .*\]: give text of one"):
        token_process_model(lm, bad="1 2")
    with pytest.raises(ValueError, match=r"good and bad are both token \d+"):
        token_process_model(lm, bad="+")
    save_model(lm.model, lm.tokenizer, tmp_path / "policy")
    with pytest.raises(UsageError, match="LlamaForCausalLM, expected a process reward model"):
        load_process_reward_model(tmp_path / "policy")
