"""Run by test_runtime.py, alone and as two processes: twelve rows held unequally, with clipping."""

import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from launch.batch import TensorBatch, shaped
from launch.processes import leave
from launch.runtime import Runtime, RuntimeConfig

ROWS, STEPS, LENGTH = 14, 6, 12


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch(TensorBatch):
    tokens: Tensor = shaped("B T")
    mask: Tensor = shaped("B T")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner = nn.Embedding(40, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 40)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(self.embed(tokens))))


def whole_batch(step: int) -> Batch:
    g = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 40, (ROWS, LENGTH), generator=g)
    mask = torch.arange(LENGTH) < torch.randint(3, LENGTH + 1, (ROWS, 1), generator=g)
    mask[:, 0] = False
    return Batch(tokens=tokens, mask=mask)


def loss_sum(model: nn.Module, rows: Batch) -> Tensor:
    """Call the bare model's parts, as the chunked head of a language model does."""
    logits = model.head(torch.tanh(model.inner(model.embed(rows.tokens[:, :-1]))))
    log_probs = logits.log_softmax(-1).gather(-1, rows.tokens[:, 1:, None]).squeeze(-1)
    return -(log_probs * rows.mask[:, 1:]).sum()


def main(path: str, rows: int, held: str) -> None:
    """``held``: which rows the first process holds, as ``start:stop``; the second has the rest."""
    with Runtime(RuntimeConfig(), seed=3) as run:
        torch.manual_seed(run.rank)  # DDP must start from the first process's weights
        model = Model()
        if run.world_size == 1 or run.rank == 0:
            torch.manual_seed(0)
            model = Model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        prepared, optimizer = run.prepare(model, optimizer)
        start, stop = (int(x) for x in held.split(":"))
        records = []
        for step in range(STEPS):
            batch = whole_batch(step)
            if run.world_size == 2:
                batch = batch.rows(start, stop) if run.rank == 0 else batch.rows(stop, ROWS)
            scale = run.sum(batch.mask.sum())
            parts = 0
            for part in run.micro_batches(batch, rows):
                parts += 1
                if hasattr(prepared, "call"):
                    loss = prepared.call(loss_sum, part)
                else:
                    loss = loss_sum(prepared, part)
                run.backward(loss / scale)
            norm = run.step(optimizer, max_norm=0.5)
            means = run.mean(batch.mask.sum(1).float())
            records.append(
                {"loss": run.loss, "norm": norm, "scale": scale, "mean": means, "parts": parts}
            )
        gathered = run.gather(batch.tokens)
        seeds = run.gather_objects(run.seeds("rows", 5, run.share(ROWS)))
        if run.is_main:
            state = {name: x.detach() for name, x in model.state_dict().items()}
            torch.save(
                {"records": records, "state": state, "gathered": gathered, "seeds": seeds}, path
            )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    leave(0)
