"""Recipes of minutes on a laptop: models made from nothing, on reasoning-gym's sums."""

from __future__ import annotations

from dataclasses import replace

from launch.optimizers import AdamW, MuonAdamW
from launch.runtime import RuntimeConfig
from launch.schedule import Cosine, Linear
from posttrain.critics import SecondModel
from posttrain.data.tasks.reasoning_gym import ReasoningGym
from posttrain.objectives import GRPO
from posttrain.recipes.actor_critic_job import ActorCriticJob
from posttrain.recipes.called import CalledTool
from posttrain.recipes.distill_job import DistillJob
from posttrain.recipes.evaluator import Evaluator
from posttrain.recipes.instructed import InstructionPairs
from posttrain.recipes.iterative import IterativeGRPO
from posttrain.recipes.jobs import GRPOJob, PreferenceJob, SFTJob, WarmUp
from posttrain.recipes.r1_mini import R1Mini
from posttrain.recipes.replies import Replies, ReplyPairs
from posttrain.recipes.reward_jobs import ProcessRewardJob, RewardModelJob
from posttrain.recipes.sources import FromScratch, RawLines, WorkedSums
from posttrain.recipes.step_sources import RolledOutSums
from posttrain.recipes.worked import Mixture
from posttrain.rewards import AnswerReward, FormatReward, WeightedSum
from posttrain.rollout import Sampling
from posttrain.tools import ToolUse
from posttrain.trainers.contrasts import ContrastsConfig
from posttrain.trainers.distill import DistillConfig
from posttrain.trainers.outputs import OutputsConfig
from posttrain.trainers.policy import GRPOConfig
from posttrain.trainers.reward_model import RewardModelConfig
from posttrain.trainers.supervised import SFTConfig

__all__ = [
    "distill_mini",
    "dpo_mini",
    "grpo_mini",
    "iterative_grpo_mini",
    "ppo_llm_mini",
    "prm_mini",
    "r1_mini",
    "r1_mini_control",
    "r1_zero_mini",
    "reward_model_mini",
    "sft_mini",
    "tool_mini",
]


def sums(terms: tuple[int, int], *, heldout: int, size: int = 200_000) -> ReasoningGym:
    """Return chains of one-digit terms, such as 8 - 0 - 7 + 3 + 2."""
    return ReasoningGym(
        "chain_sum",
        options={"min_terms": terms[0], "max_terms": terms[1], "min_digits": 1, "max_digits": 1},
        size=size,
        heldout_size=heldout,
        system=None,
    )


def accuracy_and_format() -> WeightedSum:
    """Pay 1 for a right answer and 0.1 for a well-formed response."""
    return WeightedSum({"accuracy": (1.0, AnswerReward()), "format": (0.1, FormatReward())})


def r1_mini() -> R1Mini:
    """DeepSeek-R1 in miniature: SFT from nothing, then GRPO discovers that reasoning pays."""
    task = sums((5, 8), heldout=640)
    return R1Mini(
        task=task,
        longer=sums((9, 12), heldout=256),
        demonstrations=WorkedSums(task=task, mixture=Mixture(first=0.75, reasoning=0.35)),
        reward=accuracy_and_format(),
        model=FromScratch(layers=4, width=64, heads=4),
        cold_start=SFTConfig(
            steps=1_600,
            documents_per_step=32,
            row_length=256,
            shuffle=False,
            optimizer=MuonAdamW(learning_rate=0.02, adamw=AdamW(learning_rate=4e-3)),
            schedule=Linear(warmup=20, final=0.0),
            save_every=200,
        ),
        grpo=GRPOConfig(
            objective=GRPO(),
            steps=100,
            prompts_per_step=32,
            group_size=8,
            sampling=Sampling(max_tokens=96),
            optimizer=AdamW(learning_rate=3e-4, eps=1e-6),
            schedule=Cosine(warmup=10, final=0.1),
            save_every=10,
            probe_every=5,
        ),
        evaluation=Evaluator(group_size=8, sampling=Sampling(max_tokens=128), batch=64),
        runtime=RuntimeConfig(threads=1),
    )


def r1_mini_control() -> R1Mini:
    """The control of r1-mini: every demonstration reasons, so RL can only better the arithmetic."""
    job = r1_mini()
    assert isinstance(job.demonstrations, WorkedSums)
    always = replace(job.demonstrations, mixture=Mixture(first=1.0, reasoning=1.0))
    return replace(job, demonstrations=always)


def r1_zero_mini() -> R1Mini:
    """R1-Zero in miniature: a base model of raw text learns format and sums by GRPO alone."""
    task = replace(sums((5, 8), heldout=640), form="text", asked="{expression} =")
    job = r1_mini()
    return replace(
        job,
        task=task,
        longer=replace(sums((9, 12), heldout=256), form="text", asked="{expression} ="),
        demonstrations=RawLines(task=task, tagged=0.1),
    )


