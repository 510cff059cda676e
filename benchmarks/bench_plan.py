"""``monro plan`` against what a training loop really holds: peaks of live tensor bytes.

Two steps of the trainers themselves on random models of 200 MB and more, on the CPU; the first, of
supervised training short, makes the optimizer's moments, which live during the second. Bytes are
counted by the allocator (``launch.live_bytes``), the weights added. The plan is that of a job with
the same settings, made of the model's config.json alone. Target: each within 15%.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import emit
from launch.live_bytes import live_bytes
from launch.plan import lay_out
from launch.plan_devices import device
from launch.runtime import Runtime, RuntimeConfig
from posttrain.adapters import LoRA, with_adapters
from posttrain.data.packing import Document
from posttrain.data.preferences import Pair
from posttrain.data.tasks.base import Prompt
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.objectives import GRPO, SFT
from posttrain.recipes.jobs import GRPOJob, PreferenceJob, SFTJob
from posttrain.recipes.sources import Pretrained
from posttrain.rollout import Sampling
from posttrain.trainers.policy import train_grpo
from posttrain.trainers.preference import train_preferences
from posttrain.trainers.supervised import train_sft

DEEP = {"width": 768, "layers": 8, "heads": 12, "key_heads": 4, "inner": 2048}
WIDE = {"width": 768, "layers": 2, "heads": 12, "key_heads": 4, "inner": 2048, "words": 49_152}
UNTIED = WIDE | {"width": 512, "heads": 8, "key_heads": 8, "words": 45_000, "tied": False}


@dataclass(frozen=True)
class Made:
    """Documents or pairs of random tokens, as a job's data."""

    found: Sequence[Any]

    def check(self) -> None:
        """Nothing can be missing."""

    def texts(self, count: int) -> list[str]:
        """Return none: no tokenizer is learnt."""
        return []

    def documents(self, lm: LanguageModel, count: int, seed: int) -> Sequence[Document]:
        """Return the documents."""
        return self.found

    def pairs(self, lm: LanguageModel, count: int, seed: int) -> Sequence[Pair]:
        """Return the pairs."""
        return self.found

    def heldout(self, lm: LanguageModel) -> Sequence[Pair]:
        """Return none."""
        return []


@dataclass(frozen=True)
class Questions:
    """A task whose every completion of odd length is right."""

    reward: Callable[..., Any] = field(default=lambda samples: [len(s.tokens) % 2 for s in samples])

    def train(self) -> list[Prompt]:
        """Return problems of some 60 tokens."""
        return [Prompt(text="a b " * 30 + f"{i}", answer="") for i in range(64)]

    def heldout(self) -> list[Prompt]:
        """Return none."""
        return []


