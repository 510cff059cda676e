"""DeepSeek-R1 in miniature: every stage of the pipeline, in minutes on a laptop."""

from __future__ import annotations

from launch.optimizers import AdamW, MuonAdamW
from launch.runtime import RuntimeConfig
from launch.schedule import Cosine, Linear
from posttrain.data.rejection import OneScript
from posttrain.data.tasks import Refusals, Requests, Task, TaskMixture, ToldSums, WordLists
from posttrain.objectives import GRPO
from posttrain.recipes.evaluator import Evaluator
from posttrain.recipes.exams import Exam
from posttrain.recipes.jobs import WarmUp
from posttrain.recipes.r1_data import (
    AnswerPairs,
    Answers,
    MixedChats,
    MixedDocuments,
    RawTexts,
    ReplySource,
    Thoughts,
)
from posttrain.recipes.r1_pipeline import R1
from posttrain.recipes.r1_stages import (
    Distillation,
    FilterOfTask,
    Finetuning,
    OfTask,
    Preferences,
    Reinforcement,
    Rejection,
)
from posttrain.recipes.sources import FromScratch
from posttrain.rewards import FormatReward, LanguageConsistency, WeightedSum
from posttrain.rollout import Sampling
from posttrain.trainers.distill import DistillConfig
from posttrain.trainers.outputs import OutputsConfig
from posttrain.trainers.policy import GRPOConfig
from posttrain.trainers.reward_model import RewardModelConfig
from posttrain.trainers.supervised import SFTConfig

__all__ = ["r1"]

ENGLISH, RUSSIAN = ToldSums(language="english"), ToldSums(language="russian")
LISTS, REQUESTS, REFUSALS = WordLists(), Requests(), Refusals()


def sums() -> TaskMixture:
    """Return the problems that need reasoning, two in three of them in English."""
    tasks: dict[str, tuple[float, Task]] = {"english": (2.0, ENGLISH), "russian": (1.0, RUSSIAN)}
    return TaskMixture(tasks, size=100_000)


def everything() -> TaskMixture:
    """Return all scenarios."""
    tasks: dict[str, tuple[float, Task]] = {
        "english": (2.0, ENGLISH),
        "russian": (1.0, RUSSIAN),
        "lists": (1.0, LISTS),
        "requests": (3.0, REQUESTS),
        "refusals": (2.0, REFUSALS),
    }
    return TaskMixture(tasks, size=100_000)


def rules(task: TaskMixture) -> WeightedSum:
    """Return what a program can pay for: what is right, the format, and thoughts in one language.

    What is helpful is left to the reward model.
    """
    right = {
        name: (1.0, OfTask(name, own.reward))
        for name, (_, own) in task.tasks.items()
        if name != "requests"
    }
    return WeightedSum(
        {
            **right,
            "format": (0.1, FormatReward()),
            "latin": (0.3, OfTask("english", LanguageConsistency("latin"))),
            "cyrillic": (0.3, OfTask("russian", LanguageConsistency("cyrillic"))),
        }
    )


def supervised(steps: int, *, rate: float = 1.0) -> SFTConfig:
    """Return supervised training with Muon, at a share of the rate that suits a fresh model."""
    return SFTConfig(
        steps=steps,
        documents_per_step=32,
        row_length=256,
        optimizer=MuonAdamW(learning_rate=0.02 * rate, adamw=AdamW(learning_rate=4e-3 * rate)),
        schedule=Linear(warmup=20, final=0.0),
        save_every=200,
    )


def reinforced(steps: int) -> GRPOConfig:
    """Return GRPO as r1-mini has it."""
    return GRPOConfig(
        objective=GRPO(),
        steps=steps,
        prompts_per_step=32,
        group_size=8,
        sampling=Sampling(max_tokens=96),
        optimizer=AdamW(learning_rate=3e-4, eps=1e-6),
        schedule=Cosine(warmup=5, final=0.1),
        save_every=10,
    )


