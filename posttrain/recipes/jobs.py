"""Supervised fine-tuning and GRPO as jobs: a loop's config, and what it is run on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from launch.config import resumable, to_yaml
from launch.errors import UsageError
from launch.runtime import Runtime, RuntimeConfig
from posttrain.data.tasks import Task, parse_task
from posttrain.models import LanguageModel, save_model
from posttrain.recipes.sources import (
    ChatFile,
    DocumentSource,
    ModelSource,
    Pretrained,
    parse_documents,
    parse_model,
)
from posttrain.rewards import Reward, parse_reward
from posttrain.trainers.policy import GRPOConfig, check_prompts, train_grpo
from posttrain.trainers.supervised import SFTConfig, train_sft

__all__ = ["GRPOJob", "SFTJob", "WarmUp", "leave_model"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTJob(SFTConfig):
    """Supervised fine-tuning of a model on conversations."""

    leaves_run: ClassVar[bool] = True
    model: ModelSource = field(default_factory=Pretrained, metadata={"parse": parse_model})
    data: DocumentSource = field(default_factory=ChatFile, metadata={"parse": parse_documents})
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    """accelerate's trackers, such as tensorboard."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def check(self) -> None:
        """Raise UsageError for a missing or broken model or file."""
        self.model.check()
        self.data.check()

    def run(self, run: Runtime) -> None:
        """Train and leave the model in the run folder."""
        lm = self.model.load(self.data.texts(2_000), self.seed)
        count = self.steps * self.documents_per_step
        train_sft(self, lm.model, self.data.documents(lm, count, self.seed), run)
        leave_model(lm, run)


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmUp:
    """A short supervised training before reinforcement learning."""

    data: DocumentSource
    training: SFTConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class GRPOJob(GRPOConfig):
    """Reinforcement learning of a model on a task."""

    leaves_run: ClassVar[bool] = True
    model: ModelSource = field(default_factory=Pretrained, metadata={"parse": parse_model})
    task: Task | None = field(default=None, metadata={"parse": parse_task})
    """A JSONL file of questions and answers, a reasoning-gym name, a hub id or module:Class."""
    reward: Reward | None = field(default=None, metadata={"parse": parse_reward})
    """``module:function`` or an object; null takes the task's own."""
    warm_up: WarmUp | None = None
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    """accelerate's trackers, such as tensorboard."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def check(self) -> None:
        """Raise UsageError for a missing or broken model or task."""
        self.model.check()
        check_prompts(len(given(self.task).train()), self.prompts_per_step)

    def run(self, run: Runtime) -> None:
        """Train and leave the model in the run folder."""
        task = given(self.task)
        lm = self.model.load(self.warm_up.data.texts(2_000) if self.warm_up else (), self.seed)
        if self.warm_up is not None:
            training = self.warm_up.training
            with run.stage("1-warm-up", to_yaml(self.warm_up)) as stage:
                count = training.steps * training.documents_per_step
                documents = self.warm_up.data.documents(lm, count, self.seed)
                train_sft(training, lm.model, documents, stage)
        train_grpo(self, lm, task, run, reward=self.reward)
        leave_model(lm, run)


def given(task: Task | None) -> Task:
    """Return the task, or raise UsageError if none was given."""
    if task is None:
        raise UsageError(
            "no task is given: add --task FILE.jsonl, a reasoning-gym name or a hub id"
        )
    return task


def leave_model(lm: LanguageModel, run: Runtime) -> None:
    """Save the model as an ordinary Hugging Face folder and say how to talk to it."""
    if run.output is None:
        return
    folder = run.output / "model"
    run.on_main(lambda: save_model(lm.model, lm.tokenizer, folder))
    run.print(f"The model is in {folder}. Talk to it: monro run chat --model {folder}")
