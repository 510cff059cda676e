"""Rollouts: what the current policy did in its environments, and what a critic makes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from launch.backends import unwrap
from launch.batch import TensorBatch, shaped
from rl.action_laws import check_action_masks, mask_logits
from rl.actor_critic import ActorCritic
from rl.agent import AllEnvs
from rl.estimators import generalized_advantages
from rl.fast_networks import Forward
from rl.normalisation import ObservationNormaliser
from rl.observations import TensorObservations, map_tensors, to_tensors
from rl.sampled_actions import Law
from rl.spaces import Observations, Space, copy_rows, empty_rows, leaves, row, write_row

__all__ = ["Player", "Rollout", "Steps", "evaluate_actions"]

_AT_ONCE = 4_096
"""Observations of one forward pass without gradients."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Steps(TensorBatch):
    """Steps of a rollout with what they are trained towards."""

    index: Tensor = shaped("B")
    """int64, rows of the rollout."""
    log_probs: Tensor = shaped("B")
    """Nats, under the policy that acted."""
    values: Tensor = shaped("B")
    """Of the critic before the update."""
    advantages: Tensor = shaped("B")
    targets: Tensor = shaped("B")
    """Of the critic: advantage + value."""


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """T steps of B environments; step t of environment b is row ``t * B + b`` of what is flat.

    What the network reads is on its device, the rest on the CPU.
    """

    raw: Observations
    """Flat, as the environments gave them."""
    observations: TensorObservations
    """Flat, as the network sees them."""
    actions: Tensor
    """Flat, as drawn."""
    action_masks: Tensor | None
    """Flat, ``(T B, A)``."""
    log_probs: Tensor
    """Flat, nats of the actions, under the policy that drew them."""
    values: Tensor
    """``(B, T)``, of the observations."""
    next_values: Tensor
    """``(B, T)``, of what the actions led to."""
    rewards: Tensor
    """``(B, T)``."""
    terminated: Tensor
    """``(B, T)`` bool."""
    truncated: Tensor
    """``(B, T)`` bool."""
    valid: Tensor
    """``(B, T)`` bool; False was no step, see ``EnvStep``."""

    @property
    def rows(self) -> Tensor:
        """The flat indices of the steps that may be trained on."""
        return self.valid.t().flatten().nonzero().squeeze(1)

    def steps(self, discount: float, trace: float) -> Steps:
        """Return all steps, also those that are not valid, with their generalised advantages."""
        # Whatever the last trace of a segment is, it multiplies nothing.
        cut = self.terminated | self.truncated | ~self.valid
        advantages = generalized_advantages(
            self.rewards,
            self.values,
            self.next_values,
            torch.where(self.terminated, 0.0, discount),
            torch.where(cut, 0.0, trace),
        )
        values, advantages = self.values.t().flatten(), advantages.t().flatten()
        return Steps(
            index=torch.arange(len(values)),
            log_probs=self.log_probs,
            values=values,
            advantages=advantages,
            targets=advantages + values,
        )