def pretraining() -> WarmUp:
    """Return raw text of everything, in no format, good and bad, thoughts in either language."""
    parts: dict[str, tuple[float, ReplySource]] = {
        "english": (2.0, Thoughts(task=ENGLISH, reasons=0.6, foreign=0.3)),
        "russian": (2.0, Thoughts(task=RUSSIAN, reasons=0.6, foreign=0.3)),
        "lists": (1.5, Answers(task=LISTS, right=0.8)),
        "requests": (1.0, Answers(task=REQUESTS, right=0.5)),
        "refusals": (1.0, Answers(task=REFUSALS, right=0.5)),
    }
    texts = {
        name: (weight, RawTexts(replies=own, tagged=0.05)) for name, (weight, own) in parts.items()
    }
    return WarmUp(data=MixedDocuments(sources=texts), training=supervised(2_600))


def rejection(task: TaskMixture, *, prompts: int) -> Rejection:
    """Return rejection sampling: right, in one language, at most two answers a prompt."""
    keep = (
        FilterOfTask("english", OneScript("latin")),
        FilterOfTask("russian", OneScript("cyrillic")),
    )
    outputs = OutputsConfig(
        steps=-(-prompts // 64),
        prompts_per_step=64,
        group_size=4,
        sampling=Sampling(max_tokens=96),
        most_per_prompt=2,
        keep=keep,
        save_every=10,
    )
    return Rejection(task=task, outputs=outputs)


def r1() -> R1:
    """All stages of DeepSeek-R1 on a laptop; a real model by --model FOLDER --student FOLDER."""
    thoughts = {
        "english": (2.0, Thoughts(task=ENGLISH, reasons=0.7, foreign=0.2)),
        "russian": (1.0, Thoughts(task=RUSSIAN, reasons=0.7, foreign=0.2)),
    }
    others = {
        "lists": (1.0, Answers(task=LISTS)),
        "requests": (1.0, Answers(task=REQUESTS, right=0.6)),
        "refusals": (1.0, Answers(task=REFUSALS, right=0.7)),
    }
    return R1(
        model=FromScratch(layers=4, width=64, heads=4, vocabulary=512),
        student=FromScratch(layers=2, width=48, heads=4, vocabulary=512),
        pretraining=pretraining(),
        cold_start=Finetuning(
            data=MixedChats(sources=thoughts), chats=2_000, training=supervised(200, rate=0.3)
        ),
        reasoning=Reinforcement(task=sums(), reward=rules(sums()), training=reinforced(120)),
        rejection=rejection(sums(), prompts=3_072),
        finetuning=Finetuning(
            data=MixedChats(sources=others), chats=6_000, training=supervised(1_000, rate=0.7)
        ),
        preferences=Preferences(
            pairs=AnswerPairs(task=REQUESTS),
            training=RewardModelConfig(
                steps=60,
                pairs_per_step=32,
                optimizer=AdamW(learning_rate=1e-3, eps=1e-6),
                heldout_every=20,
            ),
            task="requests",
            last_steps=60,
        ),
        scenarios=Reinforcement(
            task=everything(), reward=rules(everything()), training=reinforced(100)
        ),
        distillation=Distillation(
            outputs=rejection(everything(), prompts=4_096),
            sft=supervised(500, rate=0.7),
            on_policy=DistillConfig(
                steps=60,
                prompts_per_step=128,
                sampling=Sampling(max_tokens=96),
                optimizer=AdamW(learning_rate=1e-3, eps=1e-6),
                save_every=20,
            ),
            direct=reinforced(260),
        ),
        exams={
            "english": Exam(task=ENGLISH, also={"english/language": LanguageConsistency("latin")}),
            "russian": Exam(
                task=RUSSIAN, also={"russian/language": LanguageConsistency("cyrillic")}
            ),
            "lists": Exam(task=LISTS),
            "helpful": Exam(task=REQUESTS),
            "harmless": Exam(task=REFUSALS),
        },
        evaluation=Evaluator(group_size=4, sampling=Sampling(max_tokens=96), greedy=False),
        problems=256,
        runtime=RuntimeConfig(threads=1),
    )