def made(folder: Path, *, words: int = 300, tied: bool = True, **sizes: int) -> LanguageModel:
    """Return a random model whose config and tokenizer, and nothing else, are in ``folder``."""
    tokenizer = train_tokenizer(["a b c d e 0 1 2 3 4 5 6 7 8 9"] * 4, vocabulary=300)
    small = tiny_model(tokenizer, layers=1, width=8, heads=1)
    config = small.model.config
    config.update(
        {
            "vocab_size": words,
            "hidden_size": sizes["width"],
            "num_hidden_layers": sizes["layers"],
            "num_attention_heads": sizes["heads"],
            "num_key_value_heads": sizes["key_heads"],
            "head_dim": sizes["width"] // sizes["heads"],
            "intermediate_size": sizes["inner"],
            "tie_word_embeddings": tied,
        }
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    return replace(small, model=type(small.model)(config), tokenizer=tokenizer)


def random_documents(count: int, length: int) -> list[Document]:
    """Return a step of short documents, then a step of long ones."""
    g = torch.Generator().manual_seed(length)
    sizes = [8] * count + [length] * count
    return [Document(torch.randint(4, 300, (n,), generator=g), [True] * n) for n in sizes]


def random_pairs(count: int, prompt: int, length: int) -> list[Pair]:
    g = torch.Generator().manual_seed(length)
    mask = [i >= prompt for i in range(prompt + length)]
    found = []
    for _ in range(count):
        asked = torch.randint(4, 300, (prompt,), generator=g)
        a, b = (torch.cat((asked, torch.randint(4, 300, (length,), generator=g))) for _ in "ab")
        found.append((Document(a, mask), Document(b, mask)))
    return found


def cases(folder: Path) -> dict[str, tuple[dict[str, Any], Any]]:
    """Return each case's sizes and job."""
    runtime = RuntimeConfig(threads=1)
    model = Pretrained(path=str(folder))
    sft = SFTJob(
        model=model,
        data=Made(random_documents(2, 1024)),
        objective=SFT(),
        steps=2,
        documents_per_step=2,
        row_length=1024,
        shuffle=False,
        micro_batch=2,
        runtime=runtime,
    )
    grpo = GRPOJob(
        model=model,
        task=Questions(),
        objective=GRPO(),
        steps=2,
        prompts_per_step=2,
        group_size=4,
        sampling=Sampling(max_tokens=64, stop_tokens=(299,)),
        runtime=runtime,
    )
    dpo = PreferenceJob(
        model=model,
        data=Made(random_pairs(2, 128, 128)),
        steps=2,
        pairs_per_step=2,
        runtime=runtime,
    )
    again = replace(runtime, activation_checkpointing=True)
    return {
        "sft, 2 rows of 1024": (DEEP, sft),
        "sft, 2 rows of 1024, one a micro-batch": (DEEP, replace(sft, micro_batch=1)),
        "sft, activation checkpointing": (DEEP, replace(sft, runtime=again)),
        "sft, bf16": (DEEP, replace(sft, runtime=replace(runtime, precision="bf16"))),
        "sft, LoRA of rank 8": (DEEP, replace(sft, lora=LoRA(rank=8))),
        "sft, 16 documents of 64": (
            DEEP,
            replace(sft, data=Made(random_documents(16, 64)), documents_per_step=16),
        ),
        "sft, vocabulary of 49k, tied": (
            WIDE,
            replace(sft, data=Made(random_documents(2, 512)), row_length=512),
        ),
        "sft, vocabulary of 49k, one a micro-batch": (
            WIDE,
            replace(sft, data=Made(random_documents(2, 512)), row_length=512, micro_batch=1),
        ),
        "sft, vocabulary of 45k, not tied": (
            UNTIED,
            replace(sft, data=Made(random_documents(2, 512)), row_length=512),
        ),
        "dpo, 2 pairs of 128 + 128": (DEEP, dpo),
        "grpo, 2 x 4, 61 + 64 tokens": (DEEP, grpo),
        "grpo with a reference, 49k words": (WIDE, replace(grpo, objective=GRPO(kl_weight=0.1))),
    }


def train(job: SFTJob | PreferenceJob | GRPOJob, lm: LanguageModel) -> int:
    """Return the peak of live bytes of the job's training."""
    if job.lora is not None:
        lm = with_adapters(lm, job.lora)
    weights = sum(p.numel() * p.element_size() for p in lm.model.parameters())
    gc.collect()  # what an earlier case leaves must not be given back while this one is counted
    with live_bytes() as seen, Runtime(job.runtime) as run:
        if isinstance(job, SFTJob):
            train_sft(job, lm.model, job.data.found, run)
        elif isinstance(job, PreferenceJob):
            train_preferences(job, lm.model, job.data.found, run)
        else:
            train_grpo(job, lm, job.task, run)
    return weights + seen.peak


def compare(name: str) -> dict[str, float]:
    """Return planned and counted MB of a case."""
    with tempfile.TemporaryDirectory() as folder:
        sizes, job = cases(Path(folder))[name]
        lm = made(Path(folder), **sizes)
        planned = lay_out(lambda count: job.workload(count, "cpu"), 1, 80e9, device("cpu"))[0]
        counted = train(job, lm)
    return {
        "weights_mb": round(planned.parts["parameters"] / 1e6),
        "planned_mb": round(planned.total / 1e6),
        "counted_mb": round(counted / 1e6),
        "ratio": round(planned.total / counted, 3),
        "at": planned.peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[""], help="cases with one of these in them")
    a = parser.parse_args()
    names = [name for name in cases(Path()) if any(part in name for part in a.only)]
    emit("plan", {name: compare(name) for name in names})


if __name__ == "__main__":
    main()
