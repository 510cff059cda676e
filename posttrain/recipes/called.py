"""Demonstrations of a tool: problems whose answer is looked up by a call, or guessed at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from posttrain.data.chat import encode_prompt
from posttrain.data.packing import Document
from posttrain.data.tasks.base import Prompt, Task
from posttrain.models import LanguageModel
from posttrain.recipes.worked import Made, Mixture, chosen, continuation
from posttrain.tools import ToolUse

__all__ = ["CalledTool"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CalledTool:
    """Demonstrations of a task whose metadata has the ``expression`` that a calculator takes.

    Part of them call the tool and copy its output; the others answer at once, rightly, which a
    model that cannot compute learns as guessing. What the tool says is no target.
    """

    task: Task
    tools: ToolUse = field(default_factory=ToolUse)
    mixture: Mixture = field(default_factory=Mixture)
    """Which of them call; the reasoning that it speaks of is a call here."""

    def check(self) -> None:
        """Nothing can be missing."""

    def texts(self, count: int) -> list[str]:
        """Return problems with their calls and answers."""
        prompts, texts = self.task.train(), []
        for i in range(min(count, len(prompts))):
            asked = [m["content"] for m in prompts[i].messages or ()] or [prompts[i].text or ""]
            texts.append("\n".join([*asked, *self._turns(prompts[i], calls=True)]))
        return texts

    def documents(self, lm: LanguageModel, count: int, seed: int) -> Sequence[Document]:
        """Return ``count`` demonstrations, each piece encoded by itself as in a rollout."""
        prompts, mixture = self.task.train(), self.mixture

        def make(index: int) -> Document:
            prompt = prompts[index % len(prompts)]
            first = index < mixture.first * count
            calls = first or chosen(mixture.reasoning, seed, "calls", index)
            *called, answer = self._turns(prompt, calls=calls)
            pieces = [lm.tokenizer.encode(text, add_special_tokens=False) for text in called]
            pieces = [encode_prompt(lm.tokenizer, prompt), *pieces, continuation(lm, answer)]
            # Prompt, call, output, answer: every second one is the model's.
            mask = [bool(place % 2) for place, piece in enumerate(pieces) for _ in piece]
            return Document(tokens=[token for piece in pieces for token in piece], mask=mask)

        return Made(count, make)

    def _turns(self, prompt: Prompt, *, calls: bool) -> list[str]:
        """Return the answer, or the call, its output and the answer."""
        answer = f"<answer>{prompt.answer}</answer>"
        if not calls:
            return [answer]
        request = str(prompt.metadata["expression"])
        called = f"{self.tools.opening}{request}{self.tools.closing}"
        return [called, self.tools.written(self.tools.tool(request)), answer]
