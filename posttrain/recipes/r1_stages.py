"""The stages of the DeepSeek-R1 pipeline: what each is told, and what each does.

A stage takes models of earlier stages and leaves one, with the data that it learnt from, in a run
folder of its own. Resuming needs nothing but the folder: training restores its last checkpoint,
data is taken from its file, and what is finished is gone through at once.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from launch.folder import atomic_write
from launch.runtime import Runtime
from posttrain.architecture import keep_architecture
from posttrain.data.chat import encode_chats
from posttrain.data.order import shuffled
from posttrain.data.outputs import output_row
from posttrain.data.rejection import Filter
from posttrain.data.stage_data import read_record, write_stage_data
from posttrain.data.tasks import Prompt, Task
from posttrain.models import LanguageModel
from posttrain.recipes.sources import PairSource
from posttrain.reward_models import RewardModel, outcome_model
from posttrain.rewards import Late, Reward, Sample, WeightedSum, score
from posttrain.rewards.checking import reward_name
from posttrain.rewards.model import reward_of
from posttrain.trainers.distill import DistillConfig
from posttrain.trainers.outputs import OutputsConfig, teacher_outputs
from posttrain.trainers.policy import GRPOConfig, train_grpo
from posttrain.trainers.reward_model import RewardModelConfig, train_reward_model
from posttrain.trainers.supervised import SFTConfig, train_sft
from posttrain.vocabulary import model_vocabulary

__all__ = [
    "ChatSource",
    "Distillation",
    "FilterOfTask",
    "Finetuning",
    "OfTask",
    "Preferences",
    "Reinforcement",
    "Rejection",
    "finetune",
    "fresh",
    "kept_rows",
    "learn_preferences",
    "reinforce",
    "selected",
    "with_helpfulness",
]

Chat = Sequence[Mapping[str, str]]


class ChatSource(Protocol):
    """Gives a stage conversations to learn from."""

    def check(self) -> None:
        """Raise UsageError for what can be seen before any work."""
        ...

    def chats(self, count: int, seed: int) -> Sequence[Chat]:
        """Return ``count`` conversations, or all there are if they are fewer."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Finetuning:
    """Supervised training on conversations, which the stage keeps in ``data.jsonl``."""

    data: ChatSource
    chats: int
    """How many; training goes through them as often as its steps need."""
    training: SFTConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Reinforcement:
    """Reinforcement learning on a task; the stage keeps its prompts in ``prompts.jsonl``."""

    task: Task
    reward: Reward
    training: GRPOConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """Rejection sampling: of a model's completions, those that are fit to be learnt from."""

    task: Task
    """Its own reward says what is right."""
    outputs: OutputsConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Preferences:
    """A reward model from pairs, and how late in the run it is paid for."""

    pairs: PairSource
    training: RewardModelConfig
    task: str
    """The task of the mixture whose completions it scores."""
    weight: float = 1.0
    last_steps: int = 400
    """Steps at the end that it counts in; longer training on it is gamed (R1, Nature, methods)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """Into a smaller model, by its teacher's outputs and on its own; beside reinforcement alone."""

    outputs: Rejection
    """How the teacher's answers are drawn and selected."""
    sft: SFTConfig
    """On the teacher's answers."""
    on_policy: DistillConfig
    """After it: on what the student writes itself."""
    direct: GRPOConfig
    """What the student's base learns from the rewards themselves, for comparison."""


@dataclass(frozen=True)
class OfTask:
    """The reward of one task's completions in a mixture; the others get 0."""

    task: str
    reward: Reward

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return ``(B,)`` float32."""
        places = [i for i, s in enumerate(samples) if getattr(s.answer, "task", None) == self.task]
        found = torch.zeros(len(samples))
        if places:
            found[places] = score(self.reward, [samples[i] for i in places])[0]
        return found

    @property
    def timeouts(self) -> int:
        """Samples that hit a limit so far."""
        return int(getattr(self.reward, "timeouts", 0))


@dataclass(frozen=True)
class FilterOfTask:
    """A filter for one task's completions in a mixture; the others pass."""

    task: str
    keep: Filter

    @property
    def reason(self) -> str:
        """That of the filter."""
        return self.keep.reason

    def __call__(self, sample: Sample, /) -> bool:
        """Return True to keep the completion."""
        return getattr(sample.answer, "task", None) != self.task or self.keep(sample)


