"""The best of n as a job: each completion is scored once, picks are kept, bad input is named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launch.config import override
from launch.errors import UsageError
from launch.runtime import Runtime
from posttrain.data.tasks import Arithmetic
from posttrain.eval import Evaluation, Interval
from posttrain.models import LanguageModel, load_model, save_model, tiny_model, train_tokenizer
from posttrain.process_reward_models import load_process_reward_model, process_model
from posttrain.recipes.checkpoints import best_of_n
from posttrain.recipes.evaluator import Evaluator
from posttrain.recipes.scorers import ProcessReward, parse_reduce, parse_scorer
from posttrain.recipes.search_jobs import BestOfNJob, figures, picked, scored
from posttrain.recipes.sources import Pretrained
from posttrain.reward_models import load_reward_model, outcome_model
from posttrain.rewards import ModelReward, Sample
from posttrain.rollout import Sampling
from posttrain.search import ByStep, StepScores, minimum
from posttrain.search.language import line_breaks

TEXTS = [f"{a}+{b}={a + b}\n" for a in range(9) for b in range(9)]


def even(samples: Sequence[Sample]) -> list[float]:
    return [float(sum(sample.tokens) % 2 == 0) for sample in samples]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, its outcome and process reward model, and a scorer of another tokenizer."""
    root = tmp_path_factory.mktemp("models")
    lm = tiny_model(train_tokenizer(TEXTS), layers=1, width=16, heads=2, seed=1)
    save_model(lm.model, lm.tokenizer, root / "policy")
    outcome, steps = outcome_model(lm, seed=2), process_model(lm, seed=3)
    save_model(outcome.model, outcome.tokenizer, root / "outcome")
    save_model(steps.model, steps.tokenizer, root / "steps")
    other = outcome_model(tiny_model(train_tokenizer(["abc", "abd"]), layers=1, width=16, heads=2))
    save_model(other.model, other.tokenizer, root / "other")
    return root


@pytest.fixture(scope="module")
def lm(folders: Path) -> LanguageModel:
    return load_model(folders / "policy")


def job(folders: Path, scorer: str) -> BestOfNJob:
    return BestOfNJob(
        model=Pretrained(path=str(folders / "policy")),
        task=Arithmetic(reward=even),
        scorer=parse_scorer(str(folders / scorer)),
        n=4,
        problems=6,
        sampling=Sampling(max_tokens=8),
    )


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def sample(answer: str, tokens: int) -> Sample:
    return Sample(
        prompt="?", completion=f"<answer>{answer}</answer>", answer="7", tokens=(1,) * tokens
    )


def evaluation() -> Evaluation:
    """Two questions with the answer 7: right are (no, yes, yes), and (no, no, yes)."""
    return Evaluation(
        samples=(
            (sample("5", 4), sample("7", 2), sample("7", 3)),
            (sample("6", 6), sample("6", 2), sample("7", 1)),
        ),
        correct=torch.tensor([[False, True, True], [False, False, True]]),
    )


def test_figures_of_two_questions_worked_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.2, 0.3]])  # picks the first, then the third
    rows = {str(row["pick"]): row for row in figures(evaluation(), scores)}
    means = {name: float(row["accuracy"]) for name, row in rows.items()}
    # pass@1: (2/3 + 1/3) / 2. The vote: 7 is right, 6 is wrong. The scorer: wrong, right.
    assert means == pytest.approx(
        {"pass@1": 0.5, "maj@3": 0.5, "best of 3": 0.5, "pass@3 (oracle)": 1.0}
    )
    # 9 tokens for each question; one completion is 3 on average.
    assert [row["tokens"] for row in rows.values()] == [3.0, 9.0, 9.0, 9.0]
    best = rows["best of 3"]
    over = best["over maj@3"]
    assert isinstance(over, Interval)
    assert (over.mean, over.low, over.high) == (0.0, -1.0, 1.0)  # -1 and 1, paired
    assert best["verdict over maj@3"] == "no gain"
    assert picked(scores.tolist(), evaluation().correct, 2).tolist() == [0.0, 0.0]