def sft_mini() -> SFTJob:
    """Seconds of SFT from nothing, on worked sums."""
    return SFTJob(
        model=FromScratch(layers=2, width=64, heads=4, texts=500),
        data=WorkedSums(task=sums((2, 3), heldout=64), mixture=Mixture(first=1.0)),
        steps=40,
        documents_per_step=48,
        row_length=128,
        shuffle=False,
        optimizer=MuonAdamW(learning_rate=0.02, adamw=AdamW(learning_rate=4e-3)),
        schedule=Cosine(warmup=4, final=0.1),
        save_every=10,
        runtime=RuntimeConfig(threads=1),
    )


def grpo_mini() -> GRPOJob:
    """Seconds of GRPO on sums of three terms, after a short SFT of its own."""
    task = sums((3, 3), heldout=16)
    return GRPOJob(
        model=FromScratch(layers=2, width=64, heads=4, texts=500),
        task=task,
        reward=accuracy_and_format(),
        warm_up=WarmUp(
            data=WorkedSums(task=task, mixture=Mixture(first=0.75, reasoning=0.35)),
            training=SFTConfig(
                steps=420,
                documents_per_step=32,
                row_length=128,
                shuffle=False,
                optimizer=MuonAdamW(learning_rate=0.02, adamw=AdamW(learning_rate=4e-3)),
                schedule=Linear(warmup=10),
            ),
        ),
        steps=16,
        prompts_per_step=12,
        group_size=6,
        sampling=Sampling(max_tokens=48),
        optimizer=AdamW(learning_rate=1e-3, eps=1e-6),
        schedule=Cosine(warmup=4, final=0.1),
        save_every=4,
        runtime=RuntimeConfig(threads=1),
    )


def iterative_grpo_mini() -> IterativeGRPO:
    """Seconds of policy and reward model in turn: grpo-mini's sums, rewarded by what it learns."""
    grpo = grpo_mini()
    assert grpo.task is not None
    return IterativeGRPO(
        model=grpo.model,
        task=replace(grpo.task, heldout_size=256),  # type: ignore[type-var]  # ReasoningGym
        warm_up=grpo.warm_up,
        iterations=2,
        pairs=ContrastsConfig(
            sampling=Sampling(max_tokens=48), steps=4, prompts_per_step=128, save_every=1
        ),
        reward_training=RewardModelConfig(
            steps=40,
            pairs_per_step=32,
            optimizer=AdamW(learning_rate=1e-3),
            schedule=Cosine(warmup=4, final=0.1),
            save_every=10,
            heldout_every=20,
        ),
        heldout_share=0.1,
        policy=GRPOConfig(
            objective=GRPO(kl_weight=0.04),
            steps=4,
            prompts_per_step=12,
            group_size=8,
            sampling=Sampling(max_tokens=48),
            optimizer=AdamW(learning_rate=2.5e-4, eps=1e-6),
            schedule=Cosine(warmup=2, final=0.1),
            save_every=2,
        ),
        evaluation=Evaluator(group_size=2, sampling=Sampling(max_tokens=48), greedy=False),
        problems=256,
        runtime=RuntimeConfig(threads=1),
    )


def tool_mini() -> GRPOJob:
    """Seconds of GRPO with a calculator: a model that cannot multiply learns to call it.

    The warm-up calls in part and guesses in part. GRPO pays for right answers alone; within 16
    steps the share that calls goes from a third to nearly all, and accuracy from a fifth to over a
    half; what is then wrong was copied wrongly. The control is the same with ``--tools none``:
    calls get no output, no answer is ever right, and nothing is learnt.
    """
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}
    task = ReasoningGym(
        "products",
        options=options,
        size=200_000,
        heldout_size=16,
        asked="{expression}",
        system=None,
    )
    tools = ToolUse(max_calls=1)
    return GRPOJob(
        model=FromScratch(
            layers=2,
            width=64,
            heads=4,
            texts=500,
            tags=(tools.opening, tools.closing, tools.before, tools.after),
        ),
        task=task,
        reward=WeightedSum({"accuracy": (1.0, AnswerReward())}),
        tools=tools,
        warm_up=WarmUp(
            data=CalledTool(task=task, tools=tools, mixture=Mixture(first=0.75, reasoning=0.35)),
            training=SFTConfig(
                steps=320,
                documents_per_step=32,
                row_length=128,
                shuffle=False,
                optimizer=MuonAdamW(learning_rate=0.02, adamw=AdamW(learning_rate=4e-3)),
                schedule=Linear(warmup=10),
            ),
        ),
        steps=16,
        prompts_per_step=12,
        group_size=6,
        sampling=Sampling(max_tokens=32),
        optimizer=AdamW(learning_rate=1e-3, eps=1e-6),
        schedule=Cosine(warmup=4, final=0.1),
        save_every=4,
        runtime=RuntimeConfig(threads=1),
    )


