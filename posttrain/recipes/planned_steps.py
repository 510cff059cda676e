"""What a step of supervised, preference, reward-model and GRPO jobs takes, for ``monro plan``.

Rows are taken from the job's own data where data and tokenizer are there, otherwise as long as the
config allows. What comes before the training itself, a warm-up, is not planned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from launch.errors import UsageError
from launch.optimizers import OptimizerConfig
from launch.plan import Moment, Workload, state_bytes
from launch.plan_devices import Stage
from launch.runtime import RuntimeConfig
from posttrain.data.chat import encode_chats, encode_prompt
from posttrain.data.conversations import load_conversations
from posttrain.data.order import shuffled
from posttrain.data.packing import Document, pack
from posttrain.data.preference_files import encode_pairs, load_preferences
from posttrain.data.preferences import Pair, pad_pairs
from posttrain.log_probs_plan import Plan, plain_plan, shared_plan
from posttrain.models import LanguageModel
from posttrain.objectives.base import needs_reference
from posttrain.plan import Numbers, Pass, Shape, read_shape, update
from posttrain.plan_passes import Drawn, decoding, frozen_pass, frozen_stage, rollout, update_stages
from posttrain.recipes.planned_models import Bare, bare_model
from posttrain.recipes.sources import ChatFile, DocumentSource, PairFile, PairSource
from posttrain.trainers.preference import shared_lengths
from posttrain.trainers.supervised import TOKENS_PER_MICRO_BATCH

if TYPE_CHECKING:
    from posttrain.recipes.jobs import GRPOJob, PreferenceJob, SFTJob
    from posttrain.recipes.reward_jobs import RewardModelJob

__all__ = ["grpo_workload", "preference_workload", "reward_model_workload", "sft_workload"]

_STEPS = 4
"""Of the data, looked at for the largest micro-batch."""


def sft_workload(job: SFTJob, processes: int, device: str) -> Workload:
    """Return what one process does in a step of supervised fine-tuning."""
    texts = job.data.texts(2_000) if _has_data(job.data) else ()
    bare = bare_model(job.model, texts, job.lora, job.seed)
    shape, numbers = read_shape(bare.model), _numbers(bare, job.runtime, device)
    mine = -(-job.documents_per_step // processes)
    micro_batch = job.micro_batch or max(1, TOKENS_PER_MICRO_BATCH // job.row_length)
    found = _documents(bare.lm, job.data, mine * _STEPS, job.seed)
    if found:
        step, passes = _packed(found, mine, micro_batch, job.row_length)
        note = f"Rows are packed from the data: at most {step.tokens} tokens a micro-batch."
    else:
        rows = min(mine, micro_batch)
        step = _rows(rows, job.row_length)
        passes = -(-mine // rows)
        note = f"Rows are taken to be full: {rows} x {job.row_length} tokens a micro-batch."
    return _workload(
        bare, shape, numbers, job.optimizer, job.runtime, step, passes=passes, notes=(note,)
    )


def preference_workload(job: PreferenceJob, processes: int, device: str) -> Workload:
    """Return what one process does in a step of preference optimisation."""
    texts = job.data.texts(2_000) if _has_data(job.data) else ()
    bare = bare_model(job.model, texts, job.lora, job.seed)
    shape, numbers = read_shape(bare.model), _numbers(bare, job.runtime, device)
    step, passes, note = _pairs(job, bare.lm, processes)
    compares = needs_reference(job.objective)
    size = shape.parameters * numbers.weight if compares and shape.whole else 0
    moments, stages = [], []
    if compares:
        away = size if job.offload_reference and device != "cpu" else 0
        moments.append(
            frozen_pass(shape, step, numbers, name="pass of the reference", reference=away)
        )
        stages.append(frozen_stage(shape, step, numbers, passes=passes))
        size -= away
    return _workload(
        bare,
        shape,
        numbers,
        job.optimizer,
        job.runtime,
        step,
        passes=passes,
        reference=size,
        moments=moments,
        stages=stages,
        notes=(note,),
    )


def reward_model_workload(job: RewardModelJob, processes: int, device: str) -> Workload:
    """Return what one process does in a step of a reward model's training."""
    texts = job.data.texts(2_000) if _has_data(job.data) else ()
    bare = bare_model(job.model, texts, None, job.seed)
    shape, numbers = read_shape(bare.model), _numbers(bare, job.runtime, device)
    count = shape.parameters - (0 if shape.tied else shape.table) + shape.width
    shape = replace(shape, head=False, tied=False, parameters=count, trained=count)
    step, passes, note = _pairs(job, bare.lm, processes)
    step = replace(step, wanted=step.rows)
    return _workload(
        bare, shape, numbers, job.optimizer, job.runtime, step, passes=passes, notes=(note,)
    )


