"""A teacher answers prompts, and what is right, distinct and fit becomes training data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from launch.errors import UsageError
from launch.metrics import Mean
from launch.runtime import Runtime
from posttrain.data.outputs import Output
from posttrain.data.rejection import Filter, merge, select
from posttrain.data.tasks import Prompt
from posttrain.models import LanguageModel
from posttrain.rewards import Reward, Sample
from posttrain.trainers.rounds import RoundsConfig, sampled_rounds, summed_counts
from posttrain.vocabulary import Vocabulary, model_vocabulary

__all__ = ["OutputsConfig", "teacher_outputs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputsConfig(RoundsConfig):
    """Rejection sampling of a teacher (DeepSeek-R1, arXiv:2501.12948, section 2.3.3 and 2.4)."""

    most_per_prompt: int = 1
    """Most completions of a prompt that are kept."""
    keep: tuple[Filter, ...] = ()
    """What right completions have to pass besides, such as ``OneScript`` and ``Within``."""

    def __post_init__(self) -> None:
        RoundsConfig.__post_init__(self)
        if self.most_per_prompt < 1:
            raise ValueError(f"most_per_prompt={self.most_per_prompt}: give at least 1")


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
    teacher.model.eval()
    kept = _Kept()
    for step, found, asked in sampled_rounds(
        cfg, teacher, prompts, reward, run, kept=kept, headline=("kept", "right")
    ):
        chosen = select(
            found.samples,
            found.scores,
            most_per_prompt=cfg.most_per_prompt,
            seed=run.seed,
            keep=cfg.keep,
            right=cfg.right,
        )
        mine = [(asked[i], found.samples[i]) for i in chosen.kept]
        kept.add(run.gather_objects(mine), summed_counts(chosen.counts, run))
        rows = len(found.samples)
        figures = {
            "right": Mean((found.scores >= cfg.right).sum(), rows),
            "kept": Mean(len(mine), rows),
            "length/mean": Mean(sum(len(s.tokens) for s in found.samples), rows),
        }
        run.log(step, {**figures, "outputs": float(len(kept.samples))})
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
        rows = [[i, s.prompt, s.completion, str(s.answer)] for i, s in self.samples]  # plain
        return {"rows": rows, "counts": dict(self.counts)}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self.samples = [
            (index, Sample(prompt=prompt, completion=completion, answer=answer))
            for index, prompt, completion, answer in state_dict["rows"]
        ]
        self.counts = Counter(state_dict["counts"])


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
