"""A DPO step against TRL's, both with a frozen reference that is run beside the policy.

Both sides take 16 pairs: a prompt of 64 tokens and completions of 8 to 64, on one thread. Target:
at least 2 times TRL's speed. Our side runs ``train_preferences`` as users do, with logging,
clipping and checkpoints on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.interleave import in_turn
from benchmarks.measure import emit, spread
from benchmarks.tiny import build, corpus, prompts, tokenizer

PAIRS, PROMPT, COUNT = 16, 64, 1_000


def monro(a: argparse.Namespace) -> list[float]:
    from launch.optimizers import AdamW
    from launch.runtime import Runtime
    from posttrain.data.packing import Document
    from posttrain.trainers import PreferenceConfig, train_preferences

    words = tokenizer()

    def document(prompt: str, completion: str) -> Document:
        start, rest = words.encode(prompt), [*words.encode(completion), words.eos_token_id]
        return Document(start + rest, [False] * len(start) + [True] * len(rest))

    asked, good, bad = texts()
    pairs = [(document(p, c), document(p, r)) for p, c, r in zip(asked, good, bad, strict=True)]
    cfg = PreferenceConfig(
        steps=a.steps + 1,
        pairs_per_step=PAIRS,
        optimizer=AdamW(learning_rate=1e-5),
        save_every=10,
    )
    with tempfile.TemporaryDirectory() as folder:
        with Runtime(output=Path(folder) / "run") as run:
            train_preferences(cfg, build(a.shape), pairs, run)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    return [new - old for old, new in itertools.pairwise(seconds)]


def peer(a: argparse.Namespace) -> list[float]:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    stamps: list[float] = []

    class Stamp(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            stamps.append(time.perf_counter())

        def on_step_end(self, *_: object, **__: object) -> None:
            stamps.append(time.perf_counter())

    asked, good, bad = texts()
    data = {"prompt": asked, "chosen": [f" {x}" for x in good], "rejected": [f" {x}" for x in bad]}
    with tempfile.TemporaryDirectory() as folder:
        settings = DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=PAIRS,
            max_steps=a.steps + 1,
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            learning_rate=1e-5,
            max_length=256,
            disable_tqdm=True,
            gradient_checkpointing=False,
        )
        trainer = DPOTrainer(
            model=build(a.shape),
            ref_model=build(a.shape),
            args=settings,
            train_dataset=Dataset.from_dict(data),
            processing_class=tokenizer(),
            callbacks=[Stamp()],
        )
        trainer.train()
    seconds = [b - x for x, b in zip(stamps[::2], stamps[1::2], strict=True)]
    return seconds[1:]


def texts() -> tuple[list[str], list[str], list[str]]:
    """Return prompts, chosen and rejected completions."""
    return prompts(COUNT, PROMPT, seed=1), corpus(COUNT, seed=2), corpus(COUNT, seed=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=["both", "monro", "peer"], default="both")
    parser.add_argument("--shape", default="0.35m")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.side != "both":
        seconds = monro(a) if a.side == "monro" else peer(a)
        print(json.dumps({"seconds": seconds}))
        return
    flags = ["--shape", a.shape, "--steps", str(a.steps)]
    found = in_turn("benchmarks.bench_dpo", flags, a.rounds)
    medians = {
        side: [statistics.median(run["seconds"]) for run in runs] for side, runs in found.items()
    }
    pairs = zip(medians["peer"], medians["monro"], strict=True)
    figures: dict[str, object] = {"shape": a.shape}
    figures |= {f"{side}_seconds": spread(values) for side, values in medians.items()}
    figures["ratio"] = spread([theirs / ours for theirs, ours in pairs])
    emit("dpo", figures, ("torch", "transformers", "trl"))


if __name__ == "__main__":
    main()
