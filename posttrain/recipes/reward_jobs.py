"""Training of reward models as jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from launch.config import resumable
from launch.plan import Workload
from launch.runtime import Runtime, RuntimeConfig
from posttrain.architecture import keep_architecture
from posttrain.eval.ranking import auc_with_interval
from posttrain.models import LanguageModel, save_model
from posttrain.process_reward_models import ProcessRewardModel, process_model
from posttrain.recipes.jobs import GIVE_TEMPLATE, WarmUp, check_template
from posttrain.recipes.planned_steps import reward_model_workload
from posttrain.recipes.sources import (
    ModelSource,
    PairFile,
    PairSource,
    Pretrained,
    parse_model,
    parse_pairs,
)
from posttrain.recipes.step_sources import StepFile, Steps, StepSource, parse_steps
from posttrain.reward_models import outcome_model
from posttrain.trainers.process_reward import ProcessRewardConfig, train_process_reward_model
from posttrain.trainers.reward_model import RewardModelConfig, train_reward_model

__all__ = ["ProcessRewardJob", "RewardModelJob", "judged"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModelJob(RewardModelConfig):
    """A reward model from a language model and pairs of completions."""

    leaves_run: ClassVar[bool] = True
    model: ModelSource = field(default_factory=Pretrained, metadata={"parse": parse_model})
    """The language model whose backbone and tokenizer it takes over."""
    data: PairSource = field(default_factory=PairFile, metadata={"parse": parse_pairs})
    """A JSONL file: ``prompt`` or ``messages``, ``chosen`` and ``rejected`` in each line."""
    warm_up: WarmUp | None = field(default=None, metadata={"resumable": False})
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    """accelerate's trackers, such as tensorboard."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def check(self) -> None:
        """Raise UsageError for a missing or broken model or file."""
        self.model.check()
        self.data.check()
        check_template(self.model, GIVE_TEMPLATE)

    def workload(self, processes: int, device: str) -> Workload:
        """Return what one process does in a step, for ``monro plan``."""
        return reward_model_workload(self, processes, device)

    def run(self, run: Runtime) -> None:
        """Train and leave the reward model in the run folder."""
        lm = self.model.load(self.data.texts(2_000), self.seed)
        if self.warm_up is not None:
            self.warm_up.run(lm, run, self.seed)
        scorer = outcome_model(lm, seed=self.seed)
        pairs = self.data.pairs(lm, self.steps * self.pairs_per_step, self.seed)
        keep_architecture(scorer.model, scorer.tokenizer, run)
        train_reward_model(self, scorer.model, pairs, run, heldout=self.data.heldout(lm))
        if run.output is not None:
            folder = run.output / "model"
            run.on_main(lambda: save_model(scorer.model, scorer.tokenizer, folder))
            run.print(
                f"The reward model is in {folder}. Reinforce with it: "
                f"monro run grpo --model POLICY --task TASK --reward {folder}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessRewardJob(ProcessRewardConfig):
    """A process reward model from a language model and labelled steps."""

    leaves_run: ClassVar[bool] = True
    model: ModelSource = field(default_factory=Pretrained, metadata={"parse": parse_model})
    """The language model whose backbone and tokenizer it takes over."""
    data: StepSource = field(default_factory=StepFile, metadata={"parse": parse_steps})
    """A JSONL file: ``prompt`` or ``messages``, ``steps`` and ``labels`` in each line."""
    warm_up: WarmUp | None = field(default=None, metadata={"resumable": False})
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    """accelerate's trackers, such as tensorboard."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def check(self) -> None:
        """Raise UsageError for a missing or broken model or file."""
        self.model.check()
        self.data.check()

    def run(self, run: Runtime) -> None:
        """Train and leave the process reward model in the run folder."""
        lm = self.model.load(self.data.texts(2_000), self.seed)
        if self.warm_up is not None:
            self.warm_up.run(lm, run, self.seed)
        lm.model.to(run.device)
        scorer, rows = self.train(lm, run)
        if run.output is not None:
            folder = run.output / "model"
            run.on_main(lambda: save_model(scorer.model, scorer.tokenizer, folder))
            said = [f"AUC of {x['scores']} against {x['labels']}: {x['AUC']}." for x in rows]
            run.print(" ".join([*said, f"The process reward model is in {folder}."]))

    def train(
        self, lm: LanguageModel, run: Runtime
    ) -> tuple[ProcessRewardModel, list[Mapping[str, object]]]:
        """Return a process reward model that begins as ``lm``, and a table of how it judges."""
        found = self.data.steps(lm, run, self.seed)
        scorer = process_model(lm, seed=self.seed)
        keep_architecture(scorer.model, scorer.tokenizer, run)
        train_process_reward_model(self, scorer.model, found.learnt, run, heldout=found.heldout)
        rows = judged(scorer, found)
        if rows:
            run.table("Held-out steps", rows)
        return scorer, rows


def judged(scorer: ProcessRewardModel, steps: Steps) -> list[Mapping[str, object]]:
    """Return how well held-out steps are told apart, with intervals over solutions.

    Where it is known what the labels should be, the model and the labels themselves are held to it.
    """
    if not len(steps.heldout):
        return []
    rows, ends = [list(x.tokens) for x in steps.heldout], [x.ends for x in steps.heldout]
    found = [p for of_row in scorer.probabilities(rows, ends) for p in of_row]
    given = [label for x in steps.heldout for label in x.labels]
    known = [label for x in steps.truth for label in x.labels]
    groups = torch.tensor([i for i, x in enumerate(steps.heldout) for _ in x.ends])
    compared = [("the model", found, "its labels", given)]
    if known:
        compared.append(("the model", found, "the truth", known))
        compared.append(("its labels", given, "the truth", known))
    return [
        {
            "scores": scores_name,
            "labels": labels_name,
            "AUC": str(auc_with_interval(torch.tensor(scores), torch.tensor(labels), groups)),
            "steps": len(labels),
            "right": round(sum(label > 0.5 for label in labels) / len(labels), 3),
        }
        for scores_name, scores, labels_name, labels in compared
    ]