def ppo_llm_mini() -> ActorCriticJob:
    """Seconds of PPO with a critic: grpo-mini's sums, with as many completions, one a prompt."""
    grpo = grpo_mini()
    return ActorCriticJob(
        model=grpo.model,
        task=grpo.task,
        reward=grpo.reward,
        warm_up=grpo.warm_up,
        critic=SecondModel(optimizer=AdamW(learning_rate=3e-3)),
        trace=1.0,
        steps=grpo.steps,
        prompts_per_step=grpo.prompts_per_step * grpo.group_size,
        epochs=1,
        minibatches=2,
        sampling=grpo.sampling,
        optimizer=grpo.optimizer,
        schedule=grpo.schedule,
        save_every=grpo.save_every,
        runtime=grpo.runtime,
    )


def dpo_mini() -> PreferenceJob:
    """Seconds of DPO: a model that was taught to be mostly curt learns to prefer courtesy."""
    task = sums((2, 3), heldout=128)
    return PreferenceJob(
        model=FromScratch(layers=2, width=64, heads=4, texts=500),
        data=ReplyPairs(task=task),
        warm_up=WarmUp(
            data=Replies(task=task, courteous=0.25),
            training=SFTConfig(
                steps=60,
                documents_per_step=48,
                row_length=128,
                shuffle=False,
                optimizer=MuonAdamW(learning_rate=0.02, adamw=AdamW(learning_rate=4e-3)),
                schedule=Linear(warmup=4),
            ),
        ),
        steps=40,
        pairs_per_step=24,
        optimizer=AdamW(learning_rate=1e-3, eps=1e-6),
        schedule=Cosine(warmup=4, final=0.1),
        save_every=10,
        heldout_every=10,
        runtime=RuntimeConfig(threads=1),
    )


def reward_model_mini() -> RewardModelJob:
    """Seconds of a reward model from nothing: which of two answers keeps to its instructions."""
    return RewardModelJob(
        model=FromScratch(layers=2, width=64, heads=4, vocabulary=512, texts=500),
        data=InstructionPairs(),
        steps=80,
        pairs_per_step=16,
        optimizer=AdamW(learning_rate=1e-3),
        schedule=Cosine(warmup=4, final=0.1),
        save_every=20,
        heldout_every=20,
    )


def distill_mini() -> DistillJob:
    """Seconds of distillation: a teacher of sums, and a student of a quarter of its size."""
    task = sums((3, 3), heldout=256)
    muon = MuonAdamW(learning_rate=0.02, adamw=AdamW(learning_rate=4e-3))
    return DistillJob(
        teacher=FromScratch(layers=2, width=64, heads=4, texts=500),
        model=FromScratch(layers=2, width=32, heads=2, texts=500),
        task=task,
        teacher_training=WarmUp(
            data=WorkedSums(task=task, mixture=Mixture(first=1.0)),
            training=SFTConfig(
                steps=500,
                documents_per_step=32,
                row_length=128,
                shuffle=False,
                optimizer=muon,
                schedule=Linear(warmup=10),
            ),
        ),
        outputs=OutputsConfig(
            sampling=Sampling(max_tokens=48),
            steps=10,
            prompts_per_step=100,
            group_size=2,
            save_every=2,
        ),
        sft=SFTConfig(
            steps=400,
            documents_per_step=32,
            row_length=128,
            optimizer=muon,
            schedule=Linear(warmup=10),
            save_every=100,
        ),
        on_policy=DistillConfig(
            steps=100,
            prompts_per_step=48,
            sampling=Sampling(max_tokens=48),
            optimizer=AdamW(learning_rate=3e-3, eps=1e-6),
            schedule=Cosine(warmup=4, final=0.1),
            save_every=20,
        ),
        evaluation=Evaluator(group_size=2, sampling=Sampling(max_tokens=48), greedy=False),
        problems=256,
        runtime=RuntimeConfig(threads=1),
    )


def prm_mini() -> ProcessRewardJob:
    """A minute of a process reward model: a model that errs labels its own steps by rollouts."""
    task = sums((3, 4), heldout=128)
    return ProcessRewardJob(
        model=FromScratch(layers=2, width=64, heads=4, texts=500),
        data=RolledOutSums(task=task, problems=600, rollouts=8),
        warm_up=WarmUp(
            data=WorkedSums(task=task, mixture=Mixture(first=1.0)),
            training=SFTConfig(
                steps=420,
                documents_per_step=32,
                row_length=128,
                shuffle=False,
                optimizer=MuonAdamW(learning_rate=0.02, adamw=AdamW(learning_rate=4e-3)),
                schedule=Linear(warmup=10),
            ),
        ),
        steps=60,
        solutions_per_step=32,
        optimizer=AdamW(learning_rate=1e-3),
        schedule=Cosine(warmup=4, final=0.1),
        save_every=20,
        heldout_every=20,
        runtime=RuntimeConfig(threads=1),
    )