def evaluate_actions(
    model: nn.Module, law: Law, rollout: Rollout, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probs, entropies and values of some rows of a rollout, each ``(B,)``."""
    outputs, values = model(map_tensors(lambda x: x[index], rollout.observations))
    if rollout.action_masks is not None:
        outputs = mask_logits(outputs, rollout.action_masks[index])
    network = cast(ActorCritic, unwrap(model))
    log_probs, entropies = law.log_probs(network, outputs.float(), rollout.actions[index])
    return log_probs, entropies, values.float()


@dataclass(slots=True)
class _Record:
    """What happened, step by step."""

    observations: list[Observations]
    """T + 1 of them."""
    actions: list[np.ndarray]
    masks: list[np.ndarray]
    steps: list[tuple[np.ndarray, ...]]
    """Rewards, terminated, truncated, valid."""
    finals: list[tuple[np.ndarray, Observations]]
    """Flat rows whose episode was cut off, and the observations that it ended with."""


class Player:
    """Acts with the current policy and values what it saw.

    Args:
        envs: Acted in, from where they are.
        model: Actor and critic, as the runtime has prepared it.
        law: Of the actions.
        scaling: Of the observations; it takes in nothing here.
        most: Environments of the process that has most, so that all call the model equally often.
    """

    def __init__(
        self,
        envs: AllEnvs,
        model: nn.Module,
        law: Law,
        scaling: ObservationNormaliser | None,
        *,
        most: int,
    ) -> None:
        self.envs, self.model, self.law, self.scaling = envs, model, law, scaling
        self.network = cast(ActorCritic, unwrap(model))
        self.most = most
        self._forward = Forward(self.network.actor)

    def play(self, draws: np.ndarray, *, whole: bool = False) -> Rollout:
        """Act for T steps; return them with raw rewards.

        Args:
            draws: ``(T, B, ...)``, random numbers for the law.
            whole: Stop as soon as every environment has ended an episode. What still runs after T
                steps is cut off there.
        """
        record = self._act(draws, whole)
        envs = self.envs.envs
        raw = _joined(envs.observation_space, record.observations)
        rewards, terminated, truncated, valid = (
            torch.from_numpy(np.stack(x, axis=1)) for x in zip(*record.steps, strict=True)
        )
        terminated, truncated = terminated & valid, truncated & valid
        if whole:
            truncated[:, -1] |= valid[:, -1] & ~terminated[:, -1]
        b, t = rewards.shape
        observations = self._inputs(raw)
        seen = _part(observations, slice(t * b))
        last = _part(observations, slice(t * b, None))
        actions = torch.from_numpy(np.concatenate(record.actions)).to(self._device)
        masks = None
        if record.masks:
            masks = torch.from_numpy(np.concatenate(record.masks)).to(self._device)
        log_probs, values = self._evaluate(seen, actions, masks, t)
        next_values = torch.cat([values[b:], self._values(last)])
        for rows, finals in record.finals:
            next_values[torch.from_numpy(rows)] = self._values(self._inputs(finals))
        return Rollout(
            raw=row(raw, np.arange(t * b)),
            observations=seen,
            actions=actions,
            action_masks=masks,
            log_probs=log_probs,
            values=values.view(t, b).t(),
            next_values=next_values.view(t, b).t(),
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            valid=valid,
        )

    def _act(self, draws: np.ndarray, whole: bool) -> _Record:
        record, envs, b = _Record([], [], [], [], []), self.envs.envs, self.envs.envs.count
        ended = np.zeros(b, np.bool_)
        for t, numbers in enumerate(draws):
            observations = self.envs.observations
            record.observations.append(copy_rows(observations))
            outputs = self._forward(self._scaled(observations))
            masks = envs.action_masks()
            if masks is not None:
                masks = check_action_masks(masks, *outputs.shape)
                record.masks.append(masks)
                outputs = mask_logits(outputs, masks)
            drawn, taken = self.law.sample(self.network, outputs, numbers)
            step = envs.step(taken)
            self.envs.observations = step.observations
            record.actions.append(drawn)
            record.steps.append((step.rewards, step.terminated, step.truncated, step.valid))
            cut = np.flatnonzero(step.truncated & ~step.terminated & step.valid)
            if len(cut):
                record.finals.append((t * b + cut, row(step.next_observations, cut)))
            if whole:
                ended |= step.terminated | step.truncated
                if ended.all():
                    break
        record.observations.append(copy_rows(self.envs.observations))
        return record

    @torch.no_grad()
    def _evaluate(
        self, observations: TensorObservations, actions: Tensor, masks: Tensor | None, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Return log-probs and values of all rows, on the CPU; in the run's precision."""
        parts = max(1, math.ceil(steps * self.most / _AT_ONCE))
        found = []
        size = math.ceil(len(actions) / parts)
        for i in range(parts):
            part = slice(i * size, (i + 1) * size)
            outputs, values = self.model(_part(observations, part))
            if masks is not None:
                outputs = mask_logits(outputs, masks[part])
            log_probs, _ = self.law.log_probs(self.network, outputs.float(), actions[part])
            found.append((log_probs.cpu(), values.float().cpu()))
        log_probs, values = (torch.cat(x) for x in zip(*found, strict=True))
        return log_probs, values

    @torch.no_grad()
    def _values(self, observations: TensorObservations) -> Tensor:
        return self.network.values(observations).float().cpu()

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _scaled(self, observations: Observations) -> Observations:
        if self.scaling is None or not isinstance(observations, np.ndarray):
            return observations
        return self.scaling(observations)

    def _inputs(self, observations: Observations) -> TensorObservations:
        device = self._device
        return map_tensors(lambda x: x.to(device), to_tensors(self._scaled(observations)))


def _part(observations: TensorObservations, part: slice) -> TensorObservations:
    return map_tensors(lambda x: x[part], observations)


def _joined(space: Space, steps: Sequence[Observations]) -> Observations:
    """Return the observations of all steps as one batch."""
    if all(isinstance(x, np.ndarray) for x in steps):
        return np.concatenate(cast("Sequence[np.ndarray]", steps))
    b = len(next(leaves(steps[0]))[1])
    rows = empty_rows(space, len(steps) * b)
    for t, step in enumerate(steps):
        write_row(rows, slice(t * b, (t + 1) * b), step)
    return rows
