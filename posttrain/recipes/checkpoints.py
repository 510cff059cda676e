"""Recipes for real checkpoints: bring a folder or hub id, and data."""

from __future__ import annotations

from launch.optimizers import AdamW
from posttrain.recipes.actor_critic_job import ActorCriticJob
from posttrain.recipes.chat import ChatJob
from posttrain.recipes.distill_job import DistillJob
from posttrain.recipes.evaluation import EvalJob
from posttrain.recipes.jobs import GRPOJob, PreferenceJob, SFTJob
from posttrain.recipes.reward_jobs import ProcessRewardJob, RewardModelJob
from posttrain.recipes.search_jobs import BestOfNJob
from posttrain.rollout import Sampling
from posttrain.trainers import DistillConfig, OutputsConfig, SFTConfig

__all__ = [
    "best_of_n",
    "chat",
    "distill",
    "dpo",
    "evaluate",
    "grpo",
    "ppo_llm",
    "prm",
    "reward_model",
    "sft",
]


def sft() -> SFTJob:
    """Fine-tune --model on conversations: --data chat.jsonl."""
    return SFTJob(
        steps=1_000,
        documents_per_step=32,
        row_length=2_048,
        optimizer=AdamW(learning_rate=1e-5),
        save_every=100,
    )


def dpo() -> PreferenceJob:
    """Teach --model preferences, by DPO or another --objective: --data pairs.jsonl."""
    return PreferenceJob(
        steps=1_000,
        pairs_per_step=32,
        row_length=2_048,
        optimizer=AdamW(learning_rate=1e-6),
        save_every=100,
        heldout_every=50,
    )


def reward_model() -> RewardModelJob:
    """Make a reward model of --model from pairs of completions: --data pairs.jsonl."""
    return RewardModelJob(
        steps=250,
        pairs_per_step=256,
        row_length=8_192,
        optimizer=AdamW(learning_rate=6e-6),
        save_every=50,
        heldout_every=25,
    )


def prm() -> ProcessRewardJob:
    """Make a process reward model of --model from labelled steps: --data steps.jsonl."""
    return ProcessRewardJob(
        steps=1_000,
        solutions_per_step=128,
        row_length=4_096,
        optimizer=AdamW(learning_rate=1e-6),
        save_every=100,
        heldout_every=50,
    )


def grpo() -> GRPOJob:
    """Improve --model on verifiable rewards: --task questions.jsonl or a reasoning-gym name."""
    return GRPOJob(
        steps=500,
        prompts_per_step=16,
        group_size=8,
        sampling=Sampling(max_tokens=512),
        optimizer=AdamW(learning_rate=1e-6),
        save_every=50,
    )


def ppo_llm() -> ActorCriticJob:
    """Improve --model with a critic (PPO): --task questions.jsonl or a reasoning-gym name."""
    return ActorCriticJob(
        steps=500,
        prompts_per_step=128,
        sampling=Sampling(max_tokens=512),
        optimizer=AdamW(learning_rate=1e-6),
        save_every=50,
    )


def distill() -> DistillJob:
    """Teach --model what --teacher knows of --task: its outputs, SFT, on-policy distillation."""
    return DistillJob(
        outputs=OutputsConfig(
            sampling=Sampling(max_tokens=1_024),
            steps=250,
            prompts_per_step=32,
            group_size=4,
            save_every=10,
        ),
        sft=SFTConfig(
            steps=500,
            documents_per_step=32,
            row_length=2_048,
            optimizer=AdamW(learning_rate=1e-5),
            save_every=100,
        ),
        on_policy=DistillConfig(
            steps=200,
            prompts_per_step=64,
            sampling=Sampling(max_tokens=1_024),
            optimizer=AdamW(learning_rate=1e-6),
            save_every=50,
        ),
    )


def best_of_n() -> BestOfNJob:
    """Pick the best of --n completions of --model by --scorer, a reward model: --task TASK."""
    return BestOfNJob()


def evaluate() -> EvalJob:
    """Judge --model on --task: pass@1, maj@k and pass@k with intervals."""
    return EvalJob()


def chat() -> ChatJob:
    """Talk to --model in the terminal."""
    return ChatJob()
