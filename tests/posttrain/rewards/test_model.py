from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launch.config import from_yaml, to_yaml
from launch.errors import UsageError
from posttrain.models import LanguageModel, save_model, tiny_model, train_tokenizer
from posttrain.recipes.checkpoints import grpo
from posttrain.reward_models import RewardModel, outcome_model
from posttrain.rewards import (
    AnswerReward,
    Late,
    ModelReward,
    RewardError,
    Sample,
    WeightedSum,
    check_reward,
    checked,
    parse_reward,
    reward_of,
)
from posttrain.rollout import Engine, Sampling
from posttrain.rollout.samples import as_samples

TEXTS = [f"{a} + {b} = {a + b}" for a in range(10) for b in range(10)]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model(train_tokenizer(TEXTS, vocabulary=80), layers=1, width=16, heads=2, seed=3)


@pytest.fixture(scope="module")
def scorer(lm: LanguageModel) -> RewardModel:
    return outcome_model(lm, seed=1)


@pytest.fixture(scope="module")
def folder(scorer: RewardModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewards") / "model"
    save_model(scorer.model, scorer.tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def samples(lm: LanguageModel) -> list[Sample]:
    prompts = [lm.tokenizer.encode(text) for text in ("1 + 2 =", "3 + 4 =")]
    sampling = Sampling(max_tokens=6, stop_tokens=lm.stop_tokens)
    rollout = Engine(lm.model).generate(prompts, sampling, 3)
    return as_samples(lm.tokenizer, prompts, ["3", "7"], rollout, 3)


def test_it_scores_the_tokens_that_the_engine_drew(
    samples: list[Sample], scorer: RewardModel, folder: Path
) -> None:
    expected = scorer.scores([[*s.prompt_tokens, *s.tokens] for s in samples])
    assert torch.equal(ModelReward(str(folder))(samples), expected)
    assert torch.equal(reward_of(scorer)(samples), expected)
    assert len(set(expected.tolist())) > 1


def test_samples_without_tokens_are_encoded_and_closed_with_the_stop_token(
    scorer: RewardModel,
) -> None:
    encode, stop = scorer.tokenizer.encode, scorer.stop_tokens[0]
    whole = Sample(prompt="1 + 2 =", completion=" 3", answer="3")
    cut = Sample(prompt="1 + 2 =", completion=" 3", answer="3", finish_reason="length")
    rows = [[*encode("1 + 2 ="), *encode(" 3"), stop], [*encode("1 + 2 ="), *encode(" 3")]]
    assert torch.equal(reward_of(scorer)([whole, cut]), scorer.scores(rows))


def test_it_is_a_part_of_a_weighted_sum(samples: list[Sample], scorer: RewardModel) -> None:
    both = WeightedSum(
        {"helpful": (0.5, reward_of(scorer)), "one": (1.0, lambda s: [1.0] * len(s))}
    )
    torch.testing.assert_close(both(samples), 1 + 0.5 * reward_of(scorer)(samples))
    timed = checked("helpful", reward_of(scorer), samples, seconds=60)  # in another thread
    torch.testing.assert_close(timed, reward_of(scorer)(samples), rtol=0, atol=0)
    assert reward_of(scorer)([]).shape == (0,)


def test_another_tokenizer_is_refused_before_a_wrong_score(
    samples: list[Sample], tmp_path: Path
) -> None:
    other = train_tokenizer([text[::-1] for text in TEXTS], vocabulary=60)
    scorer = outcome_model(tiny_model(other, layers=1, width=16, heads=2))
    with pytest.raises(RewardError, match=r"a reward model needs the policy's tokenizer"):
        checked("helpful", reward_of(scorer), samples)


def test_a_config_names_it_by_its_folder(folder: Path) -> None:
    text = f"reward: {{_type: 'posttrain.rewards.model:ModelReward', path: '{folder}'}}\n"
    job = from_yaml(text, grpo())
    assert job.reward == ModelReward(str(folder)) == parse_reward(str(folder))
    assert from_yaml(to_yaml(job), grpo()) == job


def test_a_missing_model_is_seen_before_any_work(lm: LanguageModel, tmp_path: Path) -> None:
    missing = ModelReward(str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"there is no reward model .*monro run reward-model"):
        check_reward(WeightedSum({"helpful": (1.0, missing)}))
    with pytest.raises(UsageError, match="there is no reward model"):
        check_reward(Late(first=AnswerReward(), then=missing, after=9))
    save_model(lm.model, lm.tokenizer, tmp_path / "policy")
    with pytest.raises(UsageError, match=r"expected a reward model"):
        check_reward(ModelReward(str(tmp_path / "policy")))
    with pytest.raises(UsageError, match="no path is given"):
        check_reward(ModelReward(""))
