"""Labels of steps without a human: how often completions that go on from a step turn out right."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from launch import streams
from posttrain.data.chat import encode_prompt
from posttrain.data.step_labels import StepDocument, step_ends
from posttrain.data.tasks.base import Prompt
from posttrain.eval.run import Generates
from posttrain.rewards.base import Reward
from posttrain.rewards.checking import checked, reward_name
from posttrain.rollout.batch import Sampling
from posttrain.search.language import Tokens, Verified, finished, rollout_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["RolledOut", "hard", "label_steps", "soft"]


@dataclass(frozen=True, slots=True)
class RolledOut:
    """A sampled completion, cut into steps, with a label for each."""

    prompt: Prompt
    prompt_tokens: Tokens
    tokens: Tokens
    """The completion."""
    ends: tuple[int, ...]
    """Places in ``tokens``: each step's last token."""
    labels: tuple[float, ...]

    def document(self) -> StepDocument:
        """Return it as a process reward model learns from it, token by token."""
        start = len(self.prompt_tokens)
        places = [start + end for end in self.ends]
        return StepDocument([*self.prompt_tokens, *self.tokens], places, self.labels)

    def steps(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Return the text of each step without special tokens; line breaks are part of it."""
        starts = [0, *(end + 1 for end in self.ends)]
        parts = [self.tokens[a : b + 1] for a, b in zip(starts, self.ends, strict=False)]
        return [tokenizer.decode(list(part), skip_special_tokens=True) for part in parts]

    def row(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
        """Return it as a line of JSON that ``load_solutions`` reads.

        The steps are lines of text there: a token that ends a step may hold the next one's first
        letters as well. Blank lines are left out.
        """
        texts, labels = [""], [self.labels[-1]]
        for step, label in zip(self.steps(tokenizer), self.labels, strict=True):
            first, *rest = step.split("\n")
            texts[-1] += first
            labels[len(labels) - 1 :] = [label] * len(rest) + [self.labels[-1]]
            texts += rest
        kept = [i for i, text in enumerate(texts) if text.strip()]
        messages = self.prompt.messages
        asked: dict[str, object] = {"text": self.prompt.text}
        if messages is not None:
            asked = {"messages": [dict(message) for message in messages]}
        return {
            **asked,
            "steps": [texts[i] for i in kept],
            "labels": [labels[i] for i in kept],
        }


def soft(rewards: Sequence[float]) -> float:
    """Return the share of right rollouts, Math-Shepherd's soft estimate (eq. 4).

    >>> soft([1.0, 0.0, 0.0, 0.0])
    0.25
    """
    return sum(reward > 0.5 for reward in rewards) / len(rewards)


def hard(rewards: Sequence[float]) -> float:
    """Return 1 if any rollout is right, else 0, Math-Shepherd's hard estimate (eq. 3).

    >>> hard([1.0, 0.0, 0.0, 0.0])
    1.0
    """
    return float(any(reward > 0.5 for reward in rewards))


def label_steps(
    engine: Generates,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    reward: Reward,
    sampling: Sampling,
    *,
    breaks: Collection[int],
    rollouts: int = 8,
    completions: int = 1,
    estimate: Callable[[Sequence[float]], float] = soft,
    seeds: Sequence[int] | None = None,
) -> list[RolledOut]:
    """Sample solutions and label each of their steps (Wang et al. 2023, arXiv:2312.08935, 3.2).

    A step's label is the estimate over completions that go on from it; that of the last step is
    its own. All are drawn in two batches: the solutions, then what goes on from each different
    step. Steps end at line breaks.

    Args:
        engine: Draws solutions and rollouts.
        tokenizer: Of its model.
        prompts: With the answers that ``reward`` compares with.
        reward: Pays more than a half for what is right.
        sampling: ``max_tokens`` of a whole solution, and its stop tokens.
        breaks: Tokens that end a step, such as ``line_breaks`` finds.
        rollouts: Completions from each step.
        completions: Solutions of each prompt.
        estimate: ``soft``, ``hard``, or a function of your own of a step's rewards.
        seeds: One for each prompt; 0, 1, ... by default. What is drawn for a prompt depends on it
            alone.

    Returns:
        ``len(prompts) * completions`` solutions, those of a prompt side by side.

    Raises:
        ValueError: ``rollouts`` or ``completions`` is below 1, or no token stops a solution.
    """
    for name, count in (("rollouts", rollouts), ("completions", completions)):
        if count < 1:
            raise ValueError(f"{name}={count}: give at least 1")
    if not sampling.stop_tokens:
        raise ValueError("sampling.stop_tokens is empty: name the tokens that end a solution")
    keys = list(range(len(prompts))) if seeds is None else list(seeds)
    asked = [tuple(encode_prompt(tokenizer, prompt)) for prompt in prompts]
    solutions = finished(
        engine,
        sampling,
        [(prompt, ()) for prompt in asked],
        completions,
        seeds=[streams.key(seed, "solutions") for seed in keys],
    )
    states: dict[tuple[int, Tokens], None] = {}  # ordered, and each once
    for p, of_prompt in enumerate(solutions):
        for tokens in of_prompt:
            states |= {(p, tokens[: end + 1]): None for end in step_ends(tokens, breaks)}
    labels = _estimates(
        engine,
        tokenizer,
        list(zip(prompts, asked, keys, strict=True)),
        reward,
        sampling,
        list(states),
        rollouts,
        estimate,
    )
    found = []
    for p, of_prompt in enumerate(solutions):
        for tokens in of_prompt:
            places = tuple(step_ends(tokens, breaks))
            own = tuple(labels[p, tokens[: end + 1]] for end in places)
            found.append(RolledOut(prompts[p], asked[p], tokens, places, own))
    return found


def _estimates(
    engine: Generates,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[tuple[Prompt, Tokens, int]],
    reward: Reward,
    sampling: Sampling,
    states: Sequence[tuple[int, Tokens]],
    rollouts: int,
    estimate: Callable[[Sequence[float]], float],
) -> dict[tuple[int, Tokens], float]:
    """Return the label of each state: the number of its prompt, and what is written."""
    ends = finished(
        engine,
        sampling,
        [(asked[p][1], state) for p, state in states],
        rollouts,
        seeds=[rollout_seed(asked[p][2], state) for p, state in states],
    )
    judges = [
        Verified(
            tokenizer=tokenizer,
            prompt=tokens,
            answer=prompt.answer,
            reward=reward,
            stop_tokens=sampling.stop_tokens,
            max_tokens=sampling.max_tokens,
        )
        for prompt, tokens, _ in asked
    ]
    samples = [
        judges[p].sample(end) for (p, _), own in zip(states, ends, strict=True) for end in own
    ]
    scores = checked(reward_name(reward), reward, samples).tolist()
    bounds = list(accumulate((len(own) for own in ends), initial=0))
    return {
        state: estimate(scores[start:stop])
        for state, (start, stop) in zip(states, pairwise(bounds), strict=True)
    }
