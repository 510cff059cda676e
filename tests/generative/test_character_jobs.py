"""The byte model: it learns with every kind of mixer, resumes, and leaves a model that reloads."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from generative import recipes
from generative.attention.decoder_lm import DecoderConfig, DecoderLM
from generative.attention.linear_mixer import LinearAttention
from generative.character_jobs import CharacterJob, parse_mixer, sampled_text
from generative.library_text import TextFile
from generative.model_folder import load_model, new_model
from generative.train_characters import heldout_bits, train_characters
from launch.config import from_yaml, override, to_yaml
from launch.errors import UsageError
from launch.optimizers import AdamW
from launch.runtime import Runtime, RuntimeConfig
from launch.schedule import Constant

MIXERS = (
    "softmax", "window", "alibi", "flash", "linear", "retention", "delta", "gau", "flash-gau",
)  # fmt: skip


@pytest.fixture
def text(tmp_path: Path) -> TextFile:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat; " * 200)
    return TextFile(path=str(path))


def tiny(text: TextFile, mixer: str = "softmax") -> CharacterJob:
    return replace(
        recipes.char_lm(),
        text=text,
        mixer=parse_mixer(mixer),
        model=DecoderConfig(width=32, blocks=1, most_tokens=32),
        steps=6,
        windows_per_step=6,
        context=24,
        micro_batch=6,
        optimizer=AdamW(learning_rate=1e-2),
        heldout_every=0,
        sampled=8,
    )


def run(job: CharacterJob, output: Path, *, resume: bool = False) -> list[dict[str, float]]:
    job.check()
    with Runtime(job.runtime, output=output, seed=job.seed, resume=resume) as runtime:
        job.run(runtime)
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("mixer", MIXERS)
def test_learns_what_a_text_repeats(text: TextFile, mixer: str, tmp_path: Path) -> None:
    job = replace(tiny(text, mixer), steps=50)
    records = run(job, tmp_path / "run")
    counts = torch.bincount(text.load()[1].long()).double() / 480
    unordered = -(counts[counts > 0] * counts[counts > 0].log2()).sum()  # what frequencies give
    assert records[-1]["heldout/bits"] < unordered - 0.3
    model = load_model(tmp_path / "run" / "model")
    assert isinstance(model, DecoderLM)
    found = heldout_bits(job, model, text.load()[1], Runtime())
    bits = float(found.total) / float(found.count)
    assert bits == pytest.approx(records[-1]["heldout/bits"], abs=1e-5)


def test_bits_of_a_model_that_knows_nothing(text: TextFile) -> None:
    model = DecoderLM(DecoderConfig(width=8, blocks=1, mixer=parse_mixer("linear")))
    model.norm.weight.data.zero_()  # all logits are 0: each of 256 bytes has probability 2^-8
    found = heldout_bits(tiny(text), model, text.load()[1], Runtime())
    assert float(found.total) / float(found.count) == pytest.approx(8.0, abs=1e-6)
    assert found.count == (480 - 24) // 24 * 24  # windows side by side, each with one byte after


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_micro_batches_change_nothing(text: TextFile, micro_batch: int) -> None:
    ends = []
    for size in (6, micro_batch):
        job = replace(tiny(text, "gau"), micro_batch=size)
        model = new_model(replace(job.model, mixer=job.mixer), 0)
        assert isinstance(model, DecoderLM)
        train_characters(job, model, *text.load(), Runtime())
        ends.append(model)
    for p, q in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mixer", MIXERS)
def test_half_precision_trains_alike(text: TextFile, mixer: str, tmp_path: Path) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        job = replace(tiny(text, mixer), runtime=RuntimeConfig(precision=precision, threads=1))
        losses.append([x["loss"] for x in run(replace(job, steps=3), tmp_path / precision)])
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert losses[1] != losses[0]


@pytest.mark.parametrize("mixer", ["softmax", "flash-gau"])
def test_resumes_bit_for_bit(text: TextFile, mixer: str, tmp_path: Path) -> None:
    job = replace(tiny(text, mixer), schedule=Constant())
    whole = run(job, tmp_path / "whole")
    run(replace(job, steps=2), tmp_path / "parts")
    parts = run(job, tmp_path / "parts", resume=True)
    assert [a["loss"] for a in whole] == [a["loss"] for a in parts]
    folders = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "parts")]
    one, other = map(load_file, folders)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_finished_run_that_is_resumed_has_no_samples_twice(text: TextFile, tmp_path: Path) -> None:
    for resume in (False, True):
        run(tiny(text), tmp_path / "run", resume=resume)
    samples = [json.loads(x) for x in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [x["prompt"] for x in samples] == ["def ", "class ", "import "]


def test_sampled_text_is_what_the_model_gives(text: TextFile) -> None:
    model = new_model(DecoderConfig(width=16, blocks=1, mixer=parse_mixer("linear")), 0)
    assert isinstance(model, DecoderLM)
    model.embedding.weight.data.mul_(50)
    drawn = sampled_text(model, b"ab", 6, torch.Generator().manual_seed(0))
    assert drawn.startswith("ab")
    assert drawn == sampled_text(model, b"ab", 6, torch.Generator().manual_seed(0))


def test_recipe_is_whole_and_written_as_yaml() -> None:
    job = recipes.char_lm()
    job.check()
    for mixer in MIXERS:
        changed = override(job, {"mixer": mixer})
        assert changed.mixer == parse_mixer(mixer)
        assert from_yaml(to_yaml(changed), job) == changed


def test_mixers_have_about_as_many_parameters() -> None:
    counts = {}
    for mixer in MIXERS:
        model = new_model(replace(recipes.char_lm().model, mixer=parse_mixer(mixer)), 0)
        counts[mixer] = sum(p.numel() for p in model.parameters())
    least, most = min(counts.values()), max(counts.values())
    assert math.log(most / least) < 0.04, counts


def test_bad_input_is_named(text: TextFile) -> None:
    with pytest.raises(UsageError, match="unknown mixer flsh; did you mean flash"):
        parse_mixer("flsh")
    with pytest.raises(UsageError, match=r"model.most_tokens=32, but context=64"):
        replace(tiny(text), context=64).check()
    job = tiny(text)
    for mixer in MIXERS:
        tiny(text, mixer).check()
    with pytest.raises(UsageError, match="heads=3 with width=32"):
        replace(job, mixer=LinearAttention(heads=3)).check()
    with pytest.raises(UsageError, match=r"model.mixer is given, but mixer takes its place"):
        replace(job, model=replace(job.model, mixer=LinearAttention(heads=2))).check()
    with pytest.raises(UsageError, match=r"model.vocabulary=100: bytes take 256"):
        replace(job, model=replace(job.model, vocabulary=100)).check()
    for mixer in ("softmax", "delta", "linear"):
        wrong = replace(job, mixer=parse_mixer(mixer), model=replace(job.model, width=30))
        with pytest.raises(UsageError, match=r"mixer with model\.width=30: heads=4 with"):
            wrong.check()
    with pytest.raises(ValueError, match="sampled=-5: give 0"):
        replace(job, sampled=-5)
    model = new_model(job.model, 0)
    assert isinstance(model, DecoderLM)
    with pytest.raises(UsageError, match="heldout has 480 bytes, but context=600"):
        train_characters(replace(job, context=600), model, *text.load(), Runtime())
