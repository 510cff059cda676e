"""DeepSeek-R1 in miniature: cold start, reinforcement learning, and an honest account of both."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from launch.config import resumable, to_yaml
from launch.metrics import Mean, Metric
from launch.runtime import Runtime, RuntimeConfig
from posttrain.architecture import keep_architecture
from posttrain.data.chat import encode_prompt
from posttrain.data.tasks import Prompt, Task
from posttrain.eval import Evaluation, Interval
from posttrain.eval import report as draw
from posttrain.eval.run import Generates
from posttrain.log_probs import token_log_probs
from posttrain.models import LanguageModel
from posttrain.recipes.account import account
from posttrain.recipes.evaluation import show_summary
from posttrain.recipes.evaluator import Evaluator
from posttrain.recipes.jobs import leave_model
from posttrain.recipes.sources import DocumentSource, FromScratch
from posttrain.rewards import Reward, WeightedSum, parse_reward
from posttrain.rewards.checking import reward_name
from posttrain.rollout.samples import as_samples
from posttrain.trainers.policy import GRPOConfig, Probe, check_prompts, train_grpo
from posttrain.trainers.rollouts import stopping
from posttrain.trainers.supervised import SFTConfig, train_sft

__all__ = ["R1Mini"]

Summary = Mapping[str, float | Interval]


@dataclass(frozen=True, kw_only=True, slots=True)
class R1Mini:
    """A model made from nothing learns to reason by reinforcement (after arXiv:2501.12948).

    Stages: ``1-cold-start`` (SFT, then evaluation) and ``2-GRPO`` (GRPO, then evaluation).
    """

    leaves_run: ClassVar[bool] = True
    task: Task
    """Problems to learn from and held out."""
    longer: Task
    """Problems longer than those learnt from; only its held-out part is used."""
    demonstrations: DocumentSource
    reward: Reward = field(metadata={"parse": parse_reward})
    """What reinforcement learning pays for."""
    model: FromScratch = field(default_factory=FromScratch)
    cold_start: SFTConfig = field(default_factory=SFTConfig, metadata={"resumable": False})
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    evaluation: Evaluator = field(default_factory=Evaluator)
    problems: int = 512
    """Held-out problems of the final evaluation; those after them are for the curve."""
    probes: int = 128
    """Held-out problems of the curve."""
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    """accelerate's trackers, such as tensorboard."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def check(self) -> None:
        """Raise UsageError if the task is too small."""
        check_prompts(len(self.task.train()), self.grpo.prompts_per_step)
        check_prompts(len(self.task.heldout()), self.problems + self.probes)

    def run(self, run: Runtime) -> None:
        """Train, evaluate before and after, and write the report's account."""
        run.restore({})  # a run of stages has no checkpoint of its own, only records to make again
        lm = self.model.load(self.demonstrations.texts(self.model.texts), self.seed)
        lm.model.to(run.device)
        found: dict[str, Evaluation] = {}
        longer: dict[str, Evaluation] = {}

        def judge(name: str, stage: Runtime) -> None:
            prompts = self.task.heldout()[: self.problems]
            found[name] = self.evaluation.judge(lm, prompts, self.task.reward, stage)
            prompts = self.longer.heldout()
            longer[name] = self.evaluation.judge(lm, prompts, self.longer.reward, stage)
            summaries = (self._summary(found[name]), self._summary(longer[name]))
            figures = dict(summaries[0]) | {f"longer/{k}": v for k, v in summaries[1].items()}
            run.log(len(found), {key: float(value) for key, value in figures.items()})
            show_summary(summaries[0], f"{name}: {self.problems} held-out problems", run)

        with run.stage("1-cold-start", to_yaml(self.cold_start)) as stage:
            count = self.cold_start.steps * self.cold_start.documents_per_step
            documents = self.demonstrations.documents(lm, count, self.seed)
            keep_architecture(lm.model, lm.tokenizer, stage)
            train_sft(self.cold_start, lm.model, documents, stage)
            judge("cold start", stage)
        with run.stage("2-GRPO", to_yaml(self.grpo)) as stage:
            train_grpo(
                self.grpo, lm, self.task, stage, reward=self.reward, probe=self._probe(lm, stage)
            )
            judge("after GRPO", stage)
            records = read_records(stage)
        leave_model(lm, run, self.model, self.task.train()[0])
        if run.is_main:
            self._report(run, found, longer, records)

    def _summary(self, found: Evaluation) -> Summary:
        return found.summary(k=self.evaluation.group_size)

    def _probe(self, lm: LanguageModel, stage: Runtime) -> Probe:
        """Return a look at held-out problems that the final evaluation does not use."""
        prompts = self.task.heldout()[self.problems : self.problems + self.probes]
        sampling = stopping(self.grpo.sampling, lm)
        reference = copy.deepcopy(lm.model).eval()

        def probe(step: int, engine: Generates) -> Mapping[str, Metric]:
            share = stage.share(len(prompts))
            mine: Sequence[Prompt] = [prompts[i] for i in share]
            encoded = [encode_prompt(lm.tokenizer, prompt) for prompt in mine]
            seeds = stage.seeds("probe", 0, share)
            rollout = engine.generate(encoded, sampling, 1, seeds=seeds)
            answers = [prompt.answer for prompt in mine]
            samples = as_samples(lm.tokenizer, encoded, answers, rollout, 1)
            right = self.task.reward(samples) == 1
            return {
                "heldout/accuracy": Mean(right.sum(), len(mine)),
                "heldout/length": Mean(rollout.mask.sum(), len(mine)),
                "kl": divergence(reference, rollout.tokens, rollout.mask, rollout.old_log_probs),
            }

        return probe

    def _report(
        self,
        run: Runtime,
        found: Mapping[str, Evaluation],
        longer: Mapping[str, Evaluation],
        records: Sequence[Mapping[str, object]],
    ) -> None:
        before, after = (self._summary(evaluation) for evaluation in found.values())
        reward = self.reward
        paid = reward.rewards if isinstance(reward, WeightedSum) else [reward_name(reward)]
        first, then = found["cold start"], found["after GRPO"]
        text = account(first, then, longer["after GRPO"], paid=tuple(paid))
        far = self._summary(longer["after GRPO"])
        run.note("What reinforcement learning did", text)
        rows = draw.before_and_after({"cold start": before, "after GRPO": after})
        run.table(f"{self.problems} held-out problems", rows)
        rows = draw.before_and_after(
            {"cold start": self._summary(longer["cold start"]), "after GRPO": far}
        )
        run.table("Problems longer than any it was trained on", rows)
        run.figure("Accuracy and length", draw.accuracy_and_length(records))
        run.figure("Reward parts", draw.reward_parts(records))
        run.figure("Reasoning and truncation", draw.share_reasoning(records))
        run.figure("KL and entropy", draw.divergence(records))
        run.figure("Time budget", draw.time_budget(records))
        run.side_by_side(
            "The same problems, before and after", draw.samples_beside(found, range(6))
        )


@torch.no_grad()
def divergence(
    reference: nn.Module, tokens: torch.Tensor, mask: torch.Tensor, log_probs: torch.Tensor
) -> Mean:
    """Return KL(policy || reference) in nats a token, by the policy's own samples."""
    gap = log_probs - token_log_probs(reference, tokens, mask)
    return Mean(torch.where(mask, gap, 0.0).sum(), mask.sum())


def read_records(stage: Runtime) -> list[dict[str, object]]:
    """Return the records of a stage's ``metrics.jsonl``; none if it has no folder."""
    path = None if stage.output is None else stage.output / "metrics.jsonl"
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
