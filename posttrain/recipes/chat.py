"""Talk to a model in the terminal, as a job."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import ClassVar

from launch.config import resumable
from launch.errors import UsageError
from launch.runtime import Runtime, RuntimeConfig
from posttrain.data.chat import encode_prompt
from posttrain.data.tasks import Prompt
from posttrain.recipes.jobs import GIVE_TEMPLATE, check_template
from posttrain.recipes.sources import ModelSource, Pretrained, parse_model
from posttrain.rollout import Engine, Sampling
from posttrain.trainers.rollouts import stopping

__all__ = ["ChatJob"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatJob:
    """Reads a line, answers, remembers; an empty line forgets, end of input ends."""

    leaves_run: ClassVar[bool] = False
    model: ModelSource = field(default_factory=Pretrained, metadata={"parse": parse_model})
    system: str = ""
    """The system prompt; empty leaves it out."""
    remember: bool = True
    """Keep the turns before; False answers each line on its own."""
    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=512, temperature=0.7))
    """The model's own stop tokens are used where none are given."""
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def check(self) -> None:
        """Raise UsageError for a missing or broken model."""
        self.model.check()
        check_template(self.model, GIVE_TEMPLATE)

    def run(self, run: Runtime) -> None:
        """Answer until the input ends."""
        if run.world_size > 1:
            raise UsageError("chat reads one keyboard: run it in one process")
        lm = self.model.load((), self.seed)
        lm.model.to(run.device)
        engine, sampling = Engine(lm.model), stopping(self.sampling, lm)
        start = [{"role": "system", "content": self.system}] if self.system else []
        messages, turn = list(start), 0
        while (line := read_line()) is not None:
            if not line.strip():
                messages = list(start)
                continue
            turn += 1
            messages.append({"role": "user", "content": line})
            tokens = encode_prompt(lm.tokenizer, Prompt(messages=tuple(messages), answer=""))
            seeds = run.seeds("chat", turn, [0])
            (answer,) = engine.generate([tokens], sampling, seeds=seeds).completions()
            shown = [token for token in answer if token not in sampling.stop_tokens]
            text = lm.tokenizer.decode(shown)
            run.print(text)
            messages.append({"role": "assistant", "content": text})
            if not self.remember:
                messages = list(start)


def read_line() -> str | None:
    """Return a line of the user's, or None at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
