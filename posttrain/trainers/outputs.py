"""A teacher answers prompts, and what is right, distinct and fit becomes training data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from launch.config import resumable
from launch.errors import UsageError
from launch.metrics import Mean
from launch.runtime import Runtime
from posttrain.data.order import shuffled
from posttrain.data.outputs import Output
from posttrain.data.rejection import Filter, merge, select
from posttrain.data.tasks import Prompt
from posttrain.models import LanguageModel
from posttrain.rewards import Reward, Sample
from posttrain.rollout import Engine, Sampling
from posttrain.trainers.collection import Collector
from posttrain.trainers.policy import check_prompts
from posttrain.trainers.rollouts import sample_rows, stopping
from posttrain.trainers.supervised import check_loop
from posttrain.vocabulary import Vocabulary, model_vocabulary

__all__ = ["OutputsConfig", "teacher_outputs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputsConfig:
    """Rejection sampling of a teacher (DeepSeek-R1, arXiv:2501.12948, section 2.3.3 and 2.4)."""

    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=512))
    """The teacher's own stop tokens are used where none are given."""
    steps: int = 100
    """Rounds of sampling."""
    prompts_per_step: int = 32
    """Over all processes; no prompt comes twice before each has come once."""
    group_size: int = 4
    """Completions of each prompt."""
    most_per_prompt: int = 1
    """Most completions of a prompt that are kept."""
    keep: tuple[Filter, ...] = ()
    """What right completions have to pass besides, such as ``OneScript`` and ``Within``."""
    right: float = 1.0
    """Least reward of a right completion."""
    save_every: int = resumable(0)
    """Steps between checkpoints; 0 saves at the end alone."""
    samples_every: int = resumable(10)
    """Steps between completions written to ``samples.jsonl``; 0 writes none."""
    reward_seconds: float = resumable(600.0)
    """Wall-clock limit of one call of the reward; beyond it the run ends with an error."""
    dynamic_sampling: ClassVar[None] = None

    def __post_init__(self) -> None:
        for name in ("steps", "prompts_per_step", "group_size", "most_per_prompt"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        check_loop(1.0, save_every=self.save_every, samples_every=self.samples_every)
        if not self.reward_seconds > 0:
            raise ValueError(f"reward_seconds={self.reward_seconds}: give a positive limit")


def teacher_outputs(
    cfg: OutputsConfig,
    teacher: LanguageModel,
    prompts: Sequence[Prompt],
    reward: Reward,
    run: Runtime,
    *,
    name: str = "",
) -> list[Output]:
    """Return what ``teacher`` answered right, in the order in which prompts are drawn.

    What is kept does not depend on the number of processes, nor, but for the prompts that are
    drawn, on how they are divided into steps.

    Args:
        cfg: How much is sampled and kept.
        teacher: Is put on the run's device and into evaluation mode.
        prompts: To answer; their answers are for the reward.
        reward: Says what is right.
        run: Its table shows what was dropped and why.
        name: Of the teacher, for whoever reads the outputs.

    Raises:
        UsageError: There are too few prompts, or nothing was kept.
    """
    check_prompts(len(prompts), cfg.prompts_per_step)
    teacher.model.to(run.device).eval()
    engine, sampling = Engine(teacher.model), stopping(cfg.sampling, teacher)
    collector = Collector(cfg, engine, teacher, prompts, sampling, reward, run)
    kept = _Kept()
    for step in run.steps(
        cfg.steps, state={"kept": kept}, save_every=cfg.save_every, headline=("kept", "right")
    ):
        found = collector.collect(step)
        chosen = select(
            found.samples,
            found.scores,
            most_per_prompt=cfg.most_per_prompt,
            seed=run.seed,
            keep=cfg.keep,
            right=cfg.right,
        )
        share = run.share(cfg.prompts_per_step)
        start = (step - 1) * cfg.prompts_per_step + share.start
        order = shuffled(len(prompts), start, len(share), run.seed)
        mine = [(order[i // cfg.group_size], found.samples[i]) for i in chosen.kept]
        kept.add(run.gather_objects(mine), _summed(chosen.counts, run))
        rows = len(found.samples)
        figures = {
            "right": Mean((found.scores >= cfg.right).sum(), rows),
            "kept": Mean(len(mine), rows),
            "length/mean": Mean(sum(len(s.tokens) for s in found.samples), rows),
        }
        run.log(step, {**figures, "outputs": float(len(kept.samples))})
        if cfg.samples_every and (step == 1 or run.due(step, cfg.samples_every)):
            run.samples(step, sample_rows(found.samples[: cfg.group_size], found.scores))
    return _finished(cfg, kept, prompts, model_vocabulary(teacher, name), run)


class _Kept:
    """What was kept so far; saved in a checkpoint as plain values."""

    def __init__(self) -> None:
        self.samples: list[tuple[int, Sample]] = []
        self.counts: Counter[str] = Counter()

    def add(self, samples: Sequence[tuple[int, Sample]], counts: Mapping[str, int]) -> None:
        self.samples += [(index, replace(sample, tokens=())) for index, sample in samples]
        self.counts.update(counts)

    def state_dict(self) -> dict[str, Any]:
        rows = [[i, s.prompt, s.completion, s.answer] for i, s in self.samples]
        return {"rows": rows, "counts": dict(self.counts)}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self.samples = [
            (index, Sample(prompt=prompt, completion=completion, answer=answer))
            for index, prompt, completion, answer in state_dict["rows"]
        ]
        self.counts = Counter(state_dict["counts"])


def _summed(counts: Mapping[str, int], run: Runtime) -> dict[str, int]:
    total = run.sum(torch.tensor(list(counts.values()))).tolist()
    return dict(zip(counts, map(int, total), strict=True))


def _finished(
    cfg: OutputsConfig,
    kept: _Kept,
    prompts: Sequence[Prompt],
    teacher: Vocabulary,
    run: Runtime,
) -> list[Output]:
    """Select once more among all steps, whose prompts may be alike, and say what was dropped."""
    samples = [sample for _, sample in kept.samples]
    again = select(
        samples, [1.0] * len(samples), most_per_prompt=cfg.most_per_prompt, seed=run.seed
    )
    counts = merge(kept.counts, again.counts)
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    if not again.kept:
        raise UsageError(
            f"none of the teacher's completions was kept ({said}): take easier problems, a better "
            "teacher, a larger group_size, or a larger sampling.max_tokens if most are truncated"
        )
    run.table(
        "The teacher's completions",
        [{"what": name, "completions": count} for name, count in counts.items()],
    )
    run.print(f"The teacher's completions: {said}")
    return [
        Output(
            prompt=prompts[kept.samples[i][0]],
            completion=samples[i].completion,
            teacher=teacher.name,
            tokenizer=teacher.fingerprint,
        )
        for i in again.kept
    ]
