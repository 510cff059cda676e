from __future__ import annotations

import copy
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.config import from_yaml, resumable_keys, to_yaml
from launch.errors import UsageError
from launch.metrics import Metric
from launch.optimizers import AdamW
from launch.runtime import Runtime
from posttrain.adapters import LoRA, with_adapters
from posttrain.data.tasks import Prompt
from posttrain.eval.run import Generates
from posttrain.models import LanguageModel, load_model, tiny_model, train_tokenizer
from posttrain.rewards import Sample
from posttrain.rollout import Engine, Rollout, Sampling
from posttrain.rollout.stand_in import Answer, StandIn
from posttrain.rollout.vllm_engine import VLLM, VLLMEngine, write_weights
from posttrain.rollout.vllm_messages import request_of, seed_of
from posttrain.tools import ToolOutput, ToolUse
from posttrain.trainers import DynamicSampling, GRPOConfig, train_grpo

TEXTS = [f"{a} plus {b} is {a + b}" for a in range(10) for b in range(10)]
PROMPTS = [[5, 6, 7], [8], [5, 6], [9, 10, 11, 12], [13]]
SAMPLING = Sampling(max_tokens=8, stop_tokens=(20, 21, 22))
COMPLETIONS, RELOAD = "POST /v1/completions", "POST /collective_rpc"
Fault = Callable[[dict[str, Any], Callable[[], Answer]], Answer]


class Faulty(StandIn):
    """A stand-in that counts its calls; a fault stands in the place of an answer."""

    def __init__(self, lm: LanguageModel) -> None:
        super().__init__(lm)
        self.calls: list[str] = []
        self.faults: dict[str, Fault] = {}

    def answer(self, method: str, path: str, body: dict[str, Any]) -> Answer:
        call = f"{method} {path.partition('?')[0]}"
        self.calls.append(call)
        if call in self.faults:
            return self.faults[call](body, lambda: super(Faulty, self).answer(method, path, body))
        return super().answer(method, path, body)


@pytest.fixture(scope="module")
def made() -> LanguageModel:
    return tiny_model(train_tokenizer(TEXTS, vocabulary=80), layers=1, width=16, heads=2, seed=1)


@pytest.fixture
def lm(made: LanguageModel) -> LanguageModel:
    return replace(made, model=copy.deepcopy(made.model))


@pytest.fixture
def server(made: LanguageModel) -> Iterator[Faulty]:
    with Faulty(made) as found:
        yield found


def at(server: StandIn, folder: Path, **limits: float) -> VLLM:
    return replace(VLLM(urls=(server.url,), folder=str(folder), retries=1, seconds=30), **limits)


def same(a: Rollout, b: Rollout) -> None:
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.mask, b.mask)
    assert list(a.finish_reasons) == list(b.finish_reasons)
    torch.testing.assert_close(a.old_log_probs, b.old_log_probs, rtol=0, atol=1e-6)


def moved(lm: LanguageModel) -> None:
    """Change every weight."""
    with torch.no_grad():
        for p in lm.model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(7)))


@pytest.mark.parametrize("seeds", [None, [3, -1, 2**64 - 1, 2**70, 0]])
@pytest.mark.parametrize(
    "sampling",
    [
        SAMPLING,
        replace(SAMPLING, stop_tokens=(10**6,)),  # beyond the vocabulary: never stops
        replace(SAMPLING, top_k=5, top_p=0.8),
        replace(SAMPLING, temperature=0.0),
    ],
)
def test_completions_are_those_of_the_engine(
    sampling: Sampling, seeds: list[int] | None, lm: LanguageModel, server: Faulty, tmp_path: Path
) -> None:
    served = VLLMEngine(at(server, tmp_path), lm, Runtime())
    served.push(0)
    drawn = served.generate(PROMPTS, sampling, 3, seeds=seeds)
    local = Engine(lm.model).generate(PROMPTS, sampling, 3, seeds=seeds)
    same(drawn, local)
    stops = sampling.stop_tokens == SAMPLING.stop_tokens and sampling.temperature > 0
    assert ("stop" in drawn.finish_reasons) == stops
    torch.testing.assert_close(drawn.tempered_log_probs, local.tempered_log_probs)
    assert (drawn.tempered_log_probs is drawn.old_log_probs) == (sampling.temperature == 1)


