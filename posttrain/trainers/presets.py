"""Settings that papers publish, each a complete config to be changed with ``replace``.

They hold what a config can say. A paper's reward, model and data are the user's to give. What a
paper leaves open keeps the default of ``GRPOConfig``. A step is an update, as in the papers: a
rollout of 8,192 completions in 16 minibatches is ``minibatches=16`` with steps of 512.
"""

from __future__ import annotations

from dataclasses import replace

from launch.optimizers import AdamW
from launch.schedule import Constant
from posttrain.objectives import CISPO, DAPO, GRPO, GSPO, DrGRPO, PolicyGradient
from posttrain.rollout import Sampling
from posttrain.trainers.advantages import GroupRelative, LeaveOneOut, ReinforcePlusPlus
from posttrain.trainers.collection import DynamicSampling
from posttrain.trainers.policy import GRPOConfig

__all__ = [
    "cispo",
    "dapo",
    "dr_grpo",
    "grpo_deepseekmath",
    "gspo",
    "r1_stage1",
    "r1_zero",
    "reinforce_plus_plus",
    "rloo",
]


def grpo_deepseekmath() -> GRPOConfig:
    """GRPO of DeepSeekMath-RL 7B (Shao et al. 2024, arXiv:2402.03300, section 4.2).

    64 completions of at most 1,024 tokens for each question, 1,024 a step, one update on each, KL
    weight 0.04, learning rate 1e-6. The paper names no clip limit and not which deviation it
    divides by; 0.2 and the population's are taken.
    """
    return GRPOConfig(
        objective=GRPO(kl_weight=0.04),
        advantages=GroupRelative(std="population", eps=0.0),
        sampling=Sampling(max_tokens=1_024),
        optimizer=AdamW(learning_rate=1e-6),
        schedule=Constant(),
        prompts_per_step=16,
        group_size=64,
    )


def r1_zero() -> GRPOConfig:
    """DeepSeek-R1-Zero (arXiv:2501.12948 and its version in Nature, methods).

    32 questions with 16 completions a step, 8,192 completions a rollout in 16 minibatches, KL
    weight 0.001, learning rate 3e-6, temperature 1, 10,400 steps; lengths grow from 32,768 to
    65,536 after step 8,200, and the reference is replaced every 400 steps. The clip limit is not
    published for this stage; 0.2 is taken. Reward: accuracy plus format.
    """
    return GRPOConfig(
        objective=GRPO(kl_weight=1e-3),
        advantages=GroupRelative(std="population", eps=0.0),
        sampling=Sampling(max_tokens=32_768),
        max_tokens_after={8_200: 65_536},
        optimizer=AdamW(learning_rate=3e-6),
        schedule=Constant(),
        steps=10_400,
        prompts_per_step=32,
        group_size=16,
        minibatches=16,
        refresh_every=400,
    )


def r1_stage1() -> GRPOConfig:
    """First reinforcement learning of DeepSeek-R1 (version in Nature, methods): a clip limit of 10.

    Otherwise as ``r1_zero``, at 32,768 tokens throughout. With so wide a limit a ratio is never cut
    off from below. To the reward comes the share of words in the target language,
    ``LanguageConsistency``.
    """
    objective = GRPO(clip_low=10.0, clip_high=10.0, kl_weight=1e-3)
    return replace(r1_zero(), objective=objective, max_tokens_after={})


def dapo() -> GRPOConfig:
    """DAPO on Qwen2.5-32B (Yu et al. 2025, arXiv:2503.14476, section 4.1).

    Clip limits 0.2 and 0.28, mean over tokens, no KL, dynamic sampling; rollouts of 512 questions
    with 16 completions of at most 20,480 tokens, in 16 minibatches of 512; learning rate 1e-6 after
    a warm-up over 20 rollouts. The reward is 1 or -1, plus ``OverlongPenalty(20_480, 4_096)``. For
    overlong filtering in place of the penalty, set ``mask_truncated``.
    """
    return GRPOConfig(
        objective=DAPO(clip_low=0.2, clip_high=0.28),
        advantages=GroupRelative(std="population", eps=0.0),
        dynamic_sampling=DynamicSampling(),
        sampling=Sampling(max_tokens=20_480),
        optimizer=AdamW(learning_rate=1e-6),
        schedule=Constant(warmup=20 * 16),
        prompts_per_step=32,
        group_size=16,
        minibatches=16,
    )


def dr_grpo() -> GRPOConfig:
    """Dr. GRPO, the Oat-Zero recipe (Liu et al. 2025, arXiv:2503.20783, and its repository).

    The sum over tokens by a constant, 3,000; advantages without a deviation; no KL; rollouts of 128
    questions with 8 completions in 8 minibatches of 128, learning rate 1e-6.
    """
    return GRPOConfig(
        objective=DrGRPO(max_length=3_000),
        advantages=GroupRelative(std=None),
        sampling=Sampling(max_tokens=3_000),
        optimizer=AdamW(learning_rate=1e-6),
        schedule=Constant(),
        prompts_per_step=16,
        group_size=8,
        minibatches=8,
    )


def gspo() -> GRPOConfig:
    """GSPO (Zheng et al. 2025, arXiv:2507.18071, section 5.1): limits 3e-4 and 4e-4, no KL.

    Each rollout is split into four minibatches: on-policy, a ratio of 1 is never clipped, and this
    would be GRPO. The paper publishes neither batch nor learning rate.
    """
    return GRPOConfig(
        objective=GSPO(clip_low=3e-4, clip_high=4e-4),
        advantages=GroupRelative(std="population", eps=0.0),
        minibatches=4,
    )


def cispo() -> GRPOConfig:
    """CISPO of MiniMax-M1 (arXiv:2506.13585, section 3.2): capped weights, AdamW's eps 1e-15.

    M1's gradients are smaller than the usual eps, hence that one, with betas 0.9 and 0.95. The cap
    is not published; 1.28 is taken, ScaleRL takes 5 (arXiv:2510.13786).
    """
    return GRPOConfig(
        objective=CISPO(clip_high=0.28),
        advantages=GroupRelative(std="population", eps=0.0),
        optimizer=AdamW(learning_rate=1e-6, beta1=0.9, beta2=0.95, eps=1e-15),
    )


def rloo() -> GRPOConfig:
    """RLOO (Ahmadian et al. 2024, arXiv:2402.14740, appendix C): four completions, no clip.

    Batches of 512, learning rate 1e-6; 0.03 times the KL to the reference is subtracted from a
    completion's reward.
    """
    return GRPOConfig(
        objective=PolicyGradient(),
        advantages=LeaveOneOut(),
        kl_in_reward=0.03,
        optimizer=AdamW(learning_rate=1e-6),
        prompts_per_step=128,
        group_size=4,
    )


def reinforce_plus_plus() -> GRPOConfig:
    """REINFORCE++ with baseline (Hu et al. 2025, arXiv:2501.03262), as OpenRLHF computes it.

    Rewards less the group's mean, z-scored over all tokens of the batch with the population's
    deviation; PPO's limits of 0.2 and a mean over tokens. The variant for one completion a prompt
    is ``ReinforcePlusPlus(baseline=False)``. The paper's KL penalty has no field here.
    """
    return GRPOConfig(
        objective=DAPO(clip_low=0.2, clip_high=0.2),
        advantages=ReinforcePlusPlus(std="population", baseline=True),
    )