def test_the_picks_of_an_outcome_model_are_its_highest_scores(
    folders: Path, tmp_path: Path
) -> None:
    cfg = job(folders, "outcome")
    cfg.check()
    with Runtime(cfg.runtime, output=tmp_path / "run", seed=0) as run:
        cfg.run(run)
    rows = lines(tmp_path / "run" / "picks.jsonl")
    assert len(rows) == 6
    lm, model = load_model(folders / "policy"), load_reward_model(folders / "outcome")
    with Runtime(seed=0) as run:
        judge = Evaluator(group_size=4, sampling=cfg.sampling, greedy=False)
        assert cfg.task is not None
        found = judge.judge(lm, cfg.task.heldout()[:6], even, run)
    for row, samples in zip(rows, found.samples, strict=True):
        expected = model.scores([[*x.prompt_tokens, *x.tokens] for x in samples])
        torch.testing.assert_close(torch.tensor(row["scores"]), expected)
        assert row["pick"] == int(expected.argmax())
        assert row["completion"] == samples[int(expected.argmax())].completion
        assert row["tokens"] == [len(x.tokens) for x in samples]
    table = (tmp_path / "run" / "evaluation.csv").read_text().splitlines()
    names = [line.split(",")[0] for line in table]
    assert names == ["pick", "pass@1", "maj@4", "best of 4", "pass@4 (oracle)"]


def test_a_process_model_scores_by_its_steps_once_each(folders: Path, lm: LanguageModel) -> None:
    prompt = tuple(lm.tokenizer.encode("1+1="))
    texts = ["2\n3", "4", "5\n\n6\n"]
    samples = [
        Sample(
            prompt="1+1=",
            completion=text,
            answer="2",
            tokens=tuple(lm.tokenizer.encode(text)),
            prompt_tokens=prompt,
        )
        for text in texts
    ]
    model = load_process_reward_model(folders / "steps")
    score = ByStep(StepScores(model, prompt, line_breaks(lm.tokenizer)), minimum)
    expected = torch.tensor(score([x.tokens for x in samples]))
    chosen = ProcessReward(str(folders / "steps"), reduce=minimum, device="cpu")
    torch.testing.assert_close(chosen(samples), expected)
    calls: list[int] = []

    class Counted(ProcessReward):
        def __call__(self, samples: Sequence[Sample], /) -> torch.Tensor:
            calls.append(len(samples))
            return ProcessReward.__call__(self, samples)

    found = Evaluation(samples=(tuple(samples[:1]), tuple(samples[1:2])), correct=torch.ones(2, 1))
    rows = scored(Counted(str(folders / "steps"), reduce=minimum), found, Runtime())
    torch.testing.assert_close(rows, expected[:2, None])
    assert calls == [2]


def test_flags_choose_the_scorer_and_its_reduction(folders: Path) -> None:
    changes = {
        "model": str(folders / "policy"),
        "scorer": str(folders / "steps"),
        "scorer.reduce": "minimum",
    }
    assert override(best_of_n(), changes).scorer == ProcessReward(str(folders / "steps"), minimum)
    changes = {"scorer": str(folders / "outcome")}
    assert override(best_of_n(), changes).scorer == ModelReward(str(folders / "outcome"))
    assert parse_reduce("builtins:max") is max
    with pytest.raises(UsageError, match=r"unknown key scorer.reduce"):
        override(best_of_n(), changes | {"scorer.reduce": "last"})
    with pytest.raises(UsageError, match="unknown reduction 'minimun': did you mean minimum"):
        parse_reduce("minimun")


def test_bad_input_is_named_before_any_work(folders: Path, tmp_path: Path) -> None:
    for name in ("n", "problems", "batch"):
        with pytest.raises(UsageError, match=f"{name}=0: give at least 1"):
            override(best_of_n(), {name: "0"})
    with pytest.raises(UsageError, match=r"nowhere is not a folder: .*monro run reward-model"):
        override(best_of_n(), {"scorer": str(tmp_path / "nowhere")})
    with pytest.raises(UsageError, match="holds a LlamaForCausalLM, expected a reward model"):
        parse_scorer(str(folders / "policy"))
    with pytest.raises(UsageError, match=r"gone: .*monro run prm --model"):
        replace(job(folders, "steps"), scorer=ProcessReward(str(tmp_path / "gone"))).check()
    with pytest.raises(UsageError, match="no scorer is given: add --scorer FOLDER"):
        replace(job(folders, "steps"), scorer=None).check()
    with pytest.raises(UsageError, match=r"other has another tokenizer .*so its scores would be"):
        job(folders, "other").check()
    with pytest.raises(UsageError, match="no task is given"):
        replace(job(folders, "steps"), task=None).check()
