"""Critics of a language model: a head on the policy's own trunk, or a second model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from launch.backends import Routed
from launch.errors import UsageError
from launch.folder import atomic_write
from launch.optimizers import AdamW, Joined, OptimizerConfig
from launch.replacing import folder_to_read
from posttrain.decoder import Untyped
from posttrain.log_probs import token_log_probs_and_entropy
from posttrain.models import LanguageModel, check_model_folder, load_model, save_model
from posttrain.token_values import token_log_probs_and_values, token_values

__all__ = [
    "ActorCritic",
    "Backbone",
    "Critic",
    "SecondModel",
    "SharedTrunk",
    "TwoModels",
    "ValueHead",
    "evaluate",
    "save_critic",
]

HEAD = "value_head.safetensors"


class ActorCritic(nn.Module):
    """A policy and its critic as one module, so that a strategy wraps both together."""

    def __init__(self, policy: nn.Module, critic: nn.Module) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic

    def figures(
        self, tokens: Tensor, mask: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probs, entropies (nats) and values, ``(B, T)`` each, 0 where not wanted."""
        raise NotImplementedError

    def save(self, lm: LanguageModel, folder: Path) -> None:
        """Write the critic into ``folder``."""
        raise NotImplementedError


def evaluate(
    pair: nn.Module, tokens: Tensor, mask: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probs, entropies and values of the wanted tokens, ``(B, T)`` each.

    Args:
        pair: An ``ActorCritic``, or one prepared by a runtime.
        tokens: ``(B, T)`` int64, rows padded on the right.
        mask: ``(B, T)`` bool, the wanted columns; elsewhere all three are 0.
        temperature: Divides the logits.
    """
    if isinstance(pair, Routed):
        return pair.call(evaluate, tokens, mask, temperature=temperature)
    assert isinstance(pair, ActorCritic)
    return pair.figures(tokens, mask, temperature)


class SharedTrunk(ActorCritic):
    """The critic is a head: one pass gives log-probabilities and values."""

    critic: nn.Linear

    def figures(
        self, tokens: Tensor, mask: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probs, entropies and values of one pass."""
        return token_log_probs_and_values(
            self.policy, self.critic, tokens, mask, temperature=temperature
        )

    def save(self, lm: LanguageModel, folder: Path) -> None:
        """Write the head; its trunk is the policy."""
        folder.mkdir(parents=True, exist_ok=True)
        write_head(self.critic, folder)


class Backbone(nn.Module):
    """A causal language model whose last hidden states a head turns into scalars."""

    def __init__(self, model: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return ``(B, T)`` values."""
        return token_values(self.model, self.head, tokens, mask)


class TwoModels(ActorCritic):
    """The critic is a model of its own: neither's gradient disturbs the other."""

    critic: Backbone

    def figures(
        self, tokens: Tensor, mask: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probs and entropies of the policy, and the critic's values."""
        log_probs, entropy = token_log_probs_and_entropy(
            self.policy, tokens, mask, temperature=temperature
        )
        return log_probs, entropy, self.critic(tokens, mask)

    def save(self, lm: LanguageModel, folder: Path) -> None:
        """Write the critic's model as an ordinary Hugging Face folder, with the head beside it."""
        model: Untyped = self.critic.model
        save_model(model, lm.tokenizer, folder)
        write_head(self.critic.head, folder)


class Critic(Protocol):
    """Makes the critic of a policy."""

    @property
    def weight(self) -> float:
        """Of the value loss beside the policy's objective."""
        ...

    def check(self) -> None:
        """Raise UsageError for what can be seen without loading weights."""
        ...

    def build(self, lm: LanguageModel) -> ActorCritic:
        """Return the policy ``lm`` with its critic."""
        ...

    def optimizers(
        self, policy: OptimizerConfig, pair: ActorCritic
    ) -> Mapping[str, torch.optim.Optimizer]:
        """Return the optimizers of both, the policy's first; names are those of the checkpoint."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueHead:
    """A head on the policy's last hidden states; the trunk learns from both losses.

    It costs next to nothing in memory and time. The head starts at 0, so the first values are 0
    and the first gradient of the value loss in the trunk as well.
    """

    weight: float = 0.1
    """Of the value loss beside the policy's objective, since both move the trunk."""
    optimizer: OptimizerConfig = field(default_factory=lambda: AdamW(learning_rate=1e-4))
    """Of the head; the trunk has the policy's."""
    path: str | None = None
    """A folder that a job left as ``critic``; null starts at 0."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight={self.weight}: use a finite number above 0")

    def check(self) -> None:
        """Look for the head's file."""
        if self.path is not None:
            check_head(self.path)

    def build(self, lm: LanguageModel) -> ActorCritic:
        """Return the policy with a head."""
        return SharedTrunk(lm.model, read_head(lm.model, self.path))

    def optimizers(
        self, policy: OptimizerConfig, pair: ActorCritic
    ) -> Mapping[str, torch.optim.Optimizer]:
        """Return one optimizer, because the losses meet in the trunk; its norm is clipped once."""
        return {"optimizer": Joined([policy.build(pair.policy), self.optimizer.build(pair.critic)])}


@dataclass(frozen=True, kw_only=True, slots=True)
class SecondModel:
    """A model of its own with a head; by default it starts as a copy of the policy."""

    path: str | None = None
    """A model folder or hub id of the same tokenizer, such as a job's ``critic``; null copies."""
    optimizer: OptimizerConfig = field(default_factory=lambda: AdamW(learning_rate=1e-5))
    """Of model and head; its gradient norm is clipped by itself."""

    @property
    def weight(self) -> float:
        """1: no parameter sees both losses."""
        return 1.0

    def check(self) -> None:
        """Look at the folder's files; weights are not read."""
        if self.path is not None and folder_to_read(Path(self.path)).exists():
            check_model_folder(self.path)

    def build(self, lm: LanguageModel) -> ActorCritic:
        """Return the policy with a second model.

        Raises:
            UsageError: The folder's model cannot be loaded, or has another tokenizer.
        """
        if self.path is None:
            model, path = copy.deepcopy(lm.model), None
        else:
            other = load_model(self.path)
            if other.tokenizer.get_vocab() != lm.tokenizer.get_vocab():
                raise UsageError(
                    f"{self.path} has another tokenizer than the policy, so it would read other "
                    "words in the same tokens: give a critic of the policy's family"
                )
            model = other.model
            path = self.path if (Path(self.path) / HEAD).is_file() else None
        inputs = model.get_input_embeddings().weight
        for parameter in model.get_output_embeddings().parameters():
            parameter.requires_grad_(parameter is inputs)  # logits are not computed
        return TwoModels(lm.model, Backbone(model, read_head(model, path)))

    def optimizers(
        self, policy: OptimizerConfig, pair: ActorCritic
    ) -> Mapping[str, torch.optim.Optimizer]:
        """Return an optimizer for each model."""
        return {
            "optimizer": policy.build(pair.policy),
            "critic_optimizer": self.optimizer.build(pair.critic),
        }


def check_head(folder: str) -> Path:
    """Return the path of the head in ``folder``, or raise UsageError if there is none."""
    path = Path(folder) / HEAD
    if not path.is_file():
        raise UsageError(f"{folder} has no {HEAD}: give a folder that a job left as critic")
    return path


def read_head(model: Untyped, folder: str | None) -> nn.Linear:
    """Return a head from the model's width to 1: of a folder, or all zeros.

    Raises:
        UsageError: The folder has none, or one of another width.
    """
    width = model.config.hidden_size
    head = nn.utils.skip_init(nn.Linear, width, 1)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    if folder is None:
        return head
    from safetensors.torch import load_file

    weights = load_file(check_head(folder))
    if weights["weight"].shape != head.weight.shape:
        raise UsageError(
            f"{folder} has a head of width {weights['weight'].shape[-1]}, but the model is of "
            f"width {width}: a head belongs to the model it was trained on"
        )
    head.load_state_dict(weights)
    return head


def write_head(head: nn.Linear, folder: Path) -> None:
    """Write the head's weights into ``folder``."""
    from safetensors.torch import save

    weights = {name: x.detach().cpu().contiguous() for name, x in head.state_dict().items()}
    atomic_write(folder / HEAD, save(weights, metadata={"format": "pt"}))


def save_critic(pair: ActorCritic, lm: LanguageModel, folder: Path | str) -> None:
    """Write the critic of ``pair`` where ``ValueHead`` and ``SecondModel`` take it as ``path``."""
    pair.save(lm, Path(folder))
