"""Every search on the same problems: accuracy against tokens, from nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from launch.config import resumable, to_yaml
from launch.errors import UsageError
from launch.folder import atomic_write
from launch.runtime import Runtime, RuntimeConfig
from posttrain.data.chat import encode_prompt
from posttrain.data.tasks import Prompt, Task, parse_task
from posttrain.eval import Comparison
from posttrain.models import LanguageModel, save_model
from posttrain.process_reward_models import ProcessRewardModel, load_process_reward_model
from posttrain.recipes.evaluation import leave_table
from posttrain.recipes.evaluator import Evaluator
from posttrain.recipes.jobs import given
from posttrain.recipes.reward_jobs import ProcessRewardJob
from posttrain.recipes.scorers import Reduce, step_scores
from posttrain.recipes.search_report import Drawn, Point, account, auc_within, compared, draw_points
from posttrain.recipes.step_searches import Beam, StepSearch, Tree, search_all
from posttrain.rewards.checking import checked, reward_name
from posttrain.rollout import Engine, Sampling
from posttrain.search.best_of_n import last, minimum, product
from posttrain.search.language import Verified
from posttrain.trainers.rollouts import stopping

__all__ = ["SearchJob"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchJob:
    """Makes a policy and its process reward model, then tries every search on held-out problems.

    Stages: ``1-warm-up`` is the policy, ``2-prm`` its process reward model, ``3-samples`` draws
    completions for maj@n and best of n, and each search has one of its own. What a stage found is
    kept in its folder, so a run that was killed goes on behind the last budget that was finished.
    """

    leaves_run: ClassVar[bool] = True
    prm: ProcessRewardJob = field(default_factory=ProcessRewardJob)
    """Its ``model`` and ``warm_up`` are the policy."""
    task: Task | None = field(default=None, metadata={"parse": parse_task})
    """Its held-out problems are searched for answers."""
    counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """n of maj@n and of best of n, on the same completions."""
    samples: int = 64
    """Completions of each problem; more than the largest n let the vote keep up with searches."""
    reductions: Mapping[str, Reduce] = field(
        default_factory=lambda: {"last": last, "minimum": minimum, "product": product}
    )
    """How best of n makes one score of those of a completion's steps."""
    searches: Mapping[str, StepSearch] = field(
        default_factory=lambda: {"beam": Beam(), "mcts": Tree()}
    )
    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=64))
    step_tokens: int = 32
    """A step without a line break is cut here."""
    problems: int = 256
    """Held-out problems at the most."""
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    """accelerate's trackers, such as tensorboard."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        for name in ("samples", "step_tokens", "problems"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        wrong = [n for n in self.counts if not 1 <= n <= self.samples]
        if wrong or not self.counts:
            raise ValueError(
                f"counts={self.counts}, samples={self.samples}: give counts from 1 to samples"
            )

    def check(self) -> None:
        """Raise UsageError for what is missing, broken, or does not fit together."""
        self.prm.check()
        if self.prm.warm_up is None:
            raise UsageError("prm.warm_up is null: the policy would know nothing")
        if not len(given(self.task).heldout()):
            raise UsageError("the task holds no problem out: there would be nothing to search")

    def run(self, run: Runtime) -> None:
        """Run the stages and leave the report."""
        run.restore({})  # a run of stages has no checkpoint of its own, only records to make again
        maker = replace(self.prm, seed=self.seed)
        assert maker.warm_up is not None
        lm = maker.model.load(maker.data.texts(2_000), self.seed)
        maker.warm_up.run(lm, run, self.seed)
        lm.model.to(run.device)
        prm, judged = _process_reward_model(maker, lm, run)
        drawn = self._drawn(lm, prm, run)
        counts = sorted(self.counts)
        points = [drawn.majority(n) for n in counts]
        others = [
            drawn.best_of(n, reduce, f"best of n, {name}")
            for name, reduce in self.reductions.items()
            for n in counts
            if n > 1
        ]
        for number, (name, search) in enumerate(self.searches.items(), start=4):
            others += self._searched(f"{number}-{name}", name, search, lm, prm, run)
        self._report(drawn, points, others, judged, run)

    def _prompts(self) -> Sequence[Prompt]:
        return given(self.task).heldout()[: self.problems]

    def _drawn(self, lm: LanguageModel, prm: ProcessRewardModel, run: Runtime) -> Drawn:
        """Draw and judge the completions for votes and best of n, each once."""
        with run.stage("3-samples") as stage:
            kept = _read(stage, "samples.json")
            if kept is None:
                judge = Evaluator(group_size=self.samples, sampling=self.sampling, greedy=False)
                found = judge.judge(lm, self._prompts(), given(self.task).reward, stage)
                share = [found.samples[i] for i in stage.share(len(found.samples))]
                mine = step_scores(prm, lm.tokenizer, [x for row in share for x in row])
                steps = stage.gather_objects(mine)
                starts = range(0, len(steps), self.samples)
                kept = Drawn.of(found, [steps[i : i + self.samples] for i in starts]).rows()
                _write(stage, "samples.json", kept)
            return Drawn.read(kept)

    def _searched(
        self,
        folder: str,
        name: str,
        search: StepSearch,
        lm: LanguageModel,
        prm: ProcessRewardModel,
        run: Runtime,
    ) -> list[Point]:
        """Return the points of a search, one for each budget; what is kept is not done again."""
        prompts, sampling = self._prompts(), stopping(self.sampling, lm)
        points = []
        with run.stage(folder, to_yaml(search)) as stage:
            for budget in search.budgets:
                file = f"budget-{budget}.json"
                kept = _read(stage, file)
                if kept is None:
                    share = stage.share(len(prompts))
                    found = search_all(
                        search,
                        budget,
                        lm,
                        Engine(lm.model),
                        prm,
                        [prompts[i] for i in share],
                        sampling,
                        step_tokens=self.step_tokens,
                        seeds=stage.seeds(f"budget {budget}", 0, share),
                    )
                    mine = [
                        self._marked(lm, prompts[i], sampling, x.completion) | {"spent": x.spent}
                        for i, x in zip(share, found, strict=True)
                    ]
                    kept = stage.gather_objects(mine)
                    _write(stage, file, kept)
                right = torch.tensor([float(row["correct"]) for row in kept], dtype=torch.float64)
                spent = torch.tensor([row["spent"] for row in kept])
                points.append(Point(name, f"{budget}", right, spent))
        return points

    def _marked(
        self, lm: LanguageModel, prompt: Prompt, sampling: Sampling, completion: Sequence[int]
    ) -> dict[str, Any]:
        """Return a completion with its mark, as evaluations mark it."""
        reward = given(self.task).reward
        asked = Verified(
            tokenizer=lm.tokenizer,
            prompt=tuple(encode_prompt(lm.tokenizer, prompt)),
            answer=prompt.answer,
            reward=reward,
            stop_tokens=sampling.stop_tokens,
            max_tokens=sampling.max_tokens,
        )
        sample = asked.sample(tuple(completion))
        right = checked(reward_name(reward), reward, [sample])[0].item() == 1
        return {"completion": sample.completion, "answer": prompt.answer, "correct": right}

    def _report(
        self,
        drawn: Drawn,
        votes: Sequence[Point],
        others: Sequence[Point],
        judged: Sequence[Mapping[str, object]],
        run: Runtime,
    ) -> None:
        """Leave the tables, the figure and what they say."""
        rows = compared(drawn, others)
        table = Comparison(rows)
        leave_table(table, run)
        auc = "; ".join(f"{x['AUC']} ({x['scores']} against {x['labels']})" for x in judged)
        within = auc_within(drawn, last)
        run.note("What the searches did", account(rows, auc, within, self.samples))
        run.table("Held-out steps", judged)
        run.table("Each search against the vote at equal tokens", table.texts())
        run.table("Votes", Comparison([vote.row() for vote in votes]).texts())
        run.figure("Accuracy against tokens", draw_points([*votes, *others]))
        for step, point in enumerate([*votes, *others]):
            run.log(step, {"accuracy": point.correct.mean().item(), "tokens": point.spent})
        run.print(table.markdown())
        run.print(f"AUC of held-out steps: {auc}; of completions of a problem: {within}.")


def _process_reward_model(
    maker: ProcessRewardJob, lm: LanguageModel, run: Runtime
) -> tuple[ProcessRewardModel, list[Mapping[str, object]]]:
    """Return the process reward model and how it judges; a folder that is whole is taken."""
    with run.stage("2-prm", to_yaml(maker)) as stage:
        kept = _read(stage, "judged.json")
        if kept is not None and stage.output is not None:
            scorer = load_process_reward_model(stage.output / "model")
            scorer.model.to(run.device)
            return scorer, kept
        scorer, rows = maker.train(lm, stage)
        if stage.output is not None:
            folder = stage.output / "model"
            run.on_main(lambda: save_model(scorer.model, scorer.tokenizer, folder))
            _write(stage, "judged.json", rows)
        return scorer, rows


def _read(stage: Runtime, name: str) -> Any:  # noqa: ANN401 whatever was kept
    """Return what an interrupted run kept under a name, on every process; None without it."""
    file = None if stage.output is None else stage.output / name
    there = stage.resume and file is not None and stage.is_main and file.is_file()
    return stage.gather_objects([_load(file) if there else None])[0]


def _load(file: Path | None) -> Any:  # noqa: ANN401 whatever was kept
    return None if file is None else json.loads(file.read_text(encoding="utf-8"))


def _write(stage: Runtime, name: str, value: object) -> None:
    if stage.output is None:
        return
    file, text = stage.output / name, json.dumps(value)
    stage.on_main(lambda: atomic_write(file, text + "\n"))
