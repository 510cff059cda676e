"""The toy that every policy objective solves in seconds."""

from __future__ import annotations

from launch.optimizers import AdamW, MuonAdamW
from launch.runtime import RuntimeConfig
from launch.schedule import Cosine, Linear
from posttrain.data.tasks.letters import BackwardLetters
from posttrain.recipes.evaluator import Evaluator
from posttrain.recipes.jobs import WarmUp
from posttrain.recipes.judged import JudgedGRPOJob
from posttrain.recipes.manners import Manners
from posttrain.recipes.sources import FromScratch
from posttrain.rollout import Sampling
from posttrain.trainers.supervised import SFTConfig

__all__ = ["objective_toy"]


def objective_toy() -> JudgedGRPOJob:
    """Seconds for any policy objective: of four ways to rewrite a word, one is paid for."""
    task = BackwardLetters()
    return JudgedGRPOJob(
        model=FromScratch(layers=2, width=64, heads=4, vocabulary=20, texts=500),
        task=task,
        warm_up=WarmUp(
            data=Manners(task=task),
            training=SFTConfig(
                steps=300,
                documents_per_step=64,
                row_length=128,
                shuffle=False,
                optimizer=MuonAdamW(learning_rate=0.02, adamw=AdamW(learning_rate=4e-3)),
                schedule=Linear(warmup=10),
            ),
        ),
        steps=120,
        prompts_per_step=16,
        group_size=8,
        updates_per_rollout=2,
        sampling=Sampling(max_tokens=8),
        optimizer=AdamW(learning_rate=1e-3, eps=1e-6),
        schedule=Cosine(warmup=4, final=0.1),
        evaluation=Evaluator(group_size=4, sampling=Sampling(max_tokens=8)),
        problems=256,
        runtime=RuntimeConfig(threads=1),
    )