def test_at_another_temperature_the_tempered_log_probs_are_not_known(
    lm: LanguageModel, server: Faulty, tmp_path: Path
) -> None:
    served = VLLMEngine(at(server, tmp_path), lm, Runtime())
    served.push(0)
    drawn = served.generate(PROMPTS, replace(SAMPLING, temperature=0.7), 2)
    same(drawn, Engine(lm.model).generate(PROMPTS, replace(SAMPLING, temperature=0.7), 2))
    assert torch.equal(drawn.tempered_log_probs.isnan(), drawn.mask)
    with pytest.raises(UsageError, match=r"none between 0 and 0\.01; use 0 for greedy"):
        served.generate(PROMPTS, replace(SAMPLING, temperature=0.001))
    empty = served.generate([], SAMPLING, 2)
    assert empty.tokens.shape == (0, 0)


def test_neighbouring_seeds_are_sent_far_apart() -> None:
    # vLLM adds the place in the group to a request's seed: 0 and 1 would share all draws but one.
    sent = [request_of("m", [1], SAMPLING, set(), 8, seed)["seed"] for seed in range(100)]
    gaps = [abs(a - b) for i, a in enumerate(sent) for b in sent[:i]]
    assert min(gaps) > 2**50
    assert all(-(2**63) <= seed < 2**63 for seed in sent)
    assert [seed_of(seed) for seed in sent] == list(range(100))


def test_what_is_sent_leaves_nothing_to_the_server(
    lm: LanguageModel, server: Faulty, tmp_path: Path
) -> None:
    bodies: list[dict[str, Any]] = []

    def listen(body: dict[str, Any], answer: Callable[[], Answer]) -> Answer:
        bodies.append(body)
        return answer()

    server.faults[COMPLETIONS] = listen
    served = VLLMEngine(at(server, tmp_path), lm, Runtime())
    served.push(0)
    served.generate([[5, 6]], SAMPLING, 4, seeds=[0])
    assert bodies == [
        {
            "model": "policy",
            "prompt": [5, 6],
            "n": 4,
            "seed": 0,
            "max_tokens": 8,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": [20, 21, 22],
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
        }
    ]


# -- weights -----------------------------------------------------------------------------------


def test_pushed_weights_draw_the_next_completions(
    lm: LanguageModel, server: Faulty, tmp_path: Path
) -> None:
    served = VLLMEngine(at(server, tmp_path), lm, Runtime())
    with pytest.raises(UsageError, match="no weights yet: call push first"):
        served.generate(PROMPTS, SAMPLING)
    served.push(0)
    before = served.generate(PROMPTS, SAMPLING, 2)
    moved(lm)
    same(served.generate(PROMPTS, SAMPLING, 2), before)  # until they are pushed, the old ones
    served.push(1)
    after = served.generate(PROMPTS, SAMPLING, 2)
    same(after, Engine(lm.model).generate(PROMPTS, SAMPLING, 2))
    assert after.completions() != before.completions()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_version_is_pushed_once_and_in_the_order_that_vllm_needs(
    lm: LanguageModel, server: Faulty, tmp_path: Path
) -> None:
    served = VLLMEngine(at(server, tmp_path), lm, Runtime())
    server.calls.clear()
    served.push(3)
    served.push(3)
    assert server.calls == [
        "POST /pause",
        RELOAD,
        "POST /reset_prefix_cache",
        "POST /update_weight_version",
        "POST /resume",
    ]


def test_weights_of_an_earlier_start_are_removed_and_nothing_else(
    lm: LanguageModel, server: Faulty, tmp_path: Path
) -> None:
    VLLMEngine(at(server, tmp_path), lm, Runtime()).push(2)
    (tmp_path / "notes").write_text("mine")
    VLLMEngine(at(server, tmp_path), lm, Runtime()).push(2)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 2
    assert left[0] == "notes"
    assert re.fullmatch(r"weights-[0-9a-f]{12}-2", left[1])


