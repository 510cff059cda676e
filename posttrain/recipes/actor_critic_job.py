"""PPO with a critic as a job: the loop's config, and what it is run on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from launch.config import resumable
from launch.runtime import Runtime, RuntimeConfig
from posttrain.critics import save_critic
from posttrain.data.tasks import Task, parse_task
from posttrain.recipes.jobs import WarmUp, check_reinforcement, given, leave_model
from posttrain.recipes.sources import ModelSource, Pretrained, parse_model
from posttrain.rewards import Reward, parse_reward
from posttrain.trainers.actor_critic import ActorCriticConfig, train_actor_critic

__all__ = ["ActorCriticJob"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorCriticJob(ActorCriticConfig):
    """Reinforcement learning of a model on a task, with a critic."""

    leaves_run: ClassVar[bool] = True
    model: ModelSource = field(default_factory=Pretrained, metadata={"parse": parse_model})
    task: Task | None = field(default=None, metadata={"parse": parse_task})
    """A JSONL file of questions and answers, a reasoning-gym name, a hub id or module:Class."""
    reward: Reward | None = field(default=None, metadata={"parse": parse_reward})
    """``module:function`` or an object; null takes the task's own."""
    warm_up: WarmUp | None = field(default=None, metadata={"resumable": False})
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    """accelerate's trackers, such as tensorboard."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def check(self) -> None:
        """Raise UsageError for a missing or broken model, critic or task."""
        check_reinforcement(self.model, self.task, self.warm_up, self.prompts_per_step)
        self.critic.check()

    def run(self, run: Runtime) -> None:
        """Train and leave the policy as ``model`` and the critic as ``critic`` in the folder."""
        task = given(self.task)
        lm = self.model.load(self.warm_up.data.texts(2_000) if self.warm_up else (), self.seed)
        if self.warm_up is not None:
            self.warm_up.run(lm, run, self.seed)
        pair = train_actor_critic(self, lm, task, run, reward=self.reward)
        if run.output is not None:
            folder = run.output / "critic"
            run.on_main(lambda: save_critic(pair, lm, folder))
        leave_model(lm, run, self.model, task.train()[0])