def fresh(lm: LanguageModel) -> LanguageModel:
    """Return a copy with weights of its own."""
    return replace(lm, model=copy.deepcopy(lm.model))


Make = Callable[[], tuple[Sequence[Mapping[str, Any]], Mapping[str, int]]]
"""Makes rows of stage data, and counts of what there is to say about them."""


def kept_rows(make: Make, lm: LanguageModel, stage: Runtime) -> list[Mapping[str, Any]]:
    """Return the stage's ``data.jsonl``, made and written if it is not there yet."""
    if stage.output is None:
        return list(make()[0])
    path = stage.output / "data.jsonl"
    remedy = f"remove {path.parent}, then go on with --resume, which makes it again"
    tokenizer = model_vocabulary(lm).fingerprint
    if read_record(path, tokenizer, remedy) is None:
        rows, counts = make()
        stage.on_main(lambda: write_stage_data(path, rows, tokenizer, counts))
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def finetune(training: SFTConfig, make: Make, lm: LanguageModel, stage: Runtime) -> None:
    """Train ``lm`` on the stage's data."""
    rows = kept_rows(make, lm, stage)
    documents = encode_chats(lm.tokenizer, [chat_of(row) for row in rows])
    keep_architecture(lm.model, lm.tokenizer, stage)
    train_sft(training, lm.model, documents, stage)


def chat_of(row: Mapping[str, Any]) -> list[Mapping[str, str]]:
    """Return a row of stage data as messages."""
    if "messages" in row:
        return list(row["messages"])
    return [*row["prompt"], {"role": "assistant", "content": row["completion"]}]


def reinforce(
    training: GRPOConfig, task: Task, reward: Reward, lm: LanguageModel, stage: Runtime
) -> None:
    """Train ``lm`` on the task; the stage keeps the prompts, in their order."""
    if stage.output is not None:
        path, prompts = stage.output / "prompts.jsonl", task.train()
        asked = shuffled(len(prompts), 0, training.steps * training.prompts_per_step, stage.seed)

        def write() -> None:
            rows = (json.dumps(prompt_row(prompts[i]), ensure_ascii=False) for i in asked)
            atomic_write(path, "".join(f"{row}\n" for row in rows))

        stage.on_main(write)
    train_grpo(training, lm, task, stage, reward=reward)


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt as a line of JSON may hold it."""
    asked = prompt.text if prompt.messages is None else [dict(m) for m in prompt.messages]
    return {"prompt": asked, "answer": str(prompt.answer)}


def selected(
    cfg: Rejection, lm: LanguageModel, stage: Runtime, *, name: str
) -> list[Mapping[str, Any]]:
    """Return what rejection sampling keeps of ``lm``'s answers; the stage keeps it too."""

    def make() -> tuple[list[dict[str, Any]], Mapping[str, int]]:
        prompts, reward = cfg.task.train(), cfg.task.reward
        outputs = teacher_outputs(cfg.outputs, lm, prompts, reward, stage, name=name)
        return [output_row(output) for output in outputs], {}

    return kept_rows(make, lm, stage)


def learn_preferences(cfg: Preferences, lm: LanguageModel, stage: Runtime) -> RewardModel:
    """Return a reward model that begins as ``lm``, trained on the pairs."""
    scorer = outcome_model(lm, seed=stage.seed)
    count = cfg.training.steps * cfg.training.pairs_per_step
    pairs = cfg.pairs.pairs(lm, count, stage.seed)
    keep_architecture(scorer.model, scorer.tokenizer, stage)
    train_reward_model(cfg.training, scorer.model, pairs, stage, heldout=cfg.pairs.heldout(lm))
    return scorer


def with_helpfulness(rules: Reward, scorer: RewardModel, cfg: Preferences, steps: int) -> Late:
    """Return ``rules``, to which the reward model comes in the last steps."""
    parts = rules.rewards if isinstance(rules, WeightedSum) else {reward_name(rules): (1.0, rules)}
    helpful = (cfg.weight, OfTask(cfg.task, reward_of(scorer)))
    both = WeightedSum({**parts, "helpfulness": helpful})
    return Late(first=rules, then=both, after=max(0, steps - cfg.last_steps))
