"""Packed supervised training against TRL's, in real tokens a second, documents isolated.

Both sides take 8 rows of 256 tokens, packed from documents of 8 to 64 tokens, on one thread.
Target: at least 3 times TRL's packing with isolation (``bfd``). Our side runs ``train_sft`` as
users do, with logging, clipping and checkpoints on.
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
from benchmarks.tiny import build, corpus, tokenizer

ROWS, LENGTH, DOCUMENTS_PER_STEP = 8, 256, 56


def monro(a: argparse.Namespace) -> list[float]:
    from launch.optimizers import AdamW
    from launch.runtime import Runtime
    from posttrain.data.packing import Document
    from posttrain.trainers import SFTConfig, train_sft

    words = tokenizer()
    documents = []
    for text in corpus(8_000):
        tokens = words.encode(text)
        documents.append(Document(tokens=tokens, mask=[True] * len(tokens)))
    cfg = SFTConfig(
        steps=a.steps + 1,
        documents_per_step=DOCUMENTS_PER_STEP,
        row_length=LENGTH,
        optimizer=AdamW(learning_rate=1e-3),
        save_every=10,
    )
    with tempfile.TemporaryDirectory() as folder:
        with Runtime(output=Path(folder) / "run") as run:
            train_sft(cfg, build(a.shape), documents, run)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    pairs = itertools.pairwise(records)
    return [new["tokens"] / (new["seconds"] - old["seconds"]) for old, new in pairs]


def peer(a: argparse.Namespace) -> list[float]:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    stamps: list[float] = []
    tokens: list[int] = []

    class Stamp(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            stamps.append(time.perf_counter())

        def on_step_end(self, *_: object, **__: object) -> None:
            stamps.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=ROWS,
            max_steps=a.steps + 1,
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            learning_rate=1e-3,
            max_length=LENGTH,
            disable_tqdm=True,
            gradient_checkpointing=False,
            packing=True,
            packing_strategy=a.packing,
        )
        trainer = SFTTrainer(
            model=build(a.shape),
            args=settings,
            train_dataset=Dataset.from_dict({"text": corpus(8_000)}),
            processing_class=tokenizer(),
            callbacks=[Stamp()],
        )
        inner = trainer.training_step

        def counted(
            model: object, inputs: dict[str, torch.Tensor], *x: object, **k: object
        ) -> object:
            tokens.append(int((inputs["labels"] != -100).sum()))
            return inner(model, inputs, *x, **k)

        trainer.training_step = counted
        trainer.train()
    seconds = [b - x for x, b in zip(stamps[::2], stamps[1::2], strict=True)]
    return [n / s for n, s in zip(tokens[1:], seconds[1:], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=["both", "monro", "peer"], default="both")
    parser.add_argument("--shape", default="0.35m")
    parser.add_argument("--packing", default="bfd", choices=["bfd", "wrapped"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.side != "both":
        speeds = monro(a) if a.side == "monro" else peer(a)
        print(json.dumps({"tokens_per_s": speeds}))
        return
    flags = ["--shape", a.shape, "--packing", a.packing, "--steps", str(a.steps)]
    found = in_turn("benchmarks.bench_sft", flags, a.rounds)
    medians = {
        side: [statistics.median(run["tokens_per_s"]) for run in runs]
        for side, runs in found.items()
    }
    pairs = zip(medians["monro"], medians["peer"], strict=True)
    figures: dict[str, object] = {"packing": a.packing, "shape": a.shape}
    figures |= {f"{side}_tokens_per_s": spread(values) for side, values in medians.items()}
    figures["ratio"] = spread([ours / theirs for ours, theirs in pairs])
    emit("sft", figures, ("torch", "transformers", "trl"))


if __name__ == "__main__":
    main()
