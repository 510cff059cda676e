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
from launch.metrics import Mean
from launch.runtime import Runtime
from posttrain.data.chat import encode_chats, encode_prompt
from posttrain.data.order import shuffled
from posttrain.data.rejection import Filter, select
from posttrain.data.stage_data import read_record, write_stage_data
from posttrain.data.tasks import Prompt, Task
from posttrain.models import LanguageModel
from posttrain.recipes.sources import PairSource
from posttrain.reward_models import RewardModel, outcome_model
from posttrain.rewards import Late, Reward, Sample, WeightedSum, score
from posttrain.rewards.checking import reward_name
from posttrain.rewards.model import reward_of
from posttrain.rollout import Engine, Sampling
from posttrain.rollout.samples import as_samples
from posttrain.trainers.distill import DistillConfig
from posttrain.trainers.policy import GRPOConfig, train_grpo
from posttrain.trainers.reward_model import RewardModelConfig, train_reward_model
from posttrain.trainers.rollouts import stopping
from posttrain.trainers.supervised import SFTConfig, train_sft

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
    "sample_and_select",
    "with_helpfulness",
]

Chat = Sequence[Mapping[str, str]]


class ChatSource(Protocol):
    """Gives a stage conversations to learn from."""

    def check(self) -> None:
        """Raise UsageError for what can be seen before any work."""
        ...

    def texts(self, count: int) -> list[str]:
        """Return texts that a tokenizer made from nothing learns from."""
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
    """Its own reward says what is right, by 1."""
    prompts: int
    """Different prompts that are asked."""
    group_size: int
    """Completions of each."""
    sampling: Sampling
    most_per_prompt: int = 2
    keep: tuple[Filter, ...] = ()
    """What a right completion has to pass besides, such as ``OneScript``."""
    prompts_per_step: int = 64
    """Asked between two looks at the progress; a run goes on after the last one saved."""


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
    if read_record(path, lm.tokenizer, remedy) is None:
        rows, counts = make()
        stage.on_main(lambda: write_stage_data(path, rows, lm.tokenizer, counts))
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def finetune(training: SFTConfig, make: Make, lm: LanguageModel, stage: Runtime) -> None:
    """Train ``lm`` on the stage's data."""
    rows = kept_rows(make, lm, stage)
    documents = encode_chats(lm.tokenizer, [chat_of(row) for row in rows])
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
    if stage.output is not None and stage.is_main:
        path, prompts = stage.output / "prompts.jsonl", task.train()
        count = training.steps * training.prompts_per_step
        asked = (prompts[i] for i in shuffled(len(prompts), 0, count, stage.seed))
        lines = [json.dumps(prompt_row(prompt), ensure_ascii=False) for prompt in asked]
        atomic_write(path, "\n".join(lines) + "\n")
    train_grpo(training, lm, task, stage, reward=reward)


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt as a line of JSON may hold it."""
    asked = prompt.text if prompt.messages is None else [dict(m) for m in prompt.messages]
    return {"prompt": asked, "answer": str(prompt.answer)}


class Outputs:
    """Completions that were kept so far, and what became of the others."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.counts: dict[str, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"rows": self.rows, "counts": self.counts}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take what ``state_dict`` returned."""
        self.rows, self.counts = list(state_dict["rows"]), dict(state_dict["counts"])


def sample_and_select(cfg: Rejection, lm: LanguageModel, stage: Runtime) -> Outputs:
    """Return conversations of ``lm``'s right answers, and counts of what was dropped and why.

    A step of the stage asks ``prompts_per_step`` prompts. What is drawn and kept follows from the
    stage's seed alone.
    """
    prompts = different(cfg.task.train(), cfg.prompts, stage.seed)
    engine, outputs = Engine(lm.model.to(stage.device)), Outputs()
    sampling = stopping(cfg.sampling, lm)
    steps = -(-len(prompts) // cfg.prompts_per_step)
    state = {"outputs": outputs}
    for step in stage.steps(steps, state=state, save_every=10, headline=("kept", "right")):
        first = (step - 1) * cfg.prompts_per_step
        part = prompts[first : first + cfg.prompts_per_step]
        share = stage.share(len(part))
        mine = [part[i] for i in share]
        encoded = [encode_prompt(lm.tokenizer, prompt) for prompt in mine]
        samples: list[Sample] = []
        if mine:
            seeds = stage.seeds("outputs", step, share)
            rollout = engine.generate(encoded, sampling, cfg.group_size, seeds=seeds)
            answers = [prompt.answer for prompt in mine]
            samples = as_samples(lm.tokenizer, encoded, answers, rollout, cfg.group_size)
        scores = score(cfg.task.reward, samples)[0].tolist() if samples else []
        drawn, marks = stage.gather_objects(samples), stage.gather_objects(scores)
        chosen = select(
            drawn, marks, most_per_prompt=cfg.most_per_prompt, seed=stage.seed, keep=cfg.keep
        )
        for i in chosen.kept:
            asked = prompt_row(part[i // cfg.group_size])
            outputs.rows.append({"prompt": asked["prompt"], "completion": drawn[i].completion})
        counts = {name: outputs.counts.get(name, 0) + n for name, n in chosen.counts.items()}
        outputs.counts = counts
        right = sum(mark >= 1 for mark in marks)
        stage.log(step, {"kept": len(outputs.rows), "right": Mean(right, len(marks))})
    return outputs


def different(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """Return ``count`` prompts, all different, in a shuffled order; fewer if there are no more."""
    found: dict[str, Prompt] = {}
    for index in shuffled(len(prompts), 0, len(prompts), seed):
        row = prompt_row(prompts[index])
        found.setdefault(json.dumps(row["prompt"]), prompts[index])
        if len(found) == count:
            break
    return list(found.values())


def learn_preferences(cfg: Preferences, lm: LanguageModel, stage: Runtime) -> RewardModel:
    """Return a reward model that begins as ``lm``, trained on the pairs."""
    scorer = outcome_model(lm, seed=stage.seed)
    count = cfg.training.steps * cfg.training.pairs_per_step
    pairs = cfg.pairs.pairs(lm, count, stage.seed)
    train_reward_model(cfg.training, scorer.model, pairs, stage, heldout=cfg.pairs.heldout(lm))
    return scorer


def with_helpfulness(rules: Reward, scorer: RewardModel, cfg: Preferences, steps: int) -> Late:
    """Return ``rules``, to which the reward model comes in the last steps."""
    parts = rules.rewards if isinstance(rules, WeightedSum) else {reward_name(rules): (1.0, rules)}
    helpful = (cfg.weight, OfTask(cfg.task, reward_of(scorer)))
    both = WeightedSum({**parts, "helpfulness": helpful})
    return Late(first=rules, then=both, after=max(0, steps - cfg.last_steps))