def test_adapters_travel_merged(lm: LanguageModel, server: Faulty, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    adapted = with_adapters(lm, LoRA(rank=2))
    moved(adapted)
    served = VLLMEngine(at(server, tmp_path), adapted, Runtime())
    served.push(0)
    drawn = served.generate(PROMPTS, SAMPLING, 2)
    local = Engine(adapted.model).generate(PROMPTS, SAMPLING, 2)
    assert drawn.completions() == local.completions()
    torch.testing.assert_close(drawn.old_log_probs, local.old_log_probs, rtol=0, atol=1e-5)


def test_what_is_written_is_an_ordinary_folder(lm: LanguageModel, tmp_path: Path) -> None:
    write_weights(lm, tmp_path / "w")
    found = load_model(tmp_path / "w").model.state_dict()
    assert found.keys() == lm.model.state_dict().keys()
    assert all(torch.equal(x, found[name]) for name, x in lm.model.state_dict().items())


def test_a_server_that_was_started_anew_is_found_out(
    lm: LanguageModel, server: Faulty, tmp_path: Path
) -> None:
    served = VLLMEngine(at(server, tmp_path), lm, Runtime())
    served.push(4)
    server.version = "default"
    with pytest.raises(
        UsageError, match=r"holds weights 'default', not '[0-9a-f]{12}-4' .* was started anew"
    ):
        served.generate(PROMPTS, SAMPLING)


def test_another_run_at_the_same_server_is_found_out(
    lm: LanguageModel, server: Faulty, tmp_path: Path
) -> None:
    first, second = (VLLMEngine(at(server, tmp_path / x), lm, Runtime()) for x in "ab")
    first.push(1)
    second.push(1)
    second.generate(PROMPTS, SAMPLING)
    with pytest.raises(UsageError, match="or another run uses it"):
        first.generate(PROMPTS, SAMPLING)


# -- what may go wrong ---------------------------------------------------------------------------


def changed(**changes: object) -> Fault:
    """Change every choice."""

    def fault(body: dict[str, Any], answer: Callable[[], Answer]) -> Answer:
        status, found = answer()
        for choice in found["choices"]:  # type: ignore[index]
            for name, value in changes.items():
                choice[name] = value(choice[name]) if callable(value) else value
        return status, found

    return fault


def hang(body: dict[str, Any], answer: Callable[[], Answer]) -> Answer:
    time.sleep(20.0)
    return 500, {}


WRONG: list[tuple[Fault, str]] = [
    (changed(logprobs=None), r"0 log-probs of \d+ tokens"),
    (
        changed(logprobs=lambda x: {"token_logprobs": x["token_logprobs"][1:]}),
        r"\d log-probs of \d",
    ),
    (changed(logprobs=lambda x: {"token_logprobs": [0.5] * len(x["tokens"])}), "raw_logprobs"),
    (changed(token_ids=None), "return_token_ids was asked for: vLLM is too old"),
    (changed(token_ids=lambda x: x[:-1]), "where a stop token or max_tokens=8 should end it"),
    (changed(token_ids=lambda x: [*x, 5]), "where a stop token or max_tokens=8 should end it"),
    (changed(finish_reason="abort"), "that ended by 'abort'"),
    (changed(token_ids=lambda x: [80] * len(x)), "serves a model of another vocabulary"),
    (changed(prompt_token_ids=lambda x: [0, *x]), "completions of another prompt than was sent"),
    (lambda body, answer: (200, {"choices": []}), "with 0 completions instead of 2"),
    (lambda body, answer: (200, {}), "what is no completion: KeyError 'choices'"),
    (lambda body, answer: (500, {"error": {"message": "EngineDeadError"}}), "500: EngineDeadErr"),
    (hang, r"did not answer POST /v1/completions within 0.5 s"),
]


@pytest.mark.parametrize(("fault", "message"), WRONG)
def test_an_answer_that_cannot_be_trusted_is_refused_in_one_line(
    fault: Fault, message: str, lm: LanguageModel, server: Faulty, tmp_path: Path
) -> None:
    served = VLLMEngine(at(server, tmp_path, seconds=0.5), lm, Runtime())
    served.push(0)
    server.faults[COMPLETIONS] = fault
    start = time.monotonic()
    with pytest.raises(UsageError, match=message) as error:
        served.generate(PROMPTS, SAMPLING, 2)
    assert time.monotonic() - start < 5.0
    assert str(error.value).startswith(server.url)
    assert "\n" not in str(error.value)


def test_a_server_that_loses_a_connection_is_asked_again(
    lm: LanguageModel, server: Faulty, tmp_path: Path
) -> None:
    lost: set[str] = set()

    def lose_once(body: dict[str, Any], answer: Callable[[], Answer]) -> Answer:
        key = json.dumps(body, sort_keys=True)
        if key not in lost:
            lost.add(key)
            return 503, {}
        return answer()

    served = VLLMEngine(at(server, tmp_path), lm, Runtime())
    server.faults = dict.fromkeys((COMPLETIONS, RELOAD), lose_once)
    served.push(0)
    same(served.generate(PROMPTS, SAMPLING, 2), Engine(lm.model).generate(PROMPTS, SAMPLING, 2))
    assert len(lost) == 1 + len(PROMPTS)


def test_a_push_that_a_server_does_not_take_is_told(
    made: LanguageModel, lm: LanguageModel, server: Faulty, tmp_path: Path
) -> None:
    other = tiny_model(made.tokenizer, layers=1, width=32, heads=2)
    with Faulty(other) as wrong:
        served = VLLMEngine(at(wrong, tmp_path), lm, Runtime())
        with pytest.raises(UsageError, match=r"size mismatch.*serves this same model"):
            served.push(0)
        assert wrong.paused  # it may hold the weights in part
    server.faults[RELOAD] = hang
    served = VLLMEngine(at(server, tmp_path, push_seconds=0.3), lm, Runtime())
    with pytest.raises(UsageError, match=r"POST /collective_rpc within 0.3 s.*push_seconds"):
        served.push(0)


def test_a_folder_that_cannot_be_written_is_told(
    lm: LanguageModel, server: Faulty, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    served = VLLMEngine(at(server, tmp_path / "file"), lm, Runtime())
    with pytest.raises(UsageError, match="file"):
        served.push(0)


def test_servers_that_are_none_are_told_before_anything_else(
    lm: LanguageModel, server: Faulty, tmp_path: Path
) -> None:
    gone = replace(at(server, tmp_path), urls=("http://127.0.0.1:9",), retries=0)
    with pytest.raises(UsageError, match=r"http://127.0.0.1:9 did not answer GET /v1/models"):
        VLLMEngine(gone, lm, Runtime())
    del server.routes["GET /weight_info"]
    with pytest.raises(UsageError, match=r"HTTP 404\): it needs VLLM_SERVER_DEV_MODE=1"):
        VLLMEngine(at(server, tmp_path), lm, Runtime())
    server.routes["GET /v1/models"] = lambda body: (200, {"object": "list"})
    with pytest.raises(UsageError, match="is no vLLM server"):
        VLLMEngine(at(server, tmp_path), lm, Runtime())


def test_a_prompt_beyond_the_servers_length_is_refused(
    lm: LanguageModel, server: Faulty, tmp_path: Path
) -> None:
    server.routes["GET /v1/models"] = lambda body: (
        200,
        {"data": [{"id": "policy", "max_model_len": 10}]},
    )
    served = VLLMEngine(at(server, tmp_path), lm, Runtime())
    served.push(0)
    served.generate([[5, 6]], SAMPLING)
    with pytest.raises(ValueError, match=r"3 tokens; with max_tokens=8 .* model's 10 positions"):
        served.generate([[5, 6, 7]], SAMPLING)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"urls": ()}, "urls is empty"),
        ({"urls": ("node-7:8000",)}, "'node-7:8000' is no URL"),
        ({"urls": ("http://node-7:port",)}, "is no URL"),
        ({"folder": "weights"}, "give an absolute path"),
        ({"seconds": 0.0}, "seconds=0.0: give a positive limit"),
        ({"connect_seconds": float("inf")}, "connect_seconds=inf"),
        ({"retries": -1}, "retries=-1"),
        ({"at_once": 0}, "at_once=0"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    given = {"urls": ("http://a:1", "https://b/v"), "folder": "/shared", **changes}
    with pytest.raises(ValueError, match=re.escape(message)):
        VLLM(**given)


# -- training ------------------------------------------------------------------------------------


def sevens(samples: Sequence[Sample]) -> list[float]:
    return [sample.completion.count("7") / 4 for sample in samples]


@dataclass
class Words:
    reward: object = sevens

    def train(self) -> list[Prompt]:
        return [Prompt(text=f"{i} plus {i + 1} is", answer="7") for i in range(8)]

    def heldout(self) -> list[Prompt]:
        return []


CONFIG = GRPOConfig(
    steps=4,
    prompts_per_step=4,
    group_size=4,
    minibatches=2,
    dynamic_sampling=DynamicSampling(rounds=2),
    tools=ToolUse(tool=lambda text: ToolOutput("7"), opening="l", closing="s", before=" is "),
    sampling=Sampling(max_tokens=6),
    optimizer=AdamW(learning_rate=1e-2),
    samples_every=0,
    probe_every=1,
)


def trained(cfg: GRPOConfig, lm: LanguageModel, output: Path) -> list[dict[str, float]]:
    def probe(step: int, engine: Generates) -> dict[str, Metric]:
        drawn = engine.generate([[5, 6]], Sampling(max_tokens=6, temperature=0.0))
        return {"probe/first": float(drawn.old_log_probs.sum())}

    with Runtime(output=output, seed=5) as run:
        train_grpo(cfg, lm, Words(), run, probe=probe)
    lines = (output / "metrics.jsonl").read_text().splitlines()
    clocks = ("seconds", "speed/", "timeouts")
    records = [json.loads(line) for line in lines]
    return [{k: x for k, x in r.items() if not k.startswith(clocks)} for r in records]


def test_grpo_on_two_servers_is_grpo_on_none(
    made: LanguageModel, lm: LanguageModel, server: Faulty, tmp_path: Path
) -> None:
    other = replace(made, model=copy.deepcopy(made.model))
    local = trained(CONFIG, other, tmp_path / "local")
    with Faulty(made) as second:
        servers = VLLM(urls=(server.url, second.url), folder=str(tmp_path / "weights"))
        served = trained(replace(CONFIG, rollouts=servers), lm, tmp_path / "served")
        assert server.calls.count(COMPLETIONS) > 10
        assert second.calls.count(COMPLETIONS) > 10
        # Probed after each step, and drawn before steps 1 and 3: versions 0 to 4.
        assert server.calls.count(RELOAD) == second.calls.count(RELOAD) == 5
    assert len(local) == len(served) == 4
    for a, b in zip(local, served, strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-6)
    assert local[0]["probe/first"] != local[3]["probe/first"]
    for name, x in other.model.state_dict().items():
        torch.testing.assert_close(lm.model.state_dict()[name], x, rtol=0, atol=1e-6)


def test_a_config_with_servers_is_written_read_and_resumed(tmp_path: Path) -> None:
    cfg = GRPOConfig(rollouts=VLLM(urls=("http://a:1", "http://b:2"), folder="/shared/run"))
    assert from_yaml(to_yaml(cfg), cfg) == cfg
    assert from_yaml("rollouts: {urls: ['http://c:3'], folder: /x}", cfg).rollouts == VLLM(
        urls=("http://c:3",), folder="/x"
    )
    assert {"rollouts.urls", "rollouts.seconds"} <= resumable_keys(cfg)
    assert "rollouts" not in resumable_keys(cfg)
    with pytest.raises(ValueError, match=r"sampling.temperature=0.7: a server gives the untemp"):
        replace(cfg, sampling=Sampling(max_tokens=4, temperature=0.7))


@pytest.mark.gpu
@pytest.mark.skipif("MONRO_VLLM_URL" not in os.environ, reason="needs a vLLM server")
def test_a_real_server_takes_weights_and_draws_as_the_trainer_computes() -> None:
    """MONRO_VLLM_URL, MONRO_VLLM_MODEL (what it serves) and MONRO_VLLM_FOLDER (shared)."""
    from posttrain.log_probs import token_log_probs_and_entropy

    lm = load_model(os.environ["MONRO_VLLM_MODEL"])
    servers = VLLM(urls=(os.environ["MONRO_VLLM_URL"],), folder=os.environ["MONRO_VLLM_FOLDER"])
    served = VLLMEngine(servers, lm, Runtime())
    prompts = [lm.tokenizer.encode(f"{i} plus {i} is") for i in range(4)]
    sampling, drawn = Sampling(max_tokens=16, stop_tokens=lm.stop_tokens), []
    for version in (0, 1):
        served.push(version)
        drawn.append(served.generate(prompts, sampling, 2))
        tokens, mask = drawn[-1].tokens.to(lm.model.device), drawn[-1].mask.to(lm.model.device)
        with torch.no_grad():
            ours, _ = token_log_probs_and_entropy(lm.model, tokens, mask)
        gap = (ours.cpu() - drawn[-1].old_log_probs.cpu())[drawn[-1].mask.cpu()].abs()
        assert gap.mean() < 0.05  # bfloat16
        with torch.no_grad():
            for p in lm.model.parameters():
                p.mul_(0.9)
    assert drawn[0].completions() != drawn[1].completions()
