"""Supervised, preference and GRPO training as jobs: a loop's config, and what it is run on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from launch.config import resumable, to_yaml
from launch.errors import UsageError
from launch.plan import Workload
from launch.runtime import Runtime, RuntimeConfig
from posttrain.adapters import (
    LoRA,
    has_adapters,
    merge_adapters,
    parse_lora,
    save_adapter,
    with_adapters,
)
from posttrain.architecture import keep_architecture
from posttrain.data.tasks import Prompt, Task, parse_task
from posttrain.model_files import lacks_chat_template
from posttrain.models import LanguageModel, save_model
from posttrain.recipes.evaluator import Evaluator, heldout_probe
from posttrain.recipes.planned_steps import grpo_workload, preference_workload, sft_workload
from posttrain.recipes.replies import ReplyPairs
from posttrain.recipes.sources import (
    ChatFile,
    DocumentSource,
    FromScratch,
    ModelSource,
    PairFile,
    PairSource,
    Pretrained,
    RawLines,
    WorkedSums,
    parse_documents,
    parse_model,
    parse_pairs,
)
from posttrain.rewards import Reward, check_reward, parse_reward
from posttrain.trainers.advantages import check_advantages
from posttrain.trainers.policy import GRPOConfig, check_prompts, train_grpo
from posttrain.trainers.preference import PreferenceConfig, train_preferences
from posttrain.trainers.supervised import SFTConfig, train_sft

__all__ = [
    "GRPOJob",
    "PreferenceJob",
    "SFTJob",
    "WarmUp",
    "check_form",
    "check_reinforcement",
    "check_template",
    "given",
    "leave_model",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTJob(SFTConfig):
    """Supervised fine-tuning of a model on conversations."""

    leaves_run: ClassVar[bool] = True
    model: ModelSource = field(default_factory=Pretrained, metadata={"parse": parse_model})
    data: DocumentSource = field(default_factory=ChatFile, metadata={"parse": parse_documents})
    lora: LoRA | None = field(default=None, metadata={"parse": parse_lora})
    """Train adapters of this rank in place of the weights; null trains all of them."""
    epochs: float | None = None
    """Passes over the data, in place of ``steps``; null counts steps."""
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    """accelerate's trackers, such as tensorboard."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def check(self) -> None:
        """Raise UsageError for a missing or broken model or file."""
        if self.epochs is not None and not 0 < self.epochs < float("inf"):
            raise UsageError(f"epochs={self.epochs}: give a positive number, or null")
        self.model.check()
        self.data.check()
        if self.lora is not None:
            self.lora.check()
        if isinstance(self.data, ChatFile):
            check_template(self.model, GIVE_TEMPLATE)

    def workload(self, processes: int, device: str) -> Workload:
        """Return what one process does in a step, for ``monro plan``."""
        return sft_workload(self, processes, device)

    def run(self, run: Runtime) -> None:
        """Train and leave the model in the run folder."""
        lm = self.model.load(self.data.texts(2_000), self.seed)
        lm = adapted(lm, self.lora, run, self.seed, kept=isinstance(self.model, Pretrained))
        documents = self.data.documents(lm, self.steps * self.documents_per_step, self.seed)
        keep_architecture(lm.model, lm.tokenizer, run)
        train_sft(self.counted(len(documents)), lm.model, documents, run)
        asked = self.data.task.train()[0] if isinstance(self.data, WorkedSums | RawLines) else None
        leave_model(lm, run, self.model, asked)

    def counted(self, documents: int) -> SFTJob:
        """Return the job with ``epochs`` as steps, the last of them perhaps part of a new epoch."""
        if self.epochs is None:
            return self
        return replace(self, steps=math.ceil(self.epochs * documents / self.documents_per_step))


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmUp:
    """A short supervised training before what a job is about."""

    data: DocumentSource
    training: SFTConfig

    def run(self, lm: LanguageModel, run: Runtime, seed: int, *, name: str = "1-warm-up") -> None:
        """Train ``lm`` in a stage of its own."""
        count = self.training.steps * self.training.documents_per_step
        with run.stage(name, to_yaml(self)) as stage:
            keep_architecture(lm.model, lm.tokenizer, stage)
            train_sft(self.training, lm.model, self.data.documents(lm, count, seed), stage)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceJob(PreferenceConfig):
    """Preference optimisation of a model on pairs of completions."""

    leaves_run: ClassVar[bool] = True
    model: ModelSource = field(default_factory=Pretrained, metadata={"parse": parse_model})
    data: PairSource = field(default_factory=PairFile, metadata={"parse": parse_pairs})
    """A JSONL file: ``prompt`` or ``messages``, ``chosen`` and ``rejected`` in each line."""
    warm_up: WarmUp | None = field(default=None, metadata={"resumable": False})
    lora: LoRA | None = field(default=None, metadata={"parse": parse_lora})
    """Train adapters of this rank in place of the weights; null trains all of them."""
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    """accelerate's trackers, such as tensorboard."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def check(self) -> None:
        """Raise UsageError for a missing or broken model or file."""
        self.model.check()
        self.data.check()
        if self.lora is not None:
            self.lora.check()
            self.lora.check_undropped("preference training")
        check_template(self.model, GIVE_TEMPLATE)

    def workload(self, processes: int, device: str) -> Workload:
        """Return what one process does in a step, for ``monro plan``."""
        return preference_workload(self, processes, device)

    def run(self, run: Runtime) -> None:
        """Train and leave the model in the run folder."""
        lm = self.model.load(self.data.texts(2_000), self.seed)
        if self.warm_up is not None:
            self.warm_up.run(lm, run, self.seed)
        kept = self.warm_up is None and isinstance(self.model, Pretrained)
        lm = adapted(lm, self.lora, run, self.seed, kept=kept)
        pairs = self.data.pairs(lm, self.steps * self.pairs_per_step, self.seed)
        keep_architecture(lm.model, lm.tokenizer, run)
        train_preferences(self, lm.model, pairs, run, heldout=self.data.heldout(lm))
        asked = self.data.task.train()[0] if isinstance(self.data, ReplyPairs) else None
        leave_model(lm, run, self.model, asked)


@dataclass(frozen=True, kw_only=True, slots=True)
class GRPOJob(GRPOConfig):
    """Reinforcement learning of a model on a task."""

    leaves_run: ClassVar[bool] = True
    model: ModelSource = field(default_factory=Pretrained, metadata={"parse": parse_model})
    task: Task | None = field(default=None, metadata={"parse": parse_task})
    """A JSONL file of questions and answers, a reasoning-gym name, a hub id or module:Class."""
    reward: Reward | None = field(default=None, metadata={"parse": parse_reward})
    """``module:function``, a reward model's folder or an object; null takes the task's own."""
    evaluation: Evaluator = field(
        default_factory=lambda: Evaluator(group_size=1, greedy=False), metadata={"resumable": True}
    )
    """How held-out problems are looked at every ``probe_every`` steps, by the task's own reward."""
    problems: int = resumable(128)
    """Held-out problems that are looked at, at the most."""
    warm_up: WarmUp | None = field(default=None, metadata={"resumable": False})
    lora: LoRA | None = field(default=None, metadata={"parse": parse_lora})
    """Train adapters of this rank in place of the weights; null trains all of them."""
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    """accelerate's trackers, such as tensorboard."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def check(self) -> None:
        """Raise UsageError for a missing or broken model or task."""
        check_reinforcement(self.model, self.task, self.warm_up, self.prompts_per_step)
        if self.lora is not None:
            self.lora.check()
            self.lora.check_undropped("reinforcement learning")
        task = given(self.task)
        check_reward(task.reward if self.reward is None else self.reward)
        check_advantages(self.advantages)
        if self.problems < 1:
            raise UsageError(f"problems={self.problems}: give at least 1")
        if self.probe_every and not len(task.heldout()):
            raise UsageError(
                f"probe_every={self.probe_every}, but the task holds no problems out to look at: "
                "set probe_every to 0, or give a task that does (--task.heldout_share .05 of a "
                "JSONL file)"
            )

    def workload(self, processes: int, device: str) -> Workload:
        """Return what one process does in a step, for ``monro plan``."""
        return grpo_workload(self, processes, device)

    def run(self, run: Runtime) -> None:
        """Train and leave the model in the run folder."""
        lm = self.started(run)
        self.reinforce(lm, run)
        leave_model(lm, run, self.model, given(self.task).train()[0])

    def started(self, run: Runtime) -> LanguageModel:
        """Return the model that is to be reinforced: warmed up, and with adapters if asked for."""
        lm = self.model.load(self.warm_up.data.texts(2_000) if self.warm_up else (), self.seed)
        if self.warm_up is not None:
            self.warm_up.run(lm, run, self.seed)
        kept = self.warm_up is None and isinstance(self.model, Pretrained)
        return adapted(lm, self.lora, run, self.seed, kept=kept)

    def reinforce(self, lm: LanguageModel, run: Runtime) -> None:
        """Train ``lm``, with looks at held-out problems in between."""
        task = given(self.task)
        probe = None
        if self.probe_every:
            heldout = task.heldout()[: self.problems]
            probe = heldout_probe(self.evaluation, lm, heldout, task.reward, run)
        train_grpo(self, lm, task, run, reward=self.reward, probe=probe)


def check_reinforcement(
    model: ModelSource, task: Task | None, warm_up: WarmUp | None, prompts_per_step: int
) -> None:
    """Raise UsageError for a missing or broken model or task, or for one that is too small."""
    model.check()
    if warm_up is None and isinstance(model, FromScratch):
        raise UsageError(
            "a model made from nothing learns its tokenizer from the data of warm_up, which is "
            "null: keep warm_up, or give --model FOLDER"
        )
    prompts = given(task).train()
    check_prompts(len(prompts), prompts_per_step)
    check_form(model, given(task), prompts[0])


def given(task: Task | None) -> Task:
    """Return the task, or raise UsageError if none was given."""
    if task is None:
        raise UsageError(
            "no task is given: add --task FILE.jsonl, a reasoning-gym name or a hub id"
        )
    return task


GIVE_TEMPLATE = (
    "give a chat model, or set its tokenizer's chat_template before saving it "
    "(posttrain.data.chat.CHAT_TEMPLATE is a minimal one)"
)


def check_form(model: ModelSource, task: Task, prompt: Prompt) -> None:
    """Raise UsageError if the task's prompts are chats and the model's tokenizer knows none."""
    if prompt.messages is not None:
        as_text = "add --task.form text, or " if hasattr(task, "form") else ""
        check_template(model, f"{as_text}{GIVE_TEMPLATE}")


def check_template(model: ModelSource, remedy: str) -> None:
    """Raise UsageError if the model is a folder without a chat template."""
    if isinstance(model, Pretrained) and lacks_chat_template(Path(model.path)):
        raise UsageError(
            f"{model.path} has no chat template, so a chat cannot be written as tokens: {remedy}"
        )


def adapted(
    lm: LanguageModel, lora: LoRA | None, run: Runtime, seed: int, *, kept: bool
) -> LanguageModel:
    """Return the model with the adapters that a job asks for.

    Unless its weights are ``kept`` elsewhere, they are left in ``base/``: an adapter needs them.
    """
    if lora is None:
        return lm
    if run.output is not None and not kept:
        base = run.output / "base"
        run.on_main(lambda: save_model(lm.model, lm.tokenizer, base))
        lm.model.config._name_or_path = str(base)
    return with_adapters(lm, lora, seed=seed)


def leave_model(
    lm: LanguageModel, run: Runtime, source: ModelSource, prompt: Prompt | None = None
) -> None:
    """Save the model as an ordinary Hugging Face folder and say how to talk to it.

    Adapters are left in ``adapter/``, as peft writes them, and merged into the model.

    Args:
        lm: What was trained.
        run: Its run; without a folder, nothing is left.
        source: What the training started from.
        prompt: One that it was trained on; None if those were conversations.
    """
    if run.output is None:
        return
    folder = run.output / "model"
    if has_adapters(lm.model):
        beside, adapters = run.output / "adapter", lm.model
        run.on_main(lambda: save_adapter(adapters, beside))
        lm = merge_adapters(lm)
    run.on_main(lambda: save_model(lm.model, lm.tokenizer, folder))
    if prompt is not None and prompt.messages is None:
        run.print(f"The model is in {folder}. It continues text; it has not learnt to chat.")
        return
    # One made from nothing has seen no second turn; a checkpoint may know more than it was given.
    alone = prompt is not None and isinstance(source, FromScratch)
    flags = " --remember false" if alone else ""
    run.print(f"The model is in {folder}. Talk to it: monro run chat --model {folder}{flags}")
