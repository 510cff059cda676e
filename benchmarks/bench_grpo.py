"""A GRPO step against TRL's: the same model, prompts, completions of fixed length, one update.

Targets, with a 0.35M model on one thread: 64 prompts x 8, 16 + 32 tokens: at most 1/2 of TRL's
step and 1/3 of its rollout; 16 prompts x 8, 256 + 32 tokens: at most 1/4 of TRL's step. Our side
runs ``train_grpo`` as users do, with logging, clipping and checkpoints on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.interleave import in_turn
from benchmarks.measure import emit, spread
from benchmarks.tiny import build, prompts, tokenizer


def monro(a: argparse.Namespace) -> dict[str, list[float]]:
    from launch.optimizers import AdamW
    from launch.runtime import Runtime
    from posttrain.data.tasks.base import Prompt
    from posttrain.models import LanguageModel
    from posttrain.rewards import Sample
    from posttrain.rollout import Sampling
    from posttrain.trainers import GRPOConfig, train_grpo

    words = tokenizer()
    seven = words.convert_tokens_to_ids("7")

    def reward(samples: Sequence[Sample]) -> list[float]:
        return [float(sample.tokens.count(seven)) for sample in samples]

    @dataclass
    class Task:
        reward: object

        def train(self) -> list[Prompt]:
            count = a.prompts * (a.steps + 2)
            return [Prompt(text=text, answer="") for text in prompts(count, a.prompt_tokens)]

        def heldout(self) -> list[Prompt]:
            return []

    cfg = GRPOConfig(
        steps=a.steps + 1,
        prompts_per_step=a.prompts,
        group_size=a.group,
        sampling=Sampling(max_tokens=a.new_tokens),
        optimizer=AdamW(learning_rate=1e-4),
        save_every=2,
    )
    lm = LanguageModel(model=build(a.shape), tokenizer=words, pad_token=0, stop_tokens=())
    with tempfile.TemporaryDirectory() as folder:
        with Runtime(output=Path(folder) / "run") as run:
            train_grpo(cfg, lm, Task(reward), run)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    ends = [record["seconds"] for record in records]
    return {
        "step_s": [b - x for x, b in itertools.pairwise(ends)],
        "rollout_s": [record["seconds/generate"] for record in records[1:]],
    }


def peer(a: argparse.Namespace) -> dict[str, list[float]]:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    words = tokenizer()
    seven = words.convert_tokens_to_ids("7")
    batch = a.prompts * a.group
    stamps: list[float] = []
    rollouts: list[float] = []

    def reward(completion_ids: list[list[int]], **_: object) -> list[float]:
        return [float(ids.count(seven)) for ids in completion_ids]

    class Stamp(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            stamps.append(time.perf_counter())

        def on_step_end(self, *_: object, **__: object) -> None:
            stamps.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=1,
            num_generations=a.group,
            max_completion_length=a.new_tokens,
            max_steps=a.steps + 1,
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            learning_rate=1e-4,
            beta=0.0,
            temperature=1.0,
            disable_tqdm=True,
            gradient_checkpointing=False,
            generation_kwargs={"min_new_tokens": a.new_tokens},
        )
        rows = prompts(a.prompts * (a.steps + 2), a.prompt_tokens)
        trainer = GRPOTrainer(
            model=build(a.shape),
            reward_funcs=reward,
            args=settings,
            train_dataset=Dataset.from_dict({"prompt": rows}),
            processing_class=words,
            callbacks=[Stamp()],
        )
        inner = trainer._generate_single_turn

        def timed(*x: object, **k: object) -> object:
            start = time.perf_counter()
            result = inner(*x, **k)
            rollouts.append(time.perf_counter() - start)
            return result

        trainer._generate_single_turn = timed
        trainer.train()
    steps = [b - x for x, b in zip(stamps[::2], stamps[1::2], strict=True)]
    return {"step_s": steps[1:], "rollout_s": rollouts[1:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=["both", "monro", "peer"], default="both")
    parser.add_argument("--shape", default="0.35m")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.side != "both":
        print(json.dumps(monro(a) if a.side == "monro" else peer(a)))
        return
    names = ("shape", "prompts", "group", "prompt_tokens", "new_tokens", "steps")
    settings = {name: getattr(a, name) for name in names}
    flags = [x for name, v in settings.items() for x in (f"--{name.replace('_', '-')}", str(v))]
    found = in_turn("benchmarks.bench_grpo", flags, a.rounds)
    figures: dict[str, object] = {"settings": settings}
    for figure in ("step_s", "rollout_s"):
        medians = {
            side: [statistics.median(run[figure]) for run in runs] for side, runs in found.items()
        }
        for side, values in medians.items():
            figures[f"{side}_{figure}"] = spread(values)
        pairs = zip(medians["monro"], medians["peer"], strict=True)
        figures[f"ratio_{figure}"] = spread([ours / theirs for ours, theirs in pairs])
    emit("grpo", figures, ("torch", "transformers", "trl"))


if __name__ == "__main__":
    main()
