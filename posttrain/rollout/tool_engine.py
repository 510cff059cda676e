"""Completions that call a tool while they are written: several turns, and every token once.

What was sampled stays as it was sampled: text is decoded to look for calls alone, and never encoded
again. A tool's output is encoded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from launch import streams
from launch.errors import UsageError
from posttrain.decoder_positions import most_positions
from posttrain.models import LanguageModel
from posttrain.rollout.batch import Rollout, Sampling
from posttrain.tools.use import ToolUse, closing_tokens

if TYPE_CHECKING:
    from posttrain.eval.run import Generates

__all__ = ["ToolEngine"]


class ToolEngine:
    """An engine whose completions call a tool; it stands wherever an engine does.

    It samples until a call is closed, puts the tool's output behind it, and goes on. All
    completions that have not ended go on together, in one call of ``engine``, which runs their
    prompts and what is written so far anew.

    The completion ends, with finish reason ``"length"``, at a call beyond ``max_calls``, and at one
    whose output would leave no room for another token within ``max_tokens``. So an output is always
    followed by a sampled token, and what ends at ``max_tokens`` within a call makes no call.

    The mask is False on outputs, as on what a search engine returns in Search-R1 (Jin et al. 2025,
    arXiv:2503.09516).

    Args:
        engine: Samples the tokens between.
        lm: Its tokenizer decodes calls and encodes outputs.
        use: The tool and its tags.

    Raises:
        UsageError: No token of the tokenizer can end a call.
    """

    def __init__(self, engine: Generates, lm: LanguageModel, use: ToolUse) -> None:
        self.engine, self.tokenizer, self.use = engine, lm.tokenizer, use
        self.padding = lm.pad_token
        self.positions = most_positions(lm.model.config)
        self.closing = closing_tokens(lm.tokenizer, use.closing)
        if not self.closing:
            raise UsageError(
                f"no token of the tokenizer can end the tag {use.closing!r}, so no call would be "
                "seen: choose tags that the tokenizer can write"
            )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        group_size: int = 1,
        *,
        seeds: Sequence[int] | None = None,
    ) -> Rollout:
        """Sample ``group_size`` completions of each prompt, as ``Engine.generate`` does.

        A completion's first turn is what the engine draws with the prompt's seed, so that without a
        call it is the engine's own. Each later turn has a seed of the prompt's seed, the turn and
        g. Nothing depends on the other completions.

        Args:
            prompts: P sequences of token ids, none of them empty.
            sampling: ``max_tokens`` counts tool output too.
            group_size: G.
            seeds: One integer a prompt; 0, 1, ... by default.
        """
        seeds = range(len(prompts)) if seeds is None else seeds
        stops = tuple(dict.fromkeys((*sampling.stop_tokens, *self.closing)))
        drawn = self.engine.generate(
            prompts, replace(sampling, stop_tokens=stops), group_size, seeds=seeds
        )
        rows = [
            _Row([int(token) for token in prompt], seed, g, sampling.max_tokens)
            for prompt, seed in zip(prompts, seeds, strict=True)
            for g in range(group_size)
        ]
        self._take(rows, drawn, sampling)
        device, turn = drawn.tokens.device, 0
        same = drawn.tempered_log_probs is drawn.old_log_probs
        while live := [row for row in rows if not row.finish_reason]:
            turn += 1
            for part in _together(live, self.positions):
                drawn = self.engine.generate(
                    [row.prompt + row.written for row in part],
                    replace(sampling, max_tokens=part[0].room, stop_tokens=stops),
                    seeds=[streams.key(row.seed, "turn", turn, row.index) for row in part],
                )
                self._take(part, drawn, sampling)
        return _assembled(rows, self.padding, device, same)

    def _take(self, rows: Sequence[_Row], drawn: Rollout, sampling: Sampling) -> None:
        """Append what was drawn to each row, and the tool's output where that ends a call."""
        sampled = drawn.completions()
        mask, old, tempered = (
            x.cpu() for x in (drawn.mask, drawn.old_log_probs, drawn.tempered_log_probs)
        )
        for i, row in enumerate(rows):
            tokens = sampled[i][: row.room]  # it may have been drawn beside rows with more room
            figures = torch.stack([x[i][mask[i]] for x in (mask.float(), old, tempered)])
            row.append(tokens, figures[:, : len(tokens)])
            if row.written[-1] in sampling.stop_tokens:
                row.finish_reason = "stop"
            elif row.room == 0:
                row.finish_reason = "length"
            else:
                self._answer(row)

    def _answer(self, row: _Row) -> None:
        """Put the tool's output behind the call that the row ends with, if it does."""
        text = self.tokenizer.decode(row.written[row.since :], skip_special_tokens=False)
        request = self.use.request(text)
        if request is None:
            row.since = len(row.written) if self.use.closing in text else row.since
            return
        if row.calls == self.use.max_calls:
            row.finish_reason = "length"
            return
        output = self.use.tool(request)
        tokens = self.tokenizer.encode(self.use.written(output), add_special_tokens=False)
        if len(tokens) >= row.room:
            row.finish_reason = "length"
            return
        row.append(tokens, torch.zeros(3, len(tokens)))
        row.since = len(row.written)
        row.calls += 1
        row.errors += output.failed


