"""The published settings of DeepSeek-R1 and DeepSeekMath, as recipes for a checkpoint.

Sources: Guo et al. 2025, arXiv:2501.12948, and its version in Nature (methods and supplement);
Shao et al. 2024, arXiv:2402.03300. Model, data and task are given by flags. What the papers do not
publish keeps its default, and the docstrings say so. A step is an update of the optimizer.
"""

from __future__ import annotations

from dataclasses import fields, replace

from launch.optimizers import AdamW
from launch.schedule import Constant, Cosine
from posttrain.data.stage_data import StageData
from posttrain.objectives.reward_model import BradleyTerry
from posttrain.recipes.evaluator import Evaluator
from posttrain.recipes.iterative import IterativeGRPO
from posttrain.recipes.jobs import GRPOJob, SFTJob
from posttrain.recipes.reward_jobs import RewardModelJob
from posttrain.rewards import (
    AnswerReward,
    FormatReward,
    LanguageConsistency,
    Late,
    ModelReward,
    ModelSteps,
    Reward,
    WeightedSum,
)
from posttrain.rollout import Sampling
from posttrain.trainers.advantages import ProcessSupervised
from posttrain.trainers.contrasts import ContrastsConfig
from posttrain.trainers.policy import GRPOConfig
from posttrain.trainers.presets import grpo_deepseekmath, r1_stage1, r1_zero
from posttrain.trainers.reward_model import RewardModelConfig

__all__ = [
    "grpo_deepseekmath_iterative_paper",
    "grpo_deepseekmath_paper",
    "grpo_deepseekmath_process_paper",
    "r1_distill_7b_paper",
    "r1_distill_32b_paper",
    "r1_distill_70b_paper",
    "r1_distill_paper",
    "r1_helpfulness_paper",
    "r1_sft_paper",
    "r1_stage1_paper",
    "r1_stage2_paper",
    "r1_zero_paper",
]


Rewards = dict[str, tuple[float, Reward]]


def job(config: GRPOConfig) -> GRPOJob:
    """Return a job with the settings of a config."""
    return GRPOJob(**{f.name: getattr(config, f.name) for f in fields(GRPOConfig)})


def r1_zero_paper() -> GRPOJob:
    """DeepSeek-R1-Zero: GRPO on the base model alone, accuracy + format (Nature, methods).

    The settings of ``posttrain.trainers.presets.r1_zero``; the two rewards have equal weight. Give
    the base model and a task: --model FOLDER --task FILE.jsonl.
    """
    rewards: Rewards = {"accuracy": (1.0, AnswerReward()), "format": (1.0, FormatReward())}
    return replace(job(r1_zero()), reward=WeightedSum(rewards), save_every=100)


def r1_stage1_paper() -> GRPOJob:
    """First reinforcement of DeepSeek-R1: as r1_zero_paper, clip 10, and one language in thoughts.

    The share of the reasoning's words in the target language is added to the reward, with weight 1;
    its script is a setting: --reward.rewards.language.1.script.
    """
    rewards: Rewards = {
        "accuracy": (1.0, AnswerReward()),
        "format": (1.0, FormatReward()),
        "language": (1.0, LanguageConsistency("latin")),
    }
    return replace(job(r1_stage1()), reward=WeightedSum(rewards), save_every=100)


def r1_sft_paper() -> SFTJob:
    """Fine-tuning of DeepSeek-R1's base on its own selected answers, two epochs.

    Cosine from 5e-5 to 5e-6, context 32,768, batches of 128 (Nature, supplement, 2.3); the paper
    says two to three epochs of some 800,000 samples. --data.path is what rejection sampling left.
    """
    return SFTJob(
        data=StageData(),
        epochs=2.0,
        documents_per_step=128,
        row_length=32_768,
        optimizer=AdamW(learning_rate=5e-5),
        schedule=Cosine(final=0.1),
        save_every=500,
    )


def r1_helpfulness_paper() -> RewardModelJob:
    """The helpfulness reward model of DeepSeek-R1: pairs, batches of 256, one epoch.

    Learning rate 6e-6, at most 8,192 tokens (Nature, methods). The paper has 66,000 pairs, hence
    the steps; the schedule is not published.
    """
    return RewardModelJob(
        objective=BradleyTerry(),
        pairs_per_step=256,
        steps=258,
        row_length=8_192,
        optimizer=AdamW(learning_rate=6e-6),
        save_every=50,
    )


