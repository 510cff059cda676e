from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from launch import streams
from posttrain.data.tasks.base import Prompt
from posttrain.eval import Evaluation, Interval, evaluate
from posttrain.eval.run import reasons
from posttrain.rewards.answer import AnswerReward
from posttrain.rewards.base import Sample
from posttrain.rollout.batch import Rollout, Sampling

if TYPE_CHECKING:
    from launch.runtime import Runtime

STOP = 0
RIGHT, WRONG = "<think>so</think><answer>{}</answer>", "<answer>no</answer>"
SAMPLING = Sampling(max_tokens=64, stop_tokens=(STOP,))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    characters = ["\n", *(chr(i) for i in range(32, 127))]
    vocabulary = {c: i for i, c in enumerate(["<stop>", *characters])}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    letters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=letters)


class Scripted:
    """Answers question i ("12+1?") rightly with a probability that its seeds decide alone."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.sizes: list[int] = []

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        group_size: int = 1,
        *,
        seeds: Sequence[int] | None = None,
    ) -> Rollout:
        assert seeds is not None
        self.sizes.append(len(prompts))
        rows = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            first = int(self.tokenizer.decode(list(prompt)).split("+")[0])
            draws = torch.rand(group_size, generator=torch.Generator().manual_seed(seed))
            for draw in draws.tolist():
                right = sampling.temperature == 0 or draw < 0.5
                text = RIGHT.format(first + 1) if right else WRONG
                rows.append((list(prompt), self.tokenizer.encode(text), draw < 0.9))
        return rollout(rows)


def rollout(rows: Sequence[tuple[list[int], list[int], bool]]) -> Rollout:
    width = max(len(prompt) + len(answer) + 1 for prompt, answer, _ in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for i, (prompt, answer, stops) in enumerate(rows):
        whole = prompt + answer + ([STOP] if stops else [])
        tokens[i, : len(whole)] = torch.tensor(whole)
        mask[i, len(prompt) : len(whole)] = True
    zeros = torch.zeros_like(tokens, dtype=torch.float32)
    return Rollout(
        tokens=tokens,
        mask=mask,
        old_log_probs=zeros,
        tempered_log_probs=zeros,
        finish_reasons=["stop" if stops else "length" for *_, stops in rows],
    )


PROMPTS = [Prompt(text=f"{i}+1?", answer=str(i + 1)) for i in range(11)]


def run_it(tokenizer: PreTrainedTokenizerFast, **settings: object) -> Evaluation:
    chosen: dict[str, Any] = {"samples_per_prompt": 4, "seed": 5, "batch": 3} | settings
    return evaluate(Scripted(tokenizer), tokenizer, PROMPTS, AnswerReward(), SAMPLING, **chosen)


def test_evaluation_keeps_what_was_drawn_and_judged(tokenizer: PreTrainedTokenizerFast) -> None:
    found = run_it(tokenizer)
    seeds = streams.keys(5, "evaluate", 0, range(11))
    draws = torch.stack([torch.rand(4, generator=torch.Generator().manual_seed(s)) for s in seeds])
    assert torch.equal(found.correct, draws < 0.5)
    assert torch.equal(found.correct_counts, (draws < 0.5).sum(1))
    assert torch.equal(found.reasoning, draws < 0.5)
    assert torch.equal(found.truncated, draws >= 0.9)
    assert found.answers[2][0] == ("3" if draws[2, 0] < 0.5 else "no")
    for row, draw in zip(found.samples, draws, strict=True):
        for sample, x in zip(row, draw.tolist(), strict=True):
            text = RIGHT.format(sample.answer) if x < 0.5 else WRONG
            assert sample.completion == text
            assert len(sample.tokens) == len(text) + (x < 0.9)
    assert [row[0].prompt for row in found.samples] == [p.text for p in PROMPTS]


@pytest.mark.parametrize("batch", [1, 4, 11, 50])
def test_batch_changes_nothing(tokenizer: PreTrainedTokenizerFast, batch: int) -> None:
    assert run_it(tokenizer, batch=batch).samples == run_it(tokenizer).samples


def test_engine_gets_at_most_a_batch_of_prompts(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Scripted(tokenizer)
    evaluate(
        engine, tokenizer, PROMPTS, AnswerReward(), SAMPLING, samples_per_prompt=2, seed=0, batch=4
    )
    assert engine.sizes == [4, 4, 3]


def test_another_seed_draws_others(tokenizer: PreTrainedTokenizerFast) -> None:
    assert not torch.equal(run_it(tokenizer, seed=6).correct, run_it(tokenizer).correct)


def test_greedy_decodes_each_question_once_besides(tokenizer: PreTrainedTokenizerFast) -> None:
    assert run_it(tokenizer).greedy_correct is None
    found = run_it(tokenizer, greedy=True)
    assert found.greedy_correct is not None
    assert found.greedy_correct.tolist() == [True] * 11
    assert [s.completion for s in found.greedy_samples] == [RIGHT.format(i + 1) for i in range(11)]
    assert found.samples == run_it(tokenizer).samples
    assert found.summary(k=1)["greedy"] == Interval(1.0, 1.0, 1.0)


class Process:
    """One of several threads that stand for processes; what each gathers goes round them all."""

    def __init__(self, rank: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.world_size = rank, len(board)
        self.board, self.barrier = board, barrier

    def share(self, count: int) -> range:
        n = self.world_size
        return range(self.rank * count // n, (self.rank + 1) * count // n)

    def gather_objects(self, items: Sequence[Any]) -> list[Any]:
        self.board[self.rank] = list(items)
        self.barrier.wait(10)
        found = [item for part in self.board for item in part]
        self.barrier.wait(10)
        return found


def on_processes(count: int, function: Callable[[Any], Evaluation]) -> Iterator[Any]:
    board, barrier = [None] * count, threading.Barrier(count)
    outcomes: list[Any] = [None] * count

    def call(rank: int) -> None:
        try:
            outcomes[rank] = function(Process(rank, board, barrier))
        except Exception as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=call, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    yield from outcomes


@pytest.mark.parametrize("count", [2, 3, 13])  # thirteen share eleven questions
def test_number_of_processes_changes_nothing(
    tokenizer: PreTrainedTokenizerFast, count: int
) -> None:
    alone = run_it(tokenizer, greedy=True)
    for found in on_processes(count, lambda run: run_it(tokenizer, greedy=True, run=run)):
        assert found.samples == alone.samples
        assert found.greedy_samples == alone.greedy_samples
        assert torch.equal(found.correct, alone.correct)


def test_error_on_one_process_is_raised_on_all(tokenizer: PreTrainedTokenizerFast) -> None:
    def reward(samples: Sequence[Sample]) -> Tensor:
        if any(sample.answer == "11" for sample in samples):
            raise OSError("no more room")
        return torch.zeros(len(samples))

    def call(run: Runtime) -> Evaluation:
        return evaluate(
            Scripted(tokenizer), tokenizer, PROMPTS, reward, SAMPLING,
            samples_per_prompt=1, seed=0, batch=2, run=run,
        )  # fmt: skip

    first, second = on_processes(2, call)
    assert isinstance(first, RuntimeError)
    assert isinstance(second, ValueError)
    assert "process 1: reward" in str(first)
    assert "no more room" in str(first)
    assert "no more room" in str(second)


def test_only_a_reward_of_exactly_one_is_correct(tokenizer: PreTrainedTokenizerFast) -> None:
    def reward(samples: Sequence[Sample]) -> Tensor:
        return torch.tensor([0.0, 1.0, 1.1, 0.999999])[: len(samples)].repeat(11)

    found = evaluate(
        Scripted(tokenizer), tokenizer, PROMPTS, reward, SAMPLING,
        samples_per_prompt=4, seed=0, batch=50,
    )  # fmt: skip
    assert found.correct.tolist() == [[False, True, False, False]] * 11


def sample(text: str, *, gold: str = "1", tokens: int = 3, reason: str = "stop") -> Sample:
    return Sample(
        prompt="?", completion=text, answer=gold, tokens=(1,) * tokens, finish_reason=reason
    )


def test_summary_of_hand_worked_samples() -> None:
    thinks, says, other = (
        "<think>a</think><answer>1</answer>",
        "<answer>1</answer>",
        "<answer>2</answer>",
    )
    found = Evaluation(
        samples=(
            (sample(thinks, tokens=8), sample(thinks, tokens=8), sample(other)),
            (sample(says), sample(other), sample("<think>x</think><answer>2</answer>", tokens=8)),
            (sample("<think>and", tokens=64, reason="length"), sample(other), sample(other)),
            (sample(says), sample(says), sample(says)),
        ),
        correct=torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]]).bool(),
        greedy_correct=torch.tensor([True, False, False, True]),
    )
    summary = found.summary(k=3)
    assert list(summary) == [
        "pass@1", "maj@3", "pass@3", "greedy",
        "length/mean", "length/truncated", "share/reasoning", "accuracy/reasoning",
    ]  # fmt: skip
    # pass@1: (2/3 + 1/3 + 0 + 1) / 4; majorities: right, two of 2, two of 2, right.
    assert [float(summary[n]) for n in ("pass@1", "maj@3", "pass@3", "greedy")] == [
        0.5,
        0.5,
        0.75,
        0.5,
    ]
    assert summary["length/mean"] == (3 * 8 + 64 + 8 * 3) / 12
    assert summary["length/truncated"] == 1 / 12
    assert summary["share/reasoning"] == 3 / 12
    assert summary["accuracy/reasoning"] == 2 / 3
    pass_at_2 = found.summary(k=2)["pass@2"]
    assert isinstance(pass_at_2, Interval)
    assert pass_at_2.mean == pytest.approx((1 + 2 / 3 + 0 + 1) / 4, rel=1e-15)


def test_majority_is_blank_where_right_completions_have_no_answer_to_vote_with() -> None:
    rows = ((sample("= 1"), sample("= 1")), (sample("= 2"), sample("")))
    found = Evaluation(samples=rows, correct=torch.tensor([[True, True], [False, False]]))
    summary = found.summary(k=2)
    assert math.isnan(float(summary["maj@2"]))
    assert float(summary["pass@2"]) == 0.5
    # Without a right one there is nothing that the majority overlooks.
    none = Evaluation(samples=rows, correct=torch.zeros(2, 2, dtype=torch.bool))
    assert float(none.summary(k=2)["maj@2"]) == 0.0


def test_summary_without_reasoning_has_no_accuracy_of_it() -> None:
    found = Evaluation(samples=((sample("1"),),), correct=torch.tensor([[True]]))
    summary = found.summary(k=1)
    assert math.isnan(float(summary["accuracy/reasoning"]))
    assert list(summary)[:2] == ["pass@1", "length/mean"]
    with pytest.raises(ValueError, match="k=8, but 1 samples were drawn"):
        found.summary()


@pytest.mark.parametrize(
    ("prompt", "completion", "thinks"),
    [
        ("", "<think>a</think>", True),
        ("", "<think></think><think>a</think>", True),
        ("", "<think>\n \n</think>1", False),
        ("", "<think>a", False),
        ("", "a</think>1", False),
        ("solve: <think>\n", "a</think>1", True),
        ("solve: <think>\n", " </think>1", False),
        ("solve: <think>\n", "</think>b</think>", False),
        ("", "<think><think></think>", False),
        ("", "<THINK>a</THINK>", False),
    ],
)
def test_reasoning_is_a_closed_think_element_that_is_not_blank(
    prompt: str, completion: str, thinks: bool
) -> None:
    assert reasons(Sample(prompt=prompt, completion=completion, answer="")) is thinks


@pytest.mark.parametrize("setting", ["samples_per_prompt", "batch"])
def test_counts_below_one_are_refused(tokenizer: PreTrainedTokenizerFast, setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting}=0"):
        run_it(tokenizer, **{setting: 0})


def test_evaluation_of_nothing_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="at least one question"):
        evaluate(
            Scripted(tokenizer), tokenizer, [], AnswerReward(), SAMPLING,
            samples_per_prompt=1, seed=0, batch=1,
        )  # fmt: skip
