"""What reinforcement learning did, in words and exact parts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from posttrain.eval import Evaluation

__all__ = ["Gain", "account", "split_gain"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """A gain in accuracy, split so that the parts add up to it exactly."""

    choosing: float
    """From reasoning more often, at the accuracies that both ways had before."""
    reasoning: float
    """From getting more right while reasoning."""
    answering: float
    """From getting more right when answering at once."""

    @property
    def total(self) -> float:
        """The whole gain."""
        return self.choosing + self.reasoning + self.answering


def split_gain(before: tuple[float, float, float], after: tuple[float, float, float]) -> Gain:
    r"""Split the gain of an accuracy ``s r + (1 - s) d``.

        choosing  = (s' - s) (r - d)
        reasoning = s' (r' - r)
        answering = (1 - s') (d' - d)

    Args:
        before: ``(s, r, d)``: share that reasons, accuracy of those that do and of those that
            do not.
        after: The same, primed.

    >>> gain = split_gain((0.5, 0.5, 0.0), (1.0, 0.75, 0.0))
    >>> gain.choosing, gain.reasoning, gain.answering, gain.total
    (0.25, 0.25, 0.0, 0.5)
    """
    (s, r, d), (s_after, r_after, d_after) = before, after
    return Gain(
        choosing=(s_after - s) * (r - d),
        reasoning=s_after * (r_after - r),
        answering=(1 - s_after) * (d_after - d),
    )


def account(before: Evaluation, after: Evaluation, longer: Evaluation) -> str:
    """Return the report's note: how much of the gain is choosing to reason, and what stays hard."""
    parts_before, parts_after = _parts(before), _parts(after)
    gain = split_gain(parts_before, parts_after)
    far = longer.correct.double().mean().item()
    if far < 0.5:
        beyond = (
            f"Problems longer than any it was trained on stay mostly unsolved: {far:.0%} right."
        )
    else:
        beyond = f"Of problems longer than any it was trained on, it now solves {far:.0%}."
    return (
        f"Accuracy at temperature 1 went from {_share(before.correct)} to {_share(after.correct)} "
        f"of all responses. The share that reasons went from {parts_before[0]:.0%} to "
        f"{parts_after[0]:.0%}; accuracy among responses that reason from {parts_before[1]:.0%} "
        f"to {parts_after[1]:.0%}, among those that answer at once from {parts_before[2]:.0%} to "
        f"{parts_after[2]:.0%}.\n\n"
        f"So of the gain of {gain.total:.3f}, **{gain.choosing:.3f} is choosing to reason** (the "
        f"model could already work the sums, and found that this pays), **{gain.reasoning:.3f} is "
        f"better arithmetic while reasoning**, and {gain.answering:.3f} is answering better at "
        "once. The three add up exactly. Both ways of answering are equally well formed, so the "
        f"format reward does not ask for reasoning; accuracy alone pays for it.\n\n{beyond}"
    )


def _parts(found: Evaluation) -> tuple[float, float, float]:
    reasons = found.reasoning
    return (
        reasons.double().mean().item(),
        _mean(found.correct[reasons]),
        _mean(found.correct[~reasons]),
    )


def _mean(x: Tensor) -> float:
    return x.double().mean().item() if x.numel() else 0.0


def _share(x: Tensor) -> str:
    return f"{_mean(x):.3f}"
