"""Run by test_zero.py as two processes: one strategy beside plain torch on all the rows."""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from launch.batch import TensorBatch, shaped
from launch.optimizers import AdamW, MuonAdamW
from launch.placement import assign, inside, placement_of, whole_state
from launch.processes import leave
from launch.runtime import Runtime, RuntimeConfig

ROWS, LENGTH, WIDTH, WORDS = 14, 7, 16, 41
CHECKS: list[Callable[[Runtime, int], None]] = []


def check(function: Callable[[Runtime, int], None]) -> Callable[[Runtime, int], None]:
    CHECKS.append(function)
    return function


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch(TensorBatch):
    tokens: Tensor = shaped("B T")


@dataclass
class Output:
    """What a function of a model may return: neither a tensor nor a tuple."""

    loss: Tensor
    more: dict[str, Tensor] = field(default_factory=dict)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH + 1), nn.Linear(2 * WIDTH + 1, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Deep(nn.Module):
    """Blocks, a head tied to the embedding, a scalar, and sizes that two does not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)
        self.lm_head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.lm_head(x) * self.scale


def whole_batch(step: int) -> Batch:
    g = torch.Generator().manual_seed(step)
    return Batch(tokens=torch.randint(0, WORDS, (ROWS, LENGTH), generator=g))


def loss_sum(model: nn.Module, batch: Batch) -> Tensor:
    """Read weights of the head itself, as a loss over chunks of rows does."""
    x = model.embed(batch.tokens[:, :-1])
    for block in model.blocks:
        x = block(x)
    logits = x @ model.lm_head.weight.T * model.scale
    return -logits.log_softmax(-1).gather(-1, batch.tokens[:, 1:, None]).sum()


def deep() -> Deep:
    torch.manual_seed(0)
    return Deep()


def mine(run: Runtime, batch: Batch, cut: int = 10) -> Batch:
    return batch.rows(0, cut) if run.rank == 0 else batch.rows(cut, ROWS)


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    optimizer.zero_grad()


def same(model: nn.Module, twin: nn.Module, tolerance: float = 1e-5) -> None:
    state = whole_state(model)
    assert sorted(state) == sorted(name for name, _ in twin.named_parameters())
    for name, p in twin.named_parameters():
        torch.testing.assert_close(state[name], p.detach(), rtol=0, atol=tolerance, msg=name)


def compare(
    run: Runtime,
    model: nn.Module,
    build: Callable[[nn.Module], torch.optim.Optimizer],
    loss: Callable[[Any, Batch], Tensor] = loss_sum,
    steps: int = 4,
) -> nn.Module:
    """Train a model on its rows and a twin on all; they have to be the same. Return the first."""
    twin = copy.deepcopy(model)
    plain, own = build(twin), build(model)
    prepared, own = run.prepare(model, own)
    for step in range(steps):
        batch = whole_batch(step)
        whole = loss(twin, batch) / ROWS
        whole.backward()
        plain_step(twin, plain, 0.5)
        for part in run.micro_batches(mine(run, batch), 3):
            run.backward(prepared.call(loss, part) / ROWS)
        run.step(own, max_norm=0.5)
        torch.testing.assert_close(run.loss, whole.detach(), rtol=1e-6, atol=1e-6)
    same(model, twin)
    return model


@check
def adamw(run: Runtime, stage: int) -> None:
    compare(run, deep(), AdamW(learning_rate=1e-2, weight_decay=0.1).build)


@check
def muon(run: Runtime, stage: int) -> None:
    compare(run, deep(), MuonAdamW(adamw=AdamW(learning_rate=1e-2)).build)


@check
def each_process_holds_its_share(run: Runtime, stage: int) -> None:
    model = compare(run, deep(), AdamW(learning_rate=1e-2).build, steps=1)
    total = sum(p.numel() for p in whole_state(model).values()) * 4
    parameters, states = run.backend.held_bytes()
    odd = 4 * len(list(model.parameters()))  # at most one element more of each than half
    share = total / 2 + odd if stage == 3 else total
    assert total / 2 <= parameters <= share, (parameters, total)
    assert total <= states <= total + 20 * odd, (states, total)  # two tensors, half of each


@check
def pieces_cover_everything_once_and_can_be_written(run: Runtime, stage: int) -> None:
    model = deep()
    prepared, optimizer = run.prepare(model, AdamW(learning_rate=0.1).build(model))
    placement, before = placement_of(model), whole_state(model)
    for name, piece in placement.pieces().items():
        assert piece.shape == before[name].shape
        run_of = before[name].reshape(-1)[piece.begin : piece.begin + piece.data.numel()]
        assert torch.equal(piece.data.reshape(-1), run_of)
        places: list[Any] = [None, None]
        dist.all_gather_object(places, (piece.begin, piece.data.numel()))
        assert places[0][0] == 0, (name, places)
        assert places[0][1] == places[1][0], (name, places)
        assert sum(places[1]) == before[name].numel(), (name, places)
    owned = {p for group in optimizer.param_groups for p in group["params"]}
    assert owned == set(placement.names())
    assert sorted(placement.names().values()) == sorted(before)
    new = {name: torch.randn_like(x) for name, x in before.items()}
    for x in new.values():
        dist.broadcast(x, 0)
    assign(model, new)
    for name, x in whole_state(model).items():
        assert torch.equal(x, new[name])
    twin = deep()
    twin.load_state_dict(new, strict=False)
    twin.lm_head.weight = twin.embed.weight
    tokens = whole_batch(0).tokens
    assert torch.equal(prepared(tokens), twin(tokens))


@check
def frozen_parameters_stay(run: Runtime, stage: int) -> None:
    model = deep()
    for name, p in model.named_parameters():
        p.requires_grad_("up" in name)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    compare(run, model, AdamW(learning_rate=1e-2).build)
    for name, x in whole_state(model).items():
        assert torch.equal(x, before[name]) == ("up" not in name)


@check
def a_frozen_model_is_read_and_passes_gradients_on(run: Runtime, stage: int) -> None:
    if stage < 3:
        return
    model = deep().requires_grad_(False)
    twin = copy.deepcopy(model)
    prepared = run.prepare(model)
    assert all(p.numel() == 0 for p in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(prepared(whole_batch(0).tokens), twin(whole_batch(0).tokens))
    assert all(p.numel() == 0 for p in model.parameters())

    def through(net: nn.Module, x: Tensor) -> Tensor:
        for block in net.blocks:
            x = block(x)
        return (x * net.scale).sum()

    x, y = (torch.ones(2, WIDTH, requires_grad=True) for _ in range(2))
    prepared.call(through, x).backward()
    through(twin, y).backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert all(p.numel() == 0 for p in model.parameters())


class Net(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh())
        self.last = nn.Linear(7, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(x))


def gan(run: Runtime, *, freeze: bool, penalty: bool) -> None:
    """Two networks in one graph; plain torch, on all rows, beside it."""
    torch.manual_seed(1)
    nets = [Net(3, 5), Net(5, 1)]
    twins = copy.deepcopy(nets)
    plain = [AdamW(learning_rate=1e-2).build(net) for net in twins]
    own = [AdamW(learning_rate=1e-2).build(net) for net in nets]
    pairs = [run.prepare(net, optimizer) for net, optimizer in zip(nets, own, strict=True)]
    prepared = [pair[0] for pair in pairs]

    def judged(models: list[Any], noise: Tensor, data: Tensor) -> Tensor:
        generator, critic = models
        real = data.clone().requires_grad_()
        out = critic(real)
        loss = (out - 1).square().sum() + critic(generator(noise).detach()).square().sum()
        if penalty:
            (slope,) = torch.autograd.grad(out.sum(), real, create_graph=True)
            loss = loss + slope.square().sum()
        return loss / ROWS

    def fooled(models: list[Any], noise: Tensor) -> Tensor:
        return (models[1](models[0](noise)) - 1).square().sum() / ROWS

    g = torch.Generator().manual_seed(2)
    for _ in range(4):
        noise = torch.randn(ROWS, 3, generator=g)
        data = torch.randn(ROWS, 5, generator=g)
        rows = slice(0, 5) if run.rank == 0 else slice(5, ROWS)
        judged(twins, noise, data).backward()
        plain_step(twins[1], plain[1], 0.5)
        run.backward(judged(prepared, noise[rows], data[rows]))
        run.step(own[1], max_norm=0.5)
        if freeze:
            for net in (twins[1], nets[1]):
                net.requires_grad_(False)
        fooled(twins, noise).backward()
        plain_step(twins[0], plain[0], 0.5)
        run.backward(fooled(prepared, noise[rows]))
        run.step(own[0], max_norm=0.5)
        for net in (twins[1], nets[1]):
            net.requires_grad_()
    for net, twin in zip(nets, twins, strict=True):
        same(net, twin)
        run.release(net)


@check
def two_networks_in_one_graph(run: Runtime, stage: int) -> None:
    gan(run, freeze=False, penalty=False)
    gan(run, freeze=True, penalty=False)


@check
def a_gradient_of_a_gradient(run: Runtime, stage: int) -> None:
    gan(run, freeze=True, penalty=True)


@check
def two_optimizers_of_one_model(run: Runtime, stage: int) -> None:
    model = deep()
    twin = copy.deepcopy(model)

    def build(net: Deep) -> list[torch.optim.Optimizer]:
        inner = list(net.blocks.parameters())
        outer = [net.embed.weight, net.scale]
        return [torch.optim.AdamW(ps, lr=1e-2) for ps in (inner, outer)]

    plain, own = build(twin), build(model)
    prepared, *own = run.prepare(model, *own)
    for step in range(3):
        batch = whole_batch(step)
        (loss_sum(twin, batch) / ROWS).backward()
        plain[0].step()
        plain[0].zero_grad()
        (loss_sum(twin, batch) / ROWS).backward()  # adds to what the second has not used yet
        plain[1].step()
        plain[1].zero_grad()
        run.backward(prepared.call(loss_sum, mine(run, batch)) / ROWS)
        run.step(own[0])
        run.backward(prepared.call(loss_sum, mine(run, batch)) / ROWS)
        run.step(own[1])
    same(model, twin)


@check
def a_parameter_without_a_gradient_is_left_alone(run: Runtime, stage: int) -> None:
    def half(model: nn.Module, batch: Batch) -> Tensor:
        x = model.blocks[2](model.blocks[0](model.embed(batch.tokens)))
        return (x.square() * model.scale).sum()

    model = deep()
    before = {name: p.detach().clone() for name, p in model.blocks[1].named_parameters()}
    compare(run, model, AdamW(learning_rate=1e-2, weight_decay=0.5).build, half)
    for name, x in whole_state(model).items():
        if name.startswith("blocks.1."):
            assert torch.equal(x, before[name.removeprefix("blocks.1.")])


@check
def any_function_of_a_model(run: Runtime, stage: int) -> None:
    def layer(block: nn.Module, x: Tensor) -> Tensor:
        """Read the block's weights itself."""
        y = torch.tanh(block.norm(x) @ block.up.weight.T + block.up.bias)
        return x + y @ block.down.weight.T + block.down.bias

    def read(model: nn.Module, batch: Batch) -> Output:
        x = model.embed(batch.tokens)
        for block in model.blocks:
            x = inside(block, lambda x, block=block: layer(block, x), x)
        again = model.embed(batch.tokens)
        for block in model.blocks:
            again = checkpoint(block, again, use_reentrant=False)
        return Output(loss=(x @ model.embed.weight.T).square().sum(), more={"again": again})

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        if hasattr(model, "call"):
            first, second = model.call(read, batch), model.call(read, batch)
        else:
            first, second = read(model, batch), read(model, batch)
        return first.loss + (second.more["again"] * 3).square().sum()

    model = deep()
    twin = copy.deepcopy(model)
    plain = AdamW(learning_rate=1e-2).build(twin)
    prepared, own = run.prepare(model, AdamW(learning_rate=1e-2).build(model))
    for step in range(3):
        batch = whole_batch(step)
        (loss(twin, batch) / 999).backward()
        plain_step(twin, plain, 0.5)
        with torch.no_grad():
            loss(prepared, batch)
        run.backward(loss(prepared, mine(run, batch)) / 999)
        run.step(own, max_norm=0.5)
    same(model, twin)


@check
def processes_may_order_their_graphs_differently(run: Runtime, stage: int) -> None:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        first, second = model.first, model.second
        x = batch.tokens.float()
        if len(batch) == 10:  # of the first process
            return (first(x) + second(x)).square().sum()
        late = second(x)
        return (first(x) + late).square().sum()

    torch.manual_seed(0)
    model = nn.Module()
    model.first, model.second = nn.Linear(LENGTH, 3), nn.Linear(LENGTH, 3)
    twin = copy.deepcopy(model)
    plain, own = (torch.optim.SGD(net.parameters(), lr=1e-5) for net in (twin, model))
    prepared, own = run.prepare(model, own)
    for step in range(3):
        loss(twin, whole_batch(step)).backward()
        plain.step()
        plain.zero_grad()
        run.backward(prepared.call(loss, mine(run, whole_batch(step))))
        run.step(own)
    same(model, twin)


@check
def gathered_and_released_models_are_ordinary(run: Runtime, stage: int) -> None:
    def ordinary(net: nn.Module) -> None:
        for part in net.modules():
            assert type(part._parameters) is dict
            assert part.__class__.__module__ in ("__main__", *known), type(part)
            assert not any(getattr(part, table) for table in tables), part

    known = ("torch.nn.modules.sparse", "torch.nn.modules.linear", "torch.nn.modules.container")
    known += ("torch.nn.modules.normalization",)
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    model = deep()
    given = dict(model.named_parameters(remove_duplicate=False))
    attributes = {part: set(vars(part)) for part in model.modules()}
    tokens = whole_batch(0).tokens
    for strategy in ("ddp", f"zero{stage}", "fsdp", f"zero{stage}"):
        run.backend.strategy = strategy  # type: ignore[assignment]
        compare(run, model, AdamW(learning_rate=1e-2).build, steps=2)
        with run.gathered(model), run.gathered(model):
            ordinary(model)
            inside_of_it = model(tokens).detach()
        run.release(model)
        ordinary(model)
        for part in model.modules():
            assert set(vars(part)) == attributes[part], set(vars(part)) ^ attributes[part]
        assert dict(model.named_parameters(remove_duplicate=False)) == given
        assert torch.equal(model(tokens).detach(), inside_of_it)
        for p in model.parameters():
            assert type(p) is nn.Parameter
            assert p.grad is None
            assert not vars(p), vars(p)
            assert not p._post_accumulate_grad_hooks, p._post_accumulate_grad_hooks
    model(tokens).sum().backward()
    plain_step(model, torch.optim.SGD(model.parameters(), lr=0.1), 1.0)
    assert torch.nn.functional.linear.__module__ != "deepspeed"


@check
def settings_do_not_change_the_figures(run: Runtime, stage: int) -> None:
    chosen: list[dict[str, Any]] = [
        {"reduce_bucket_size": 300, "allgather_bucket_size": 200},
        {"reduce_scatter": False},
        {"offload_optimizer": {"device": "cpu"}},
        {"round_robin_gradients": True, "sub_group_size": 500},
    ]
    if stage == 3:
        cpu = {"device": "cpu"}
        chosen.append({"offload_optimizer": cpu, "offload_param": cpu})
    for settings in chosen:
        run.backend.deepspeed = settings
        run.release(compare(run, deep(), AdamW(learning_rate=1e-2).build, steps=3))
    run.backend.deepspeed = {}


def main(strategy: str, only: str = "") -> None:
    """Print a line for each check that held, on the main process."""
    with Runtime(RuntimeConfig(strategy=strategy), seed=3) as run:  # type: ignore[arg-type]
        for function in CHECKS:
            if only in function.__name__:
                run.backend.strategy = strategy  # type: ignore[assignment]
                function(run, 3 if strategy == "fsdp" else int(strategy.removeprefix("zero")))
                for placement in list(run.backend._placed):
                    run.release(placement.module)
                run.print(f"held: {function.__name__}")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
