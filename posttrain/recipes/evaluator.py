"""How a model is judged on held-out problems, after training and in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launch.metrics import Metric
from launch.runtime import Runtime
from posttrain.data.tasks import Prompt
from posttrain.eval import Evaluation, evaluate
from posttrain.eval.run import Generates
from posttrain.models import LanguageModel
from posttrain.rewards import Reward
from posttrain.rollout import Engine, Sampling
from posttrain.trainers.policy import Probe
from posttrain.trainers.rollouts import stopping

__all__ = ["Evaluator", "heldout_probe"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluator:
    """How a model is judged on a list of problems."""

    group_size: int = 8
    """Completions of each problem; also the k of maj@k and pass@k."""
    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=512))
    """The model's own stop tokens are used where none are given."""
    greedy: bool = True
    """Decode each problem once at temperature 0 as well."""
    batch: int = 64
    """Problems that the engine gets at once; memory only."""

    def __post_init__(self) -> None:
        for name in ("group_size", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")

    def judge(
        self,
        lm: LanguageModel,
        prompts: Sequence[Prompt],
        reward: Reward,
        run: Runtime,
        *,
        engine: Generates | None = None,
    ) -> Evaluation:
        """Judge ``lm``; which completions are drawn depends on the run's seed alone.

        Args:
            lm: The model.
            prompts: Problems.
            reward: Says what is right.
            run: Shares the work, and gives the seed.
            engine: Of the model, such as one with a tool; None makes one without.
        """
        return evaluate(
            Engine(lm.model) if engine is None else engine,
            lm.tokenizer,
            prompts,
            reward,
            stopping(self.sampling, lm),
            samples_per_prompt=self.group_size,
            seed=run.seed,
            batch=self.batch,
            greedy=self.greedy,
            run=run,
        )


def heldout_probe(
    evaluator: Evaluator,
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    reward: Reward,
    run: Runtime,
) -> Probe:
    """Return a look at held-out problems, for a training loop to log every so many steps.

    It draws the same completions' seeds every time, so that what changes is the model.
    """

    def probe(step: int, engine: Generates) -> Mapping[str, Metric]:
        found = evaluator.judge(lm, prompts, reward, run, engine=engine)
        return {
            "heldout/accuracy": float(found.correct.double().mean()),
            "heldout/length": float(found.lengths.double().mean()),
            "heldout/truncated": float(found.truncated.double().mean()),
        }

    return probe