def grpo_workload(job: GRPOJob, processes: int, device: str) -> Workload:
    """Return what one process does in a step of GRPO: a rollout, perhaps a reference, updates."""
    texts = job.warm_up.data.texts(2_000) if job.warm_up else ()
    bare = bare_model(job.model, texts, job.lora, job.seed)
    shape, numbers = read_shape(bare.model), _numbers(bare, job.runtime, device)
    new = max([job.sampling.max_tokens, *job.max_tokens_after.values()])
    length, note = _prompt_length(job, bare.lm, new)
    mine, group = -(-job.prompts_per_step // processes), job.group_size
    wide = job.micro_batch or max(1, TOKENS_PER_MICRO_BATCH // (length + new) // group) * group
    rows = min(wide, mine * group)
    passes = -(-mine * group // rows)
    if rows % group or job.minibatches > 1:
        step = _rows(rows, length + new, wanted=rows * new)
    else:
        prompts = rows // group
        step = Pass(
            rows=rows,
            length=new,
            before=length,
            tokens=prompts * length + rows * new,
            wanted=rows * new,
        )
    step = replace(step, entropy=True)
    drawn = Drawn(
        prompts=mine * job.minibatches,
        group_size=group,
        prompt_length=length,
        max_tokens=new,
        tempered=job.sampling.temperature != 1.0,
    )
    size = shape.parameters * numbers.weight if job.compares and shape.whole else 0
    away = size if job.offload_reference and device != "cpu" else 0
    frozen = int(job.compares) + (job.minibatches > 1)
    here = job.rollouts is None
    moments: list[Moment] = rollout(shape, drawn, numbers) if here else []
    stages: list[Stage] = [*decoding(shape, drawn, numbers)]
    where = "" if here else "Servers draw the completions: their memory is their own."
    if frozen:
        moments.append(
            frozen_pass(shape, step, numbers, name="pass without gradient", reference=away)
        )
        stages.append(frozen_stage(shape, step, numbers, passes=frozen * passes))
    return _workload(
        bare,
        shape,
        numbers,
        job.optimizer,
        job.runtime,
        step,
        passes=passes,
        updates=job.updates_per_rollout,
        reference=size - away,
        moments=moments,
        stages=stages,
        notes=(note, f"Completions are taken to be {new} tokens long.", where),
    )


def _workload(
    bare: Bare,
    shape: Shape,
    numbers: Numbers,
    optimizer: OptimizerConfig,
    runtime: RuntimeConfig,
    step: Pass,
    *,
    passes: int,
    updates: int = 1,
    reference: int = 0,
    moments: Sequence[Moment] = (),
    stages: Sequence[Stage] = (),
    notes: Sequence[str] = (),
) -> Workload:
    """Put together what all of them have: weights, an optimizer, and updates."""
    again = runtime.activation_checkpointing
    state, unknown = state_bytes(optimizer, bare.model)
    work = update_stages(shape, step, numbers, passes=passes * updates, checkpoints=again)
    portable = (
        ""
        if shape.own
        else "The model runs through its own forward: its activations are a rough estimate."
    )
    weight = "float32" if numbers.weight == 4 else "16-bit"
    cast = f", products in {runtime.precision} from copies of them" if numbers.half else ""
    return Workload(
        parameters=shape.parameters * numbers.weight,
        gradients=shape.trained * numbers.weight,
        optimizer=state,
        reference=reference,
        unit=max(shape.layer, shape.table) * numbers.weight,
        moments=(
            *moments,
            *update(shape, step, numbers, passes=passes, checkpoints=again),
        ),
        stages=(*stages, *work),
        passes=passes,
        updates=updates,
        forwards=sum(x.name == "frozen pass" for x in stages) * passes,
        precision=f"{weight} weights, gradients and optimizer state{cast}",
        notes=tuple(filter(None, (*notes, unknown, portable))),
    )


def _numbers(bare: Bare, runtime: RuntimeConfig, device: str) -> Numbers:
    weight = next(bare.model.parameters()).element_size()
    return Numbers(weight=weight, half=runtime.precision != "fp32" and weight == 4, device=device)


def _rows(rows: int, length: int, *, wanted: int | None = None) -> Pass:
    tokens = rows * (length - 1) if length > 1 else rows
    return Pass(
        rows=rows,
        length=max(1, length - 1),
        tokens=tokens,
        wanted=tokens if wanted is None else wanted,
    )


def _pass(plan: Plan | None) -> Pass:
    """Return a pass as the decoder would run it."""
    if plan is None:
        return _rows(1, 1)
    blocks = plan.layout.blocks
    own = [block for block in blocks if block.prefix is None]
    ahead = [block for block in blocks if block.prefix is not None]
    seen = ahead or own
    return Pass(
        rows=sum(len(block.tokens) for block in seen),
        length=max(block.tokens.shape[1] for block in seen),
        before=max(block.tokens.shape[1] for block in own) if ahead else 0,
        tokens=len(plan.sources),
        wanted=len(plan.columns),
        slots=sum(block.tokens.numel() for block in blocks),
    )


def _largest(passes: Iterable[Pass]) -> Pass:
    return max(passes, key=lambda step: (step.tokens, step.wanted))


def _has_data(data: DocumentSource | PairSource) -> bool:
    """Whether rows can be had; a file that is named but missing is an error."""
    if not isinstance(data, ChatFile | PairFile):
        return True
    if data.path:
        data.check()
    return bool(data.path)


def _documents(
    lm: LanguageModel | None, data: DocumentSource, count: int, seed: int
) -> list[Document]:
    """Return documents of the first steps; none where data, tokenizer or template are missing."""
    if lm is None or not _has_data(data):
        return []
    if not isinstance(data, ChatFile):
        return list(islice(iter(data.documents(lm, count, seed)), count))
    chats = load_conversations(Path(data.path))
    chosen = [chats[i] for i in shuffled(len(chats), 0, count, seed)]
    return list(encode_chats(lm.tokenizer, chosen))


def _packed(
    documents: Sequence[Document], mine: int, micro_batch: int, length: int
) -> tuple[Pass, int]:
    """Return the largest micro-batch of the first steps, and the micro-batches of a step."""
    passes, counts = [], []
    for first in range(0, len(documents), mine):
        parts = list(pack(documents[first : first + mine], length=length).split(micro_batch))
        counts.append(len(parts))
        for part in parts:
            starts = part.position_ids == 0
            passes.append(_pass(plain_plan(part.mask & ~starts, starts, part.position_ids)))
    return _largest(passes), max(counts)


def _pairs(
    job: PreferenceJob | RewardModelJob, lm: LanguageModel | None, processes: int
) -> tuple[Pass, int, str]:
    """Return the largest micro-batch, the micro-batches of a step, and where they are from."""
    mine = -(-job.pairs_per_step // processes)
    found: list[Pair] = []
    if lm is not None and _has_data(job.data):
        count = mine * _STEPS
        if isinstance(job.data, PairFile):
            lines = load_preferences(job.data.path)
            chosen = [lines[i] for i in shuffled(len(lines), 0, count, job.seed)]
            found = list(encode_pairs(lm.tokenizer, chosen))
        else:
            found = list(islice(iter(job.data.pairs(lm, count, job.seed)), count))
    if not found:
        per_pass = job.micro_batch or max(1, TOKENS_PER_MICRO_BATCH // (2 * job.row_length))
        pairs = min(per_pass, mine)
        note = f"Pairs are taken to be 2 x {job.row_length} tokens, {pairs} a micro-batch."
        return _rows(2 * pairs, job.row_length), -(-mine // pairs), note
    passes, counts = [], []
    for first in range(0, len(found), mine):
        batch = pad_pairs(found[first : first + mine])
        longest = max(1, batch.tokens.shape[1])
        per_pass = job.micro_batch or max(1, TOKENS_PER_MICRO_BATCH // (2 * longest))
        parts = list(batch.split(per_pass))
        counts.append(len(parts))
        for part in parts:
            lengths, starts = shared_lengths(part), torch.zeros_like(part.mask)
            starts[:, 0] = True
            wanted = part.mask & ~starts
            whole = bool(lengths.all())
            plan = shared_plan(wanted, 2, lengths) if whole else plain_plan(wanted, starts, None)
            passes.append(_pass(plan))
    step = _largest(passes)
    note = f"Pairs are those of the data: at most {step.tokens} tokens a micro-batch."
    return step, max(counts), note


def _prompt_length(job: GRPOJob, lm: LanguageModel | None, new: int) -> tuple[int, str]:
    """Return the tokens of the longest of the first prompts, and where they are from."""
    if job.task is None or lm is None:
        why = "no task is given" if job.task is None else "there is no tokenizer"
        return new, f"Prompts are taken to be {new} tokens long, as completions are: {why}."
    prompts = job.task.train()
    seen = [prompts[i] for i in range(min(len(prompts), 64))]
    if not seen:
        raise UsageError("the task has no prompts to train on")
    longest = max(len(encode_prompt(lm.tokenizer, prompt)) for prompt in seen)
    return longest, f"Prompts are taken to be {longest} tokens long, as the task's longest."
