import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from launch.errors import UsageError
from launch.optimizers import AdamW
from posttrain.critics import SecondModel, SharedTrunk, TwoModels, ValueHead, evaluate, save_critic
from posttrain.log_probs import token_log_probs_and_entropy
from posttrain.models import LanguageModel, save_model, tiny_model, train_tokenizer
from posttrain.token_values import token_log_probs_and_values, token_values

TEXTS = [f"{a} plus {b} is {a + b}" for a in range(10) for b in range(10)]


@pytest.fixture(scope="module")
def made() -> LanguageModel:
    return tiny_model(train_tokenizer(TEXTS, vocabulary=80), layers=2, width=16, heads=2, seed=1)


@pytest.fixture
def lm(made: LanguageModel) -> LanguageModel:
    return replace(made, model=copy.deepcopy(made.model))


def drawn_head(width: int = 16) -> nn.Linear:
    head = nn.Linear(width, 1)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        head.weight.copy_(torch.randn(1, width, generator=g))
        head.bias.fill_(0.5)
    return head


def drawn_rows() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(4)
    lengths = torch.tensor([[7], [4], [9], [2]])
    mask = (torch.arange(9) >= 2) & (torch.arange(9) < lengths)
    mask[0, 4] = False  # a tool's token
    return torch.randint(10, 40, (4, 9), generator=g), mask


def expected_values(model: nn.Module, head: nn.Linear, tokens: Tensor, mask: Tensor) -> Tensor:
    """Through transformers alone, row by row, without padding."""
    out = torch.zeros(tokens.shape)
    for b, t in mask.nonzero().tolist():
        hidden = model(tokens[b : b + 1, :t], output_hidden_states=True).hidden_states[-1]
        out[b, t] = head(hidden[0, t - 1])
    return out


def test_a_tokens_value_is_of_the_state_before_it(made: LanguageModel) -> None:
    head, (tokens, mask) = drawn_head(), drawn_rows()
    values = token_values(made.model, head, tokens, mask)
    torch.testing.assert_close(
        values, expected_values(made.model, head, tokens, mask), rtol=1e-5, atol=1e-5
    )
    assert not values[~mask].any()
    later = torch.where(torch.arange(9) >= 5, 11, tokens)  # what comes later is not known yet
    other = token_values(made.model, head, later, mask)
    torch.testing.assert_close(other[:, :6], values[:, :6], rtol=0, atol=1e-6)
    assert (other[2, 6:] - values[2, 6:]).abs().min() > 1e-3


def gradients(outputs: tuple[Tensor, ...], *modules: nn.Module) -> list[Tensor]:
    parameters = [p for module in modules for p in module.parameters()]
    total = sum((i + 1) * x.sum() for i, x in enumerate(outputs))
    assert isinstance(total, Tensor)
    return list(torch.autograd.grad(total, parameters))


