"""Reinforcement learning that is judged on held-out problems before and after, as a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launch.config import to_yaml
from launch.errors import UsageError
from launch.runtime import Runtime
from posttrain.eval import Interval
from posttrain.eval.report import before_and_after
from posttrain.recipes.evaluation import show_summary
from posttrain.recipes.jobs import GRPOJob, given, leave_model
from posttrain.trainers.policy import sampler

__all__ = ["JudgedGRPOJob"]

Summary = Mapping[str, float | Interval]


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedGRPOJob(GRPOJob):
    """``GRPOJob`` with two lines of figures: the held-out accuracy before it and after it.

    Stages: ``1-warm-up`` and ``2-policy``, whose own figures are in their folders. Both lines are
    of ``evaluation`` on the first ``problems`` that the task holds out.
    """

    def check(self) -> None:
        """Raise UsageError for a missing or broken model or task, or if nothing is held out."""
        GRPOJob.check(self)
        if not len(given(self.task).heldout()):
            raise UsageError("the task holds no problems out, so nothing could be judged")

    def run(self, run: Runtime) -> None:
        """Warm up, judge, train, judge again, and leave the model in the run folder."""
        run.restore({})  # a run of stages has no checkpoint of its own, only records to make again
        task = given(self.task)
        lm = self.started(run)
        lm.model.to(run.device)
        summaries: dict[str, Summary] = {}

        def judge(name: str) -> None:
            problems = task.heldout()[: self.problems]
            found = self.evaluation.judge(lm, problems, task.reward, run, engine=sampler(self, lm))
            summaries[name] = found.summary(k=self.evaluation.group_size)
            run.log(len(summaries), {key: float(x) for key, x in summaries[name].items()})
            show_summary(summaries[name], f"{name}: {len(problems)} held-out problems", run)

        judge("before")
        with run.stage("2-policy", to_yaml(self)) as stage:
            self.reinforce(lm, stage)
        judge("after")
        run.table("Held-out problems", before_and_after(summaries))
        leave_model(lm, run, self.model, task.train()[0])