def r1_stage2_paper() -> GRPOJob:
    """Second reinforcement of DeepSeek-R1: 1,700 steps at temperature .7, preferences at the end.

    Otherwise as r1_stage1_paper. The reward model of the last 400 steps is what
    r1_helpfulness_paper leaves: --reward.then.rewards.helpfulness.1.path FOLDER.
    """
    cfg = r1_stage1_paper()
    rules = cfg.reward
    assert isinstance(rules, WeightedSum)
    preferred = {**rules.rewards, "helpfulness": (1.0, ModelReward(path=""))}
    return replace(
        cfg,
        steps=1_700,
        sampling=replace(cfg.sampling, temperature=0.7),
        reward=Late(first=rules, then=WeightedSum(preferred), after=1_300),
    )


def r1_distill_paper() -> SFTJob:
    """Distillation of DeepSeek-R1 into Qwen2.5-Math-1.5B: supervised alone, two epochs.

    Cosine from 1e-4 to a tenth, batches of 64, context 32,768 (Nature, supplement); the paper says
    two to three epochs of the 800,000 samples.
    """
    return replace(r1_sft_paper(), documents_per_step=64, optimizer=AdamW(learning_rate=1e-4))


def r1_distill_7b_paper() -> SFTJob:
    """Distillation of DeepSeek-R1 into 7B: as r1_distill_paper at 8e-5."""
    return replace(r1_distill_paper(), optimizer=AdamW(learning_rate=8e-5))


def r1_distill_32b_paper() -> SFTJob:
    """Distillation of DeepSeek-R1 into 32B: as r1_distill_paper at 6e-5."""
    return replace(r1_distill_paper(), optimizer=AdamW(learning_rate=6e-5))


def r1_distill_70b_paper() -> SFTJob:
    """Distillation of DeepSeek-R1 into 70B: as r1_distill_paper at 2e-5."""
    return replace(r1_distill_paper(), optimizer=AdamW(learning_rate=2e-5))


def grpo_deepseekmath_paper() -> GRPOJob:
    """GRPO of DeepSeekMath-RL: G 64, batches of 1,024, KL .04, one update a rollout.

    Outcome supervision by a reward model: --reward FOLDER.
    """
    return replace(job(grpo_deepseekmath()), schedule=Constant(), save_every=100)


def grpo_deepseekmath_process_paper() -> GRPOJob:
    """GRPO of DeepSeekMath-RL by process supervision: as grpo_deepseekmath_paper, each step paid.

    A token's advantage is the sum of the normalised rewards of the steps from its own on (section
    4.1.3). --advantages.steps.path is what prm leaves; the task's own reward is logged alone.
    """
    steps = ProcessSupervised(steps=ModelSteps(path=""), std="population", eps=0.0)
    return replace(grpo_deepseekmath_paper(), advantages=steps)


def grpo_deepseekmath_iterative_paper() -> IterativeGRPO:
    """Iterative GRPO of DeepSeekMath-RL: two rounds, 10% of the reward model's pairs replayed.

    Published are the rounds (section 5.2.1), the replay (4.1.4), the reward model's learning rate
    of 2e-5 and what grpo_deepseekmath_paper has (4.2). Not published are the pairs of a round, the
    reward model's batches and the steps: taken are 8 completions of 16,384 prompts, batches of 256,
    250 steps of the reward model and 1,000 of the policy a round. The paper's reward model is a
    base model's; --reward_model FOLDER goes on from one, otherwise the policy is made into one.
    """
    sampling = Sampling(max_tokens=1_024)
    return IterativeGRPO(
        iterations=2,
        replay=0.1,
        pairs=ContrastsConfig(
            sampling=sampling, steps=64, prompts_per_step=256, group_size=8, save_every=8
        ),
        reward_training=RewardModelConfig(
            steps=250,
            pairs_per_step=256,
            row_length=4_096,
            optimizer=AdamW(learning_rate=2e-5),
            save_every=50,
        ),
        policy=replace(grpo_deepseekmath(), schedule=Constant(), save_every=100),
        evaluation=Evaluator(group_size=1, sampling=sampling, greedy=False),
    )
