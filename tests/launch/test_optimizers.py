import copy

import pytest
import torch
from torch import nn

from launch.muon import Muon
from launch.optimizers import AdamW, Joined, MuonAdamW, OptimizerConfig


class Tied(nn.Module):
    """An embedding that is also the head, a hidden matrix, a norm and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 7, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.norm(self.hidden(self.embed(tokens))))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        tokens = torch.arange(6) + step % 2
        nn.functional.cross_entropy(model(tokens[:-1]), tokens[1:]).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture
def model() -> Tied:
    torch.manual_seed(0)
    return Tied()


def test_adamw_decays_matrices_alone(model: Tied) -> None:
    optimizer = AdamW(weight_decay=0.1).build(model)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay[id(model.hidden.weight)] == 0.1
    assert decay[id(model.hidden.bias)] == decay[id(model.norm.weight)] == 0.0
    assert decay[id(model.embed.weight)] == 0.0  # which is the head as well
    assert len(decay) == len(list(model.parameters()))


def test_a_head_that_is_no_embedding_decays(model: Tied) -> None:
    model.lm_head.weight = nn.Parameter(torch.zeros(7, 4))
    optimizer = MuonAdamW(adamw=AdamW(weight_decay=0.1)).build(model)
    decay = {id(p): g.get("weight_decay") for g in optimizer.param_groups for p in g["params"]}
    assert decay[id(model.lm_head.weight)] == 0.1
    assert decay[id(model.embed.weight)] == 0.0


def test_decay_is_decoupled_from_the_gradient_unlike_adams_l2_penalty() -> None:
    """Two weights of 2 with gradients 1 and 100; rate 0.1, decay 0.5, one step.

    Adam's first step is the rate times the gradient's sign, 0.1. Decoupled, both weights go to
    2 (1 - 0.1 * 0.5) - 0.1 = 1.8. As an L2 penalty the decay is 0.5 * 2 = 1 more gradient, of which
    the sign is the same: both go to 1.9, and the decay is lost.
    """
    found = {}
    for kind in ("decoupled", "penalty"):
        layer = nn.Linear(2, 1, bias=False)
        nn.init.constant_(layer.weight, 2.0)
        optimizer = (
            AdamW(learning_rate=0.1, weight_decay=0.5).build(layer)
            if kind == "decoupled"
            else torch.optim.Adam(layer.parameters(), lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
        )
        layer.weight.grad = torch.tensor([[1.0, 100.0]])
        optimizer.step()
        found[kind] = layer.weight.detach()
    torch.testing.assert_close(found["decoupled"], torch.full((1, 2), 1.8), rtol=1e-6, atol=0)
    torch.testing.assert_close(found["penalty"], torch.full((1, 2), 1.9), rtol=1e-6, atol=0)


def test_where_nothing_decays_there_is_one_group(model: Tied) -> None:
    (group,) = AdamW().build(model).param_groups
    assert len(group["params"]) == len(list(model.parameters()))
    assert group["weight_decay"] == 0.0


def test_muon_takes_hidden_matrices_alone(model: Tied) -> None:
    optimizer = MuonAdamW().build(model)
    assert isinstance(optimizer, Joined)
    muon = [
        p
        for part in optimizer.parts
        if isinstance(part, Muon)
        for g in part.param_groups
        for p in g["params"]
    ]
    assert [id(p) for p in muon] == [id(model.hidden.weight)]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize("config", [AdamW(learning_rate=1e-2), MuonAdamW()])
def test_resumed_optimizer_equals_one_never_stopped(model: Tied, config: OptimizerConfig) -> None:
    optimizer = config.build(model)
    train(model, optimizer, 3)
    resumed = copy.deepcopy(model)
    again = config.build(resumed)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 3)
    train(resumed, again, 3)
    for a, b in zip(model.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_rate_set_on_the_joined_groups_reaches_the_parts(model: Tied) -> None:
    optimizer = MuonAdamW().build(model)
    before = [p.detach().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, 1)
    for a, b in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_optimizer_refuses_a_negative_rate() -> None:
    with pytest.raises(ValueError, match="learning_rate=-1"):
        AdamW(learning_rate=-1)
