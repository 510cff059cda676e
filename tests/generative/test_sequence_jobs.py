"""The sequence recipes: they learn, resume bit for bit, and split in any way without a change."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from warm import Warm

from generative import recipes
from generative.attention.transformer import Transformer, TransformerConfig
from generative.model_folder import load_model, new_model
from generative.sequence_jobs import SequenceJob
from generative.sequence_tasks import Sequences, copied
from generative.train_sequences import answered, step_batch, train_sequences
from launch.config import from_yaml, override, to_yaml
from launch.errors import UsageError
from launch.optimizers import AdamW
from launch.runtime import Runtime
from launch.schedule import Linear

TINY = replace(
    recipes.transformer_copy(),
    sequences=Sequences(symbols=6, shortest=2, longest=4),
    model=TransformerConfig(vocabulary=8, width=16, layers=1, heads=2, hidden=32, most_tokens=5),
    steps=6,
    sequences_per_step=12,
    optimizer=AdamW(learning_rate=1e-2, beta2=0.98),
    schedule=Linear(warmup=20),
    heldout=32,
    heldout_every=3,
)


def run(job: SequenceJob, output: Path, *, resume: bool = False) -> list[dict[str, float]]:
    job.check()
    with Runtime(job.runtime, output=output, seed=job.seed, resume=resume) as runtime:
        job.run(runtime)
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def trained(job: SequenceJob, seed: int = 0) -> Transformer:
    model = new_model(job.model, seed)
    assert isinstance(model, Transformer)
    train_sequences(job, model, Runtime(seed=seed))
    return model


def test_learns_to_copy(tmp_path: Path) -> None:
    records = run(
        replace(TINY, steps=120, sequences_per_step=32, heldout_every=1), tmp_path / "run"
    )
    first, last = records[0]["heldout/exact"], records[-1]["heldout/exact"]
    deviation = (first * (1 - first) / 32 + last * (1 - last) / 32) ** 0.5
    assert last - first > max(3 * deviation, 0.5)
    model = load_model(tmp_path / "run" / "model")
    assert isinstance(model, Transformer)
    job = replace(TINY, steps=120, sequences_per_step=32)
    found = answered(job, model, Runtime(seed=job.seed))
    assert found.exact.double().mean().item() == last
    items = (tmp_path / "run" / "items.jsonl").read_text()
    assert "Where the decoder looks" in items
    assert "What was learnt" in items


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("micro_batch", [1, 5])
def test_micro_batches_change_nothing(micro_batch: int, dropout: float) -> None:
    job = replace(TINY, model=replace(TINY.model, dropout=dropout))
    whole, parts = trained(job), trained(replace(job, micro_batch=micro_batch))
    plain = trained(TINY)
    assert torch.equal(whole.embedding.weight, plain.embedding.weight) == (dropout == 0)
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


def test_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = run(TINY, tmp_path / "whole")
    run(replace(TINY, steps=2), tmp_path / "parts")
    parts = run(TINY, tmp_path / "parts", resume=True)
    told = ("loss", "accuracy", "grad_norm", "heldout/exact")
    for a, b in zip(whole, parts, strict=True):
        assert [a.get(name) for name in told if name in a] == [
            b[name] for name in told if name in a
        ]
    one = load_file(tmp_path / "whole" / "model" / "model.safetensors")
    other = load_file(tmp_path / "parts" / "model" / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


def every_recipe() -> Iterator[SequenceJob]:
    yield recipes.transformer_sort()
    yield recipes.transformer_copy()
    yield recipes.transformer_reverse()


def test_recipes_are_whole_and_written_as_yaml() -> None:
    for job in every_recipe():
        job.check()
        assert from_yaml(to_yaml(job), recipes.transformer_sort()) == job
    job = override(recipes.transformer_sort(), {"answer": "copy"})
    assert job.answer is copied


def backwards_and_more(symbols: list[int]) -> list[int]:
    return [*symbols, 2]


def failing(symbols: Sequence[int]) -> list[int]:
    raise KeyError(symbols[0])


def silent(symbols: Sequence[int]) -> list[int]:
    return None  # type: ignore[return-value]  # what a forgotten return gives


def in_halves(symbols: Sequence[int]) -> list[int]:
    return [symbol / 1 for symbol in symbols]  # type: ignore[misc]  # numbers, but not integers


def test_bad_input_is_named() -> None:
    with pytest.raises(UsageError, match=r"model.vocabulary=8, but sequences.symbols=7 take 9"):
        replace(TINY, sequences=Sequences(symbols=7, longest=4)).check()
    with pytest.raises(UsageError, match=r"sequences.longest=5 symbols takes 6 tokens"):
        replace(TINY, sequences=Sequences(symbols=6, longest=5)).check()
    with pytest.raises(UsageError, match=r"answer turns \[3, 2\] into \[3, 2, 2\]"):
        replace(TINY, answer=backwards_and_more).check()
    with pytest.raises(UsageError, match=r"answer fails on \[3, 2\] \(KeyError: 3\)"):
        replace(TINY, answer=failing).check()
    with pytest.raises(UsageError, match=r"answer turns \[3, 2\] into None"):
        replace(TINY, answer=silent).check()
    with pytest.raises(UsageError, match=r"answer turns \[3, 2\] into \[3.0, 2.0\]"):
        replace(TINY, answer=in_halves).check()
    shortened = replace(TINY, answer=lambda symbols: list(symbols)[:2])
    shortened.check()  # two symbols are answered well, longer sequences are not
    with pytest.raises(UsageError, match="expected a list of as many symbols, from 2 to 7"):
        trained(shortened)
    with pytest.raises(ValueError, match="steps=0: give at least 1"):
        replace(TINY, steps=0)


class SecondOfTwo(Runtime):
    """What the second of two processes is told of its share."""

    @property
    def rank(self) -> int:
        return 1

    @property
    def world_size(self) -> int:
        return 2


def test_shares_of_processes_are_the_parts_of_one() -> None:
    whole, own = step_batch(TINY, 3, Runtime()), step_batch(TINY, 3, SecondOfTwo())
    assert torch.equal(own.source, whole.source[6:])
    assert torch.equal(own.labels, whole.labels[6:])
    assert not torch.equal(step_batch(TINY, 4, Runtime()).source, whole.source)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_with_a_cut_model_change_nothing(tmp_path: Path, warmed: Warm) -> None:
    flags = ["--steps", "3", "--sequences_per_step", "9", "--heldout", "7", "--heldout_every", "2"]
    losses = {}
    for name, processes in (("single", "1"), ("fsdp", "2")):
        output = tmp_path / name
        run = [warmed.python, "-m", "launch", "run", "generative.recipes:transformer_copy"]
        run += ["--output", str(output), "--processes", processes, *flags]
        run += ["--runtime.strategy", name]
        subprocess.run(run, check=True, capture_output=True, env=warmed.environment)
        records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
        losses[name] = [(r["loss"], r["grad_norm"], r.get("heldout/exact")) for r in records]
        assert isinstance(load_model(output / "model"), Transformer)
    for one, two in zip(losses["single"], losses["fsdp"], strict=True):
        assert two[:2] == pytest.approx(one[:2], rel=1e-6)
        assert two[2] == one[2]