def test_one_pass_equals_two_in_figures_and_gradients(made: LanguageModel) -> None:
    head, (tokens, mask) = drawn_head(), drawn_rows()
    log_probs, entropy, values = token_log_probs_and_values(
        made.model, head, tokens, mask, temperature=0.7
    )
    one, spread = token_log_probs_and_entropy(made.model, tokens, mask, temperature=0.7)
    two = token_values(made.model, head, tokens, mask)
    for found, expected in ((log_probs, one), (entropy, spread), (values, two)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    found_gradients = gradients((log_probs, values), made.model, head)
    torch.testing.assert_close(
        found_gradients, gradients((one, two), made.model, head), rtol=1e-4, atol=1e-5
    )


def test_a_model_that_the_decoder_does_not_know_has_the_same_values(lm: LanguageModel) -> None:
    head, (tokens, mask) = drawn_head(), drawn_rows()
    expected = token_log_probs_and_values(lm.model, head, tokens, mask)
    expected_gradients = gradients((expected[0], expected[2]), lm.model, head)
    lm.model.model.layers[0].mlp.register_forward_hook(lambda module, given, out: out)
    found = token_log_probs_and_values(lm.model, head, tokens, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found_gradients = gradients((found[0], found[2]), lm.model, head)
    torch.testing.assert_close(found_gradients, expected_gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("known", [True, False])
def test_with_no_token_wanted_every_parameter_has_a_gradient_of_0(
    lm: LanguageModel, known: bool
) -> None:
    if not known:
        lm.model.model.layers[0].mlp.register_forward_hook(lambda module, given, out: out)
    head, (tokens, mask) = drawn_head(), drawn_rows()
    for rows in (0, 4):
        found = token_log_probs_and_values(
            lm.model, head, tokens[:rows], torch.zeros_like(mask[:rows])
        )
        assert all(x.shape == (rows, 9) and not x.any() for x in found)
        assert not any(x.any() for x in gradients((found[0], found[2]), lm.model, head))


@pytest.mark.parametrize("critic", [ValueHead(), SecondModel()])
def test_a_new_critic_values_everything_at_0(
    lm: LanguageModel, critic: ValueHead | SecondModel
) -> None:
    pair = critic.build(lm)
    tokens, mask = drawn_rows()
    log_probs, _, values = evaluate(pair, tokens, mask)
    assert not values.any()
    assert log_probs[mask].all()
    assert pair.policy is lm.model


def test_a_shared_trunk_has_one_optimizer_with_two_rates(lm: LanguageModel) -> None:
    critic = ValueHead(optimizer=AdamW(learning_rate=0.5))
    (optimizer,) = critic.optimizers(AdamW(learning_rate=0.25), critic.build(lm)).values()
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.5]


def test_the_second_model_is_no_part_of_the_policy(lm: LanguageModel) -> None:
    pair = SecondModel().build(lm)
    policy, critic = ({id(p) for p in x.parameters()} for x in (pair.policy, pair.critic))
    assert not policy & critic
    tokens, mask = drawn_rows()
    evaluate(pair, tokens, mask)[2].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in pair.policy.parameters())


LOAD = """
import sys, torch
from posttrain.critics import SecondModel, ValueHead, evaluate
from posttrain.models import load_model
kind = {"ValueHead": ValueHead, "SecondModel": SecondModel}[sys.argv[1]]
pair = kind(path="critic").build(load_model("model"))
rows = torch.load("rows.pt")
found = evaluate(pair, rows["tokens"], rows["mask"])
state = pair.critic.state_dict()
assert state.keys() == rows["state"].keys()
assert all(state[name].equal(x) for name, x in rows["state"].items())
torch.testing.assert_close(found[2], rows["values"], rtol=0, atol=2e-6)  # of other addresses
assert found[2].any()
"""


@pytest.mark.parametrize("critic", [ValueHead(), SecondModel()])
def test_a_saved_critic_gives_the_same_values_in_a_new_process(
    lm: LanguageModel, critic: ValueHead | SecondModel, tmp_path: Path
) -> None:
    pair = critic.build(lm)
    assert isinstance(pair, SharedTrunk | TwoModels)
    head = pair.critic if isinstance(pair, SharedTrunk) else pair.critic.head
    head.load_state_dict(drawn_head().state_dict())
    tokens, mask = drawn_rows()
    values = evaluate(pair, tokens, mask)[2].detach()
    rows = {"tokens": tokens, "mask": mask, "values": values, "state": pair.critic.state_dict()}
    torch.save(rows, tmp_path / "rows.pt")
    save_critic(pair, lm, tmp_path / "critic")
    save_model(lm.model, lm.tokenizer, tmp_path / "model")
    replace(critic, path=str(tmp_path / "critic")).check()
    subprocess.run(
        [sys.executable, "-c", LOAD, type(critic).__name__], check=True, cwd=tmp_path, timeout=120
    )


def test_a_folder_that_does_not_fit_is_refused(lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no value_head\.safetensors: give a folder"):
        ValueHead(path=str(tmp_path)).check()
    wide = tiny_model(lm.tokenizer, layers=1, width=32, heads=2)
    save_critic(ValueHead().build(wide), wide, tmp_path / "wide")
    with pytest.raises(UsageError, match="a head of width 32, but the model is of width 16"):
        ValueHead(path=str(tmp_path / "wide")).build(lm)
    other = tiny_model(train_tokenizer(["some other words"], vocabulary=80), width=16, heads=2)
    save_model(other.model, other.tokenizer, tmp_path / "other")
    with pytest.raises(UsageError, match="has another tokenizer than the policy"):
        SecondModel(path=str(tmp_path / "other")).build(lm)


def test_a_weight_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weight=0\.0"):
        ValueHead(weight=0.0)


def test_shapes_that_do_not_belong_together_are_refused(made: LanguageModel) -> None:
    tokens, mask = drawn_rows()
    with pytest.raises(ValueError, match=r"shape \(4, 9\) and a mask of shape \(4, 8\)"):
        token_values(made.model, drawn_head(), tokens, mask[:, 1:])
