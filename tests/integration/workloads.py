"""Run by test_strategies.py: every kind of training under one strategy, each for twelve steps."""

import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from launch.batch import TensorBatch, shaped
from launch.ema import EMA
from launch.memory import checkpoint_activations
from launch.optimizers import AdamW, MuonAdamW
from launch.processes import leave
from launch.runtime import Runtime, RuntimeConfig
from launch.schedule import Cosine, set_learning_rate
from posttrain.adapters import LoRA, with_adapters
from posttrain.architecture import keep_architecture
from posttrain.data.packing import Document
from posttrain.data.tasks.arithmetic import Arithmetic
from posttrain.models import LanguageModel, train_tokenizer
from posttrain.objectives import GRPO
from posttrain.objectives.preference import DPO
from posttrain.rewards.base import Sample
from posttrain.rollout import Sampling
from posttrain.trainers.policy import GRPOConfig, train_grpo
from posttrain.trainers.preference import PreferenceConfig, train_preferences
from posttrain.trainers.supervised import SFTConfig, train_sft
from rl import ppo, reinforce
from rl.actor_critic import SeparateTrunks

STEPS = 12
SCHEDULE = Cosine(warmup=3, final=0.1)


def language_model(seed: int = 0) -> LanguageModel:
    """A Qwen2 of 0.35 million parameters, whose embedding is its head."""
    texts = [f"{a} + {b} = {a + b}" for a in range(40) for b in range(40)]
    tokenizer = train_tokenizer(texts, vocabulary=256)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=304,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)
    assert 340_000 < sum(p.numel() for p in model.parameters()) < 360_000
    return LanguageModel(model, tokenizer, tokenizer.pad_token_id, (tokenizer.eos_token_id,))


def document(seed: int, length: int, masked: int) -> Document:
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 50, (length,), generator=g)
    return Document(tokens, torch.arange(length) >= masked)


def sft(run: Runtime, optimizer: object = None) -> nn.Module:
    lm = language_model()
    documents = [document(i, 5 + (i * 13) % 50, 2 + i % 3) for i in range(40)]
    cfg = SFTConfig(
        steps=STEPS,
        documents_per_step=7,  # four on one process and three on the other
        row_length=64,
        micro_batch=1,
        optimizer=optimizer or AdamW(learning_rate=2e-3, weight_decay=0.1),
        schedule=SCHEDULE,
        max_grad_norm=0.5,
        save_every=5,
    )
    keep_architecture(lm.model, lm.tokenizer, run)
    train_sft(cfg, lm.model, documents, run)
    return lm.model


def own_forward(run: Runtime) -> nn.Module:
    """A model that is computed through its own forward, in passes of several documents."""
    tokenizer = language_model().tokenizer
    torch.manual_seed(1)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=64,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        )
    )
    documents = [document(i, 5 + (i * 13) % 50, 2 + i % 3) for i in range(40)]
    cfg = SFTConfig(
        steps=STEPS, documents_per_step=3, row_length=64, micro_batch=1, schedule=SCHEDULE
    )
    train_sft(cfg, model, documents, run)
    return model


def lora(run: Runtime) -> nn.Module:
    """Adapters on a frozen model whose layers are computed again in the backward pass."""
    lm = with_adapters(language_model(), LoRA(rank=4))
    checkpoint_activations(lm.model)
    documents = [document(i, 5 + (i * 13) % 50, 2 + i % 3) for i in range(40)]
    cfg = SFTConfig(
        steps=STEPS,
        documents_per_step=5,
        row_length=64,
        micro_batch=1,
        optimizer=AdamW(learning_rate=2e-3),
        schedule=SCHEDULE,
        save_every=5,
    )
    train_sft(cfg, lm.model, documents, run)
    return lm.model


def sft_muon(run: Runtime) -> nn.Module:
    return sft(run, MuonAdamW(learning_rate=0.01, adamw=AdamW(learning_rate=2e-3)))


def spread(samples: Sequence[Sample]) -> Tensor:
    """A reward in which completions of a model that knows nothing differ."""
    return torch.tensor([float(sum(sample.tokens) % 5) for sample in samples])


def grpo(run: Runtime) -> nn.Module:
    lm = language_model()
    task = Arithmetic()
    cfg = GRPOConfig(
        objective=GRPO(kl_weight=0.04),
        steps=STEPS,
        prompts_per_step=3,
        group_size=4,
        sampling=Sampling(max_tokens=12),
        micro_batch=4,
        optimizer=AdamW(learning_rate=1e-3, weight_decay=0.1),
        schedule=SCHEDULE,
        max_grad_norm=0.5,
    )
    train_grpo(cfg, lm, task, run, reward=spread)
    return lm.model


def dpo(run: Runtime) -> nn.Module:
    lm = language_model()
    pairs = []
    for i in range(20):
        prompt = document(100 + i, 3 + i % 5, 99)
        ends = [document(200 + 2 * i + j, 4 + (i * (j + 3)) % 17, 0) for j in (0, 1)]
        pairs.append(
            tuple(
                Document(
                    torch.cat([torch.as_tensor(prompt.tokens), torch.as_tensor(end.tokens)]),
                    torch.cat([torch.as_tensor(prompt.mask), torch.as_tensor(end.mask)]),
                )
                for end in ends
            )
        )
    cfg = PreferenceConfig(
        objective=DPO(),
        steps=STEPS,
        pairs_per_step=5,
        row_length=64,
        micro_batch=1,
        optimizer=AdamW(learning_rate=5e-4, weight_decay=0.1),
        schedule=SCHEDULE,
        max_grad_norm=0.5,
    )
    train_preferences(cfg, lm.model, pairs, run)
    return lm.model


