from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch

from posttrain.data.tasks import Arithmetic, Prompt, Task, TaskMixture, curriculum_weights
from posttrain.data.tasks.mixture import MixedAnswer, MixtureReward
from posttrain.rewards import AnswerReward, Reward, Sample


@dataclass(frozen=True)
class Letters:
    letters: str
    reward: Reward

    def train(self) -> list[Prompt]:
        return [Prompt(text=letter, answer=letter) for letter in self.letters]

    def heldout(self) -> list[Prompt]:
        return [Prompt(text=letter.upper(), answer=letter) for letter in self.letters]


def half(samples: list[Sample]) -> torch.Tensor:
    return torch.full((len(samples),), 0.5)


def mixture(a: float = 1.0, b: float = 3.0, **changes: int) -> TaskMixture:
    tasks: Mapping[str, tuple[float, Task]] = {
        "a": (a, Letters("xyz", AnswerReward())),
        "b": (b, Letters("uv", half)),  # type: ignore[arg-type]  # a function is a reward
    }
    return TaskMixture(tasks, **changes)


def test_tasks_are_interleaved_in_proportion_and_each_in_its_order() -> None:
    # Lags (i + 1) share - count of a and b: .25 .75, .5 .5 (a is the first of equals), -.25 1.25,
    # 0 1, .25 .75, .5 .5, -.25 1.25, 0 1.
    found = "".join(prompt.text or "" for prompt in mixture(size=8).train())
    assert found == "uxvuvyuv"
    assert [p.metadata["task"] for p in mixture(size=4).train()] == ["b", "a", "b", "b"]


def test_every_prefix_holds_the_shares() -> None:
    weights = {"a": 0.2, "b": 1.7, "c": 0.45, "d": 3.0}
    tasks = {name: (weight, Letters(name, half)) for name, weight in weights.items()}  # type: ignore[arg-type]  # a function is a reward
    prompts = TaskMixture(tasks, size=500).train()
    names = [prompt.metadata["task"] for prompt in prompts]
    for size in range(1, 501):
        counts = Counter(names[:size])
        for name, weight in weights.items():
            assert abs(counts[name] - size * weight / sum(weights.values())) < 1.5


def test_heldout_problems_are_those_of_the_tasks() -> None:
    assert [p.text for p in mixture().heldout()] == ["X", "Y", "Z", "U", "V"]
    assert [p.text for p in mixture(heldout_each=1).heldout()] == ["X", "U"]


def test_each_sample_is_scored_by_its_own_task_and_successes_are_counted() -> None:
    made = mixture(size=4)
    samples = [
        Sample(prompt="", completion=f"<answer>{text}</answer>", answer=prompt.answer)
        for prompt, text in zip(made.train(), ["u", "x", "v", "u"], strict=True)
    ]
    wrong = Sample(prompt="", completion="<answer>no</answer>", answer=samples[1].answer)
    assert made.reward([*samples, wrong]).tolist() == [0.5, 1.0, 0.5, 0.5, 0.0]
    assert made.reward.success_rates() == {"b": 0.0, "a": 0.5}
    assert made.reward.timeouts == 0
    assert made.reward([]).shape == (0,)


def test_answer_of_another_kind_survives_mixing_pickling_and_copying() -> None:
    class Rich(str):
        item = 7

    answer = MixedAnswer(Rich("a"), "b")
    assert answer == "a"
    assert isinstance(answer.answer, Rich)
    plain = MixedAnswer("a", "b")
    for again in (pickle.loads(pickle.dumps(plain)), copy.deepcopy(plain)):
        assert (again, again.answer, again.task) == ("a", "a", "b")


def test_sample_of_no_task_is_refused() -> None:
    reward = MixtureReward({"a": AnswerReward()})
    for answer in ("a", MixedAnswer("a", "b")):
        with pytest.raises(TypeError, match="sample 0 has a"):
            reward([Sample(prompt="", completion="", answer=answer)])


def test_curriculum_prefers_what_is_solved_half_the_time() -> None:
    # .1 + .9 * 4 * p (1 - p): 1 at 1/2, .775 at 1/4, .1 at 0 and 1.
    rates = {"a": 0.25, "b": 0.0}
    weights = curriculum_weights({"a": 2.0, "b": 1.0, "c": 1.0}, rates)
    assert weights == pytest.approx({"a": 1.55, "b": 0.1, "c": 1.0}, rel=1e-15)
    assert mixture().reweighted({"b": 1.0}) == mixture(1.0, 3.0 * 0.1)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), True, "1"])
def test_weight_that_is_not_positive_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"task b: the weight .* is not a positive number"):
        mixture(b=weight)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TaskMixture({}), "needs tasks"),
        (lambda: TaskMixture({"a": Arithmetic()}), "task a: expected"),  # type: ignore[dict-item]  # wrong on purpose
        (lambda: mixture(size=0), "size=0"),
        (lambda: curriculum_weights({"a": 1.0}, {"b": 0.5}), "'b': the tasks are a"),
        (lambda: curriculum_weights({"a": 1.0}, {"a": 1.5}), "is 1.5: expected a share"),
        (lambda: curriculum_weights({"a": 1.0}, {}, floor=0.0), "floor=0.0"),
        (lambda: TaskMixture({"a": (1.0, Letters("", half))}).train(), "task a has no prompts"),  # type: ignore[arg-type]  # a function is a reward
    ],
)
def test_what_is_no_mixture_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]  # a lambda
