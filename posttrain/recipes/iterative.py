"""Policy and reward model in turn: GRPO whose reward model learns from what the policy writes.

Iterative GRPO of DeepSeekMath (Shao et al. 2024, arXiv:2402.03300, algorithm 1 and section 4.1.4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from launch.config import resumable, to_yaml
from launch.errors import UsageError
from launch.runtime import Runtime, RuntimeConfig
from posttrain.architecture import keep_architecture
from posttrain.data.contrasts import check_replay, preferences_of, with_replay
from posttrain.data.preference_files import encode_pairs
from posttrain.data.tasks import Task, parse_task
from posttrain.models import LanguageModel, save_model
from posttrain.recipes.evaluator import Evaluator, heldout_probe
from posttrain.recipes.exams import Exam, Marks, examine, verdicts
from posttrain.recipes.jobs import WarmUp, check_reinforcement, given, leave_model
from posttrain.recipes.r1_stages import kept_rows
from posttrain.recipes.sources import ModelSource, Pretrained, parse_model
from posttrain.reward_models import RewardModel, load_reward_model, outcome_model
from posttrain.rewards import ModelReward, WeightedSum, check_reward, reward_of
from posttrain.trainers.advantages import check_advantages
from posttrain.trainers.contrasts import ContrastsConfig, sample_contrasts
from posttrain.trainers.policy import GRPOConfig, check_prompts, train_grpo
from posttrain.trainers.reward_model import RewardModelConfig, train_reward_model

__all__ = ["IterativeGRPO"]

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class IterativeGRPO:
    """Policy and reward model in turn (DeepSeekMath, arXiv:2402.03300, algorithm 1).

    Iteration i has three stages, each a run folder of its own: ``i-pairs`` samples the policy as it
    is, and of each prompt a right and a wrong completion become a pair; ``i-reward-model`` goes on
    training the reward model on them, with a share of the pairs of earlier iterations among them;
    ``i-policy`` improves the policy on the reward model's scores, with the policy that it begins
    with as the reference. In the paper a reward model is there before the first iteration, and is
    trained at the end of each; here it is trained first, so that the policy is always judged by one
    that has seen what it writes.
    """

    leaves_run: ClassVar[bool] = True
    model: ModelSource = field(default_factory=Pretrained, metadata={"parse": parse_model})
    """The policy to begin with."""
    task: Task | None = field(default=None, metadata={"parse": parse_task})
    """A JSONL file of questions and answers, a reasoning-gym name, a hub id or module:Class; its
    own reward says what is right."""
    reward_model: str = ""
    """Folder of a reward model with the policy's tokenizer, to go on from; empty makes one of the
    policy in the first iteration."""
    iterations: int = resumable(2)
    """Times that reward model and policy take their turns."""
    replay: float = 0.1
    """Share of earlier iterations' pairs in what the reward model learns from; fewer if there are
    not as many, and none in the first iteration."""
    heldout_share: float = 0.0
    """Share of each iteration's pairs, the last ones, that the reward model is judged by, every
    ``reward_training.heldout_every`` steps, and never learns from."""
    pairs: ContrastsConfig = field(default_factory=ContrastsConfig, metadata={"resumable": False})
    reward_training: RewardModelConfig = field(
        default_factory=RewardModelConfig, metadata={"resumable": False}
    )
    """Of each iteration, as are the steps of ``policy``."""
    policy: GRPOConfig = field(default_factory=GRPOConfig, metadata={"resumable": False})
    warm_up: WarmUp | None = field(default=None, metadata={"resumable": False})
    evaluation: Evaluator = field(default_factory=lambda: Evaluator(group_size=1, greedy=False))
    """How each iteration's policy is judged, by the task's own reward."""
    problems: int = 128
    """Held-out problems that it is judged on, at the most; 0 judges none."""
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    """accelerate's trackers, such as tensorboard."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations}: give at least 1")
        check_replay(self.replay)
        if not 0 <= self.heldout_share < 1:
            raise ValueError(
                f"heldout_share={self.heldout_share}: give a share of 0 or more and less than 1"
            )
        if self.problems < 0:
            raise ValueError(f"problems={self.problems}: give 0 (judge none) or a number")

    def check(self) -> None:
        """Raise UsageError for what is missing, broken, or does not fit together."""
        needed = self.policy.prompts_per_step * self.policy.minibatches
        check_reinforcement(self.model, self.task, self.warm_up, needed)
        task = given(self.task)
        prompts = task.train()
        check_prompts(len(prompts), self.pairs.prompts_per_step)
        if prompts[0].messages is None:
            raise UsageError(
                "the task's prompts are text, but pairs are kept as chats, as reward-model reads "
                "them: give a task of chats (--task.form chat, where it has a form)"
            )
        check_reward(task.reward)
        check_advantages(self.policy.advantages)
        if self.reward_model:
            ModelReward(self.reward_model).check()
        longest, most = self.pairs.sampling.max_tokens, self.reward_training.row_length
        if longest >= most:
            raise UsageError(
                f"pairs.sampling.max_tokens={longest}, but reward_training.row_length={most}: a "
                "completion with its prompt would not fit, so raise row_length"
            )

    def run(self, run: Runtime) -> None:
        """Go through the iterations, judge the policy after each, and leave the last one."""
        run.restore({})  # a run of stages has no checkpoint of its own, only records to make again
        lm = self.model.load(self.warm_up.data.texts(2_000) if self.warm_up else (), self.seed)
        if self.warm_up is not None:
            self.warm_up.run(lm, run, self.seed, name="0-warm-up")
        lm.model.to(run.device)
        scorer = load_reward_model(self.reward_model) if self.reward_model else None
        marks: list[Marks] = []
        with run.stage("0-policy") as stage:
            self._judge(lm, marks, stage, run)
        earlier: list[Mapping[str, Any]] = []
        for i in range(1, self.iterations + 1):
            with run.stage(f"{i}-pairs", to_yaml(self.pairs)) as stage:
                rows = self._sample(lm, stage)
            learnt = rows[: len(rows) - self._heldout(len(rows))]
            with run.stage(f"{i}-reward-model", to_yaml(self.reward_training)) as stage:
                scorer = outcome_model(lm, seed=stage.seed) if scorer is None else scorer
                self._teach(scorer, lm, learnt, earlier, rows[len(learnt) :], stage)
            earlier += learnt
            with run.stage(f"{i}-policy", to_yaml(self.policy)) as stage:
                self._reinforce(lm, scorer, stage)
                self._judge(lm, marks, stage, run)
        tell(marks, run)
        leave_model(lm, run, self.model, given(self.task).train()[0])

    def _sample(self, lm: LanguageModel, stage: Runtime) -> Rows:
        """Return pairs of what the policy writes, kept in the stage's ``data.jsonl``."""
        task = given(self.task)
        return kept_rows(
            lambda: sample_contrasts(self.pairs, lm, task.train(), task.reward, stage), lm, stage
        )

    def _heldout(self, rows: int) -> int:
        return min(rows - 1, round(self.heldout_share * rows))

    def _teach(
        self,
        scorer: RewardModel,
        lm: LanguageModel,
        new: Rows,
        earlier: Rows,
        heldout: Rows,
        stage: Runtime,
    ) -> None:
        """Train the reward model on new pairs and some earlier ones, kept in ``data.jsonl``."""

        def mixed() -> tuple[Rows, Mapping[str, int]]:
            rows = with_replay(new, earlier, replay=self.replay, seed=stage.seed)
            return rows, {"new": len(new), "earlier": len(rows) - len(new)}

        rows = kept_rows(mixed, lm, stage)
        stage.print(f"Pairs: {len(new)} new, {len(rows) - len(new)} of earlier iterations")
        learnt, judged = (encode_pairs(lm.tokenizer, preferences_of(x)) for x in (rows, heldout))
        keep_architecture(scorer.model, scorer.tokenizer, stage)
        train_reward_model(self.reward_training, scorer.model, learnt, stage, heldout=judged)
        if stage.output is not None:
            folder = stage.output / "model"
            stage.on_main(lambda: save_model(scorer.model, scorer.tokenizer, folder))

    def _reinforce(self, lm: LanguageModel, scorer: RewardModel, stage: Runtime) -> None:
        """Improve the policy on the reward model's scores; what is right is logged beside them."""
        task, probe = given(self.task), None
        if self.policy.probe_every and self.problems and len(task.heldout()):
            heldout = task.heldout()[: self.problems]
            probe = heldout_probe(self.evaluation, lm, heldout, task.reward, stage)
        reward = WeightedSum({"model": (1.0, reward_of(scorer)), "accuracy": (0.0, task.reward)})
        train_grpo(self.policy, lm, task, stage, reward=reward, probe=probe)
        if stage.output is not None:
            folder = stage.output / "model"
            stage.on_main(lambda: save_model(lm.model, lm.tokenizer, folder))

    def _judge(self, lm: LanguageModel, marks: list[Marks], stage: Runtime, run: Runtime) -> None:
        """Judge the policy on held-out problems, and log it for the whole run."""
        task = given(self.task)
        if not self.problems or not len(task.heldout()):
            return
        lm.model.to(run.device)
        exams = {"accuracy": Exam(task=task)}
        marks.append(examine(exams, self.problems, self.evaluation, lm, stage))
        accuracy = float(marks[-1]["accuracy"].mean())
        run.log(len(marks), {"heldout/accuracy": accuracy})
        run.print(f"After {len(marks) - 1} iterations: held-out accuracy {accuracy:.3f}")


def tell(marks: Sequence[Marks], run: Runtime) -> None:
    """Write what each iteration changed into the run folder's report."""
    rows = [
        verdict.row()
        for i in range(1, len(marks))
        for verdict in verdicts(f"{i}-policy", marks[i - 1], marks[i], ["accuracy"])
    ]
    if rows:
        run.table("Held-out problems, iteration by iteration", rows)