def ppo_cartpole(run: Runtime) -> nn.Module:
    cfg = ppo.PPOConfig(
        env="CartPole-v1",
        network=SeparateTrunks(),
        env_steps=STEPS * 5 * 16,
        envs=5,
        rollout_steps=16,
        epochs=2,
        minibatches=2,
        micro_batch=11,
        eval_every=STEPS * 5 * 16,
        eval_episodes=1,
    )
    return ppo.train(cfg, run).network


def reinforce_cartpole(run: Runtime) -> nn.Module:
    """Four episodes of eight steps, which no CartPole ends before, are an update."""
    cfg = reinforce.REINFORCEConfig(
        env="CartPole-v1",
        env_steps=STEPS * 4 * 8,
        envs=4,
        max_episode_steps=8,
        eval_every=STEPS * 4 * 8,
        eval_episodes=1,
    )
    return reinforce.train(cfg, run).network


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Points(TensorBatch):
    x: Tensor = shaped("B D")


class Net(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(inputs, 24), nn.Linear(24, 24)])
        self.out = nn.Linear(24, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.out(x)


def gan(run: Runtime) -> nn.Module:
    """A pair in turn, with an average of the generator and a frozen model that both look at."""
    torch.manual_seed(0)
    generator, critic, eye = Net(3, 2), Net(2, 1), Net(2, 2).requires_grad_(False)
    adamw = AdamW(learning_rate=1e-2, weight_decay=0.1)
    make, make_by = run.prepare(generator, adamw.build(generator))
    judge, judge_by = run.prepare(critic, adamw.build(critic))
    seen = run.prepare(eye)
    ema = EMA(make, half_life=40)
    state = {"generator": generator, "critic": critic, "ema": ema}
    state |= {"make_by": make_by, "judge_by": judge_by}
    for step in run.steps(STEPS, state=state, save_every=5):
        for optimizer in (make_by, judge_by):
            set_learning_rate(optimizer, SCHEDULE(step - 1, STEPS))
        g = torch.Generator().manual_seed(step)
        noise, real = torch.randn(13, 3, generator=g), torch.randn(13, 2, generator=g) * 0.5 + 1
        mine = slice(run.share(13).start, run.share(13).stop)
        for rows in run.micro_batches(Points(x=torch.cat([noise, real], 1)[mine]), 2):
            with torch.no_grad():
                fake = make(rows.x[:, :3])
            loss = nn.functional.softplus(judge(seen(fake))).sum()
            run.backward((loss + nn.functional.softplus(-judge(seen(rows.x[:, 3:]))).sum()) / 13)
        run.step(judge_by, 0.5)
        judged = run.loss
        critic.requires_grad_(False)
        for rows in run.micro_batches(Points(x=noise[mine]), 2):
            run.backward(nn.functional.softplus(-judge(seen(make(rows.x)))).sum() / 13)
        norm = run.step(make_by, 0.5)
        critic.requires_grad_(True)
        ema.update(make, samples=13)
        run.log(step, {"loss": run.loss, "loss/critic": judged, "grad_norm": norm})
    judge, judge_by = run.prepare(critic, adamw.build(critic))  # whole again, and cut anew
    run.backward(judge(real[mine]).square().sum() / 13)
    run.step(judge_by, 0.5)
    run.release()
    both = nn.ModuleDict({"generator": generator, "critic": critic})
    both["average"] = copy.deepcopy(generator)
    wholes = run.gather_objects([{n: (p.begin, p.data) for n, p in ema.pieces().items()}])
    for name, p in both["average"].named_parameters():
        runs = {begin: x for found in wholes for begin, x in [found[name]] if x.numel()}
        p.data = torch.cat([runs[k].flatten() for k in sorted(runs)]).view(p.shape)
    return both


WORKLOADS: dict[str, Callable[[Runtime], nn.Module]] = {
    "sft": sft,
    "sft-muon": sft_muon,
    "own-forward": own_forward,
    "lora": lora,
    "grpo": grpo,
    "dpo": dpo,
    "ppo": ppo_cartpole,
    "reinforce": reinforce_cartpole,
    "gan": gan,
}


def main(strategy: str, output: str, *names: str) -> None:
    """Run workloads by name, or all; a folder that is there is gone on with."""
    config, begun = RuntimeConfig(strategy=strategy, keep=3), Path(output).exists()
    with Runtime(config, output=Path(output), seed=5, resume=begun) as run:
        for name in names or WORKLOADS:
            start = time.perf_counter()
            with run.stage(name) as stage:
                model = WORKLOADS[name](stage)
            if run.is_main:
                torch.save(
                    {k: v.detach() for k, v in model.state_dict().items()},
                    Path(output, f"{name}.pt"),
                )
            run.print(f"{name}: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
