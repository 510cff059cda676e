"""Sampling through a model's own ``forward``, for models that the decoder does not know.

Only prompts of equal length run together, so that no model ever sees padding; what a row computes
cannot depend on its neighbours.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from posttrain.decoder import Untyped
from posttrain.decoder_positions import forget_lengths, same_frequencies_up_to
from posttrain.rollout.sampling import draw

__all__ = ["Portable", "evaluating"]

_WORTH = 0.75


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout and the like off inside the block; afterwards every module is as before."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in before:
            module.training = training


class Portable:
    """Completions of prompts of equal length; slot ``p * G + g`` is completion g of prompt p.

    A model without a cache that can be reordered runs all its tokens again at every step; so does
    one whose rotary frequencies change on the way, since cached keys were turned by the old ones.
    """

    draw = staticmethod(draw)

    def __init__(
        self, model: Untyped, prompts: Sequence[Tensor], group_size: int, max_tokens: int
    ) -> None:
        parameters = inspect.signature(model.forward).parameters
        self.model = model
        self.device = next(model.parameters()).device
        self.tokens = torch.stack(list(prompts)).to(self.device)
        self.group = group_size
        same_up_to = same_frequencies_up_to(model.config)
        if same_up_to is not None:
            forget_lengths(model)
        self.changes = same_up_to is not None and self.tokens.shape[1] + max_tokens > same_up_to
        self.caches = "use_cache" in parameters and "past_key_values" in parameters
        self.caches = self.caches and not self.changes
        self.named = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self.uncached = {"use_cache": False} if "use_cache" in parameters else {}
        self.cache: Untyped = None

    def start(self) -> Tensor:
        """Run the prompts; one pass for a prompt where its cache can be repeated."""
        logits = self._run(self.tokens)
        if self.cache is None:
            self.caches = False
        elif not _reorders(self.cache):
            self.caches, self.cache = False, None
        elif self.group > 1:
            self.cache.batch_repeat_interleave(self.group)
        self.tokens = self.tokens.repeat_interleave(self.group, 0)
        return logits.repeat_interleave(self.group, 0)

    def advance(self, tokens: Tensor) -> Tensor:
        """Append a token to every slot; return the next logits."""
        self.tokens = torch.cat((self.tokens, tokens[:, None]), 1)
        return self._run(tokens[:, None] if self.caches else self.tokens)

    def _run(self, tokens: Tensor) -> Tensor:
        if self.changes:
            forget_lengths(self.model)
        if not self.caches:
            output = self.model(tokens, **self.named, **self.uncached)
        else:
            output = self.model(tokens, past_key_values=self.cache, use_cache=True, **self.named)
            self.cache = output.past_key_values
        logits = output if isinstance(output, Tensor) else output.logits
        return logits[:, -1].float()

    def compact(self, alive: Tensor) -> Tensor | None:
        """Let finished slots go once a quarter of them has finished."""
        if int(alive.sum()) > _WORTH * len(alive):
            return None
        slots = alive.nonzero().view(-1)
        self.tokens = self.tokens[slots]
        if self.cache is not None:
            self.cache.batch_select_indices(slots)
        return slots


def _reorders(cache: Untyped) -> bool:
    return hasattr(cache, "batch_repeat_interleave") and hasattr(cache, "batch_select_indices")
