"""Where the labelled steps of a process reward model come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from launch.errors import UsageError
from launch.runtime import Runtime
from posttrain.data.step_labels import StepDocument, encode_solutions, load_solutions
from posttrain.data.tasks.base import Prompt, Task
from posttrain.models import LanguageModel
from posttrain.recipes.sources import check_heldout, check_share, heldout_lines, worked_texts
from posttrain.recipes.worked import response
from posttrain.rewards.answer import extract_answer
from posttrain.rollout import Engine, Sampling
from posttrain.search.language import line_breaks
from posttrain.search.step_rollouts import RolledOut, label_steps, soft
from posttrain.trainers.rollouts import stopping

__all__ = ["RolledOutSums", "StepFile", "StepSource", "Steps", "parse_steps", "worked_labels"]


@dataclass(frozen=True, slots=True)
class Steps:
    """Solutions to learn from and to judge by."""

    learnt: Sequence[StepDocument]
    heldout: Sequence[StepDocument]
    truth: Sequence[StepDocument] = ()
    """The held-out ones with what their labels should be, where that is known."""


class StepSource(Protocol):
    """Gives a process reward model its steps."""

    def check(self) -> None:
        """Raise UsageError for what can be seen before any work."""
        ...

    def texts(self, count: int) -> list[str]:
        """Return texts that a tokenizer made from nothing learns from."""
        ...

    def steps(self, lm: LanguageModel, run: Runtime, seed: int) -> Steps:
        """Return labelled steps, the same on every process; ``lm`` may draw them."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFile:
    """A JSONL file with ``prompt`` (or ``messages``, ``text``), ``steps`` and ``labels`` a line."""

    path: str = ""
    heldout_share: float = 0.1
    """Share of the lines, the last ones, that is judged by and not learnt from."""

    def __post_init__(self) -> None:
        check_share(self.heldout_share)

    def check(self) -> None:
        """Read the whole file, so that a line that does not parse is named before any work."""
        if not self.path:
            raise UsageError("no data is given: add --data FILE.jsonl")
        lines = len(load_solutions(self.path))
        check_heldout(self.path, lines, self.heldout_share)

    def texts(self, count: int) -> list[str]:
        """Return the first prompts with their solutions."""
        found = load_solutions(self.path)[:count]
        return ["\n".join([*_asked(x.prompt), *x.steps]) for x in found]

    def steps(self, lm: LanguageModel, run: Runtime, seed: int) -> Steps:
        """Return the file's steps, the last lines held out."""
        found = encode_solutions(lm.tokenizer, load_solutions(self.path), lm.stop_tokens[0])
        kept = len(found) - heldout_lines(len(found), self.heldout_share)
        return Steps(found[:kept], found[kept:])


@dataclass(frozen=True, kw_only=True, slots=True)
class RolledOutSums:
    """Worked sums that the model itself writes, labelled by its rollouts.

    Whether a worked line is right is known, so the labels of rollouts can be held to the truth.
    Each run keeps them in ``steps.jsonl``.
    """

    task: Task
    problems: int = 256
    """Solutions that are learnt from, one a problem."""
    rollouts: int = 8
    """Completions from each step."""
    estimate: Callable[[Sequence[float]], float] = soft
    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=64))

    def __post_init__(self) -> None:
        for name in ("problems", "rollouts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")

    def check(self) -> None:
        """Raise UsageError if there are too few problems."""
        if self.problems > len(self.task.train()):
            raise UsageError(
                f"problems={self.problems}, but the task has {len(self.task.train())}: ask for less"
            )
        if not len(self.task.heldout()):
            raise UsageError("the task holds no problem out: there would be nothing to judge by")

    def texts(self, count: int) -> list[str]:
        """Return problems with their worked responses."""
        return worked_texts(self.task, count)

    def steps(self, lm: LanguageModel, run: Runtime, seed: int) -> Steps:
        """Draw solutions with ``lm`` and label them, each process its share."""
        prompts = self.task.train()[: self.problems]
        learnt = self._labelled(lm, prompts, run, "learnt")
        judged = self._labelled(lm, self.task.heldout(), run, "heldout")
        if run.output is not None:
            lines = [json.dumps(x.row(lm.tokenizer)) for x in learnt]
            path = run.output / "steps.jsonl"
            run.on_main(lambda: path.write_text("\n".join(lines) + "\n", encoding="utf-8"))
        return Steps(
            [x.document() for x in learnt],
            [x.document() for x in judged],
            [_true(x, lm) for x in judged],
        )

    def _labelled(
        self, lm: LanguageModel, prompts: Sequence[Prompt], run: Runtime, name: str
    ) -> list[RolledOut]:
        share = run.share(len(prompts))
        found = label_steps(
            Engine(lm.model),
            lm.tokenizer,
            [prompts[i] for i in share],
            self.task.reward,
            stopping(self.sampling, lm),
            breaks=line_breaks(lm.tokenizer),
            rollouts=self.rollouts,
            estimate=self.estimate,
            seeds=run.seeds(f"steps/{name}", 0, share),
        )
        return run.gather_objects(found)


def worked_labels(prompt: Prompt, steps: Sequence[str]) -> list[float]:
    r"""Return for each step of a worked sum whether all is right up to there.

    Whole lines have to be those of ``worked_sum``; the last step has to have the right answer.

    >>> prompt = Prompt(answer="6", text="1 + 2 + 3 =", metadata={"expression": "1 + 2 + 3"})
    >>> worked_labels(prompt, ["<think>1 + 2 = 3\n", "3 + 3 = 7</think>\n", "<answer>6</answer>"])
    [1.0, 0.0, 1.0]
    """
    expected = response(prompt, reasons=True)
    labels, written = [], ""
    for step in steps[:-1]:
        written += step
        whole = written[: written.rfind("\n") + 1]  # the rest is of the next line
        labels.append(float(expected.startswith(whole)))
    return [*labels, float(extract_answer(written + steps[-1]) == prompt.answer)]


def parse_steps(text: str) -> StepSource:
    """Read ``--data TEXT``: a JSONL file of labelled solutions."""
    return StepFile(path=text)


def _true(solution: RolledOut, lm: LanguageModel) -> StepDocument:
    drawn = solution.document()
    labels = worked_labels(solution.prompt, solution.steps(lm.tokenizer))
    return StepDocument(drawn.tokens, drawn.ends, labels)


def _asked(prompt: Prompt) -> list[str]:
    return [m["content"] for m in prompt.messages or ()] or [prompt.text or ""]
