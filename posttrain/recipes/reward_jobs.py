"""Training of reward models as jobs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from launch.config import resumable
from launch.runtime import Runtime, RuntimeConfig
from posttrain.models import save_model
from posttrain.recipes.jobs import GIVE_TEMPLATE, WarmUp, check_template
from posttrain.recipes.sources import (
    ModelSource,
    PairFile,
    PairSource,
    Pretrained,
    parse_model,
    parse_pairs,
)
from posttrain.reward_models import outcome_model
from posttrain.trainers.reward_model import RewardModelConfig, train_reward_model

__all__ = ["RewardModelJob"]


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

    def run(self, run: Runtime) -> None:
        """Train and leave the reward model in the run folder."""
        lm = self.model.load(self.data.texts(2_000), self.seed)
        if self.warm_up is not None:
            self.warm_up.run(lm, run, self.seed)
        scorer = outcome_model(lm, seed=self.seed)
        pairs = self.data.pairs(lm, self.steps * self.pairs_per_step, self.seed)
        train_reward_model(self, scorer.model, pairs, run, heldout=self.data.heldout(lm))
        if run.output is not None:
            folder = run.output / "model"
            run.on_main(lambda: save_model(scorer.model, scorer.tokenizer, folder))
            run.print(
                f"The reward model is in {folder}. Reinforce with it: "
                f"monro run grpo --model POLICY --task TASK --reward {folder}"
            )