@dataclass(slots=True, eq=False)
class _Row:
    """A completion that is being written."""

    prompt: list[int]
    seed: int
    index: int
    """g, in its group."""
    room: int
    """Tokens that it may still get."""
    written: list[int] = field(default_factory=list)
    """What follows the prompt."""
    figures: list[Tensor] = field(default_factory=list)
    """``(3, n)`` each: mask, old and tempered log-probs of the n tokens that were appended."""
    since: int = 0
    """Where in ``written`` the text begins that may hold the next call."""
    calls: int = 0
    errors: int = 0
    finish_reason: str = ""

    def append(self, tokens: Sequence[int], figures: Tensor) -> None:
        """Write tokens."""
        self.written += tokens
        self.figures.append(figures)
        self.room -= len(tokens)


def _together(rows: Sequence[_Row], positions: int | None) -> Iterator[list[_Row]]:
    """Split rows into parts that go on in one call, the one with the most room first.

    A call has one ``max_tokens``, the most that any of its rows has room for. That of a short row
    may be beyond the model's positions for a long one, which then goes on by itself.
    """
    rest = sorted(rows, key=lambda row: -row.room)
    while rest:
        most = rest[0].room
        fits = [
            positions is None or len(row.prompt) + len(row.written) + most <= positions
            for row in rest
        ]
        fits[0] = True
        yield [row for row, fit in zip(rest, fits, strict=True) if fit]
        rest = [row for row, fit in zip(rest, fits, strict=True) if not fit]


def _assembled(
    rows: Sequence[_Row], padding: int, device: torch.device, same_log_probs: bool
) -> Rollout:
    """Put prompts and what was written behind them side by side."""
    width = max((len(row.prompt) + len(row.written) for row in rows), default=0)
    tokens = torch.full((len(rows), width), padding, dtype=torch.int64)
    figures = torch.zeros(3, len(rows), width)
    for i, row in enumerate(rows):
        start, end = len(row.prompt), len(row.prompt) + len(row.written)
        tokens[i, :end] = torch.tensor(row.prompt + row.written)
        figures[:, i, start:end] = torch.cat(row.figures, 1)
    mask, old, tempered = figures.to(device)
    return Rollout(
        tokens=tokens.to(device),
        mask=mask.bool(),
        old_log_probs=old,
        tempered_log_probs=old if same_log_probs else tempered,
        finish_reasons=[row.finish_reason for row in rows],
        tool_calls=[row.calls for row in rows],
        tool_errors=[row.errors for row in rows],
    )
