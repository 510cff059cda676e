import copy
import pickle
import subprocess
import sys

import pytest

from launch.errors import UsageError
from posttrain.data.tasks import ReasoningGym, ReasoningGymReward
from posttrain.data.tasks.base import Prompt
from posttrain.data.tasks.reasoning_gym import GymAnswer, gym_names
from posttrain.rewards import AnswerReward, Sample

SHORT = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def chain_sum(**settings: object) -> ReasoningGym:
    usual = {"options": SHORT, "heldout_size": 50, "asked": "{expression} =", "form": "text"}
    return ReasoningGym("chain_sum", **{**usual, "system": None, **settings})  # type: ignore[arg-type]  # of several types


def answered(prompt: Prompt, answer: str) -> Sample:
    completion = f"<think>well</think> <answer>{answer}</answer>"
    return Sample(prompt="", completion=completion, answer=prompt.answer)


def test_prompts_ask_what_the_item_says() -> None:
    prompt = chain_sum(heldout_size=0).train()[5]
    terms = (prompt.text or "").split()
    assert len(terms) == 4
    sign = {"+": 1, "-": -1}[terms[1]]
    assert prompt.answer == str(int(terms[0]) + sign * int(terms[2]))
    assert prompt.metadata["num_terms"] == 2
    chat = ReasoningGym("chain_sum", options=SHORT, heldout_size=0).train()[5].messages
    assert chat is not None
    assert chat[-1]["content"].endswith(f"arithmetic problem: {prompt.text}")
    assert chat[0]["role"] == "system"


def test_heldout_problems_differ_and_never_come_in_training() -> None:
    # 200 different sums of two digits exist, so half of what is drawn for training is held out.
    task = chain_sum(heldout_size=100, size=1_000)
    heldout = [prompt.text for prompt in task.heldout()]
    train = [prompt.text for prompt in task.train()]
    assert (len(heldout), len(set(heldout)), len(train)) == (100, 100, 1_000)
    assert not set(heldout) & set(train)
    assert len(set(train)) > 90
    again = chain_sum(heldout_size=100, size=1_000)
    assert [p.text for p in again.heldout()] == heldout
    assert [p.text for p in again.train()] == train


def test_seeds_give_other_problems_but_must_lie_apart() -> None:
    long = {"min_terms": 8, "max_terms": 8}
    tasks = [chain_sum(options=long, train_seed=seed) for seed in (0, 5_000_000)]
    texts = [{prompt.text for prompt in task.train()[:50]} for task in tasks]
    assert not texts[0] & texts[1]
    for seeds in ((0, 900_000), (0, 0), (-1, 10**9), (10**9, 10**9 - 1_000_000)):
        with pytest.raises(ValueError, match="at least 1,000,000 apart"):
            ReasoningGym("chain_sum", train_seed=seeds[0], heldout_seed=seeds[1])


def test_too_few_different_problems_are_an_error_that_says_so() -> None:
    with pytest.raises(UsageError, match=r"only \d+ different problems .* heldout_size=512"):
        chain_sum(heldout_size=512).heldout()
    everything = chain_sum(heldout_size=200, size=3)  # one digit, one of two signs, one digit
    with pytest.raises(UsageError, match="200 problems in a row are among the 200 held-out ones"):
        list(everything.train())


def test_numbers_are_paid_exactly_and_not_for_substrings() -> None:
    task = chain_sum()
    assert task.reward == AnswerReward()
    (prompt,) = task.train()[:1]
    gold = prompt.answer
    samples = [answered(prompt, a) for a in (gold, f"{gold}.0", f"1{gold}", f"{gold} or 99")]
    assert task.reward(samples).tolist() == [1, 1, 0, 0]


def test_other_answers_are_paid_by_the_scorer_where_it_gives_all() -> None:
    task = ReasoningGym("countdown", size=20, heldout_size=2)
    reward = task.reward
    assert reward == ReasoningGymReward("countdown", {})
    (prompt,) = task.train()[:1]
    gold = str(prompt.answer)
    item = prompt.metadata
    samples = [
        answered(prompt, gold),
        answered(prompt, f"0 + {gold}" if 0 in item["numbers"] else f"({gold})"),
        answered(prompt, str(item["target"])),  # worth .05 to the scorer
        answered(prompt, "__import__('os').abort()"),
        Sample(prompt="", completion="<think>", answer=prompt.answer),
    ]
    assert reward(samples).tolist() == [1, 1, 0, 0, 0]


def test_words_are_compared_as_words() -> None:
    task = ReasoningGym("spell_backward", size=5, heldout_size=2)
    (prompt,) = task.train()[:1]
    anagram = str(prompt.answer)[::-1]
    samples = [answered(prompt, str(prompt.answer)), answered(prompt, anagram)]
    assert task.reward(samples).tolist() == [1, 0]


def test_the_scorer_asks_for_the_answer_of_its_prompt() -> None:
    with pytest.raises(TypeError, match="sample 0 has a str as answer, expected the GymAnswer"):
        ReasoningGymReward("countdown")([Sample(prompt="", completion="", answer="1")])


def test_gym_answers_remember_their_item_through_copies() -> None:
    answer = GymAnswer({"question": "q", "answer": "42"})
    assert answer == "42"
    for twin in (pickle.loads(pickle.dumps(answer)), copy.deepcopy(answer)):
        assert twin == answer
        assert twin.item == answer.item
    assert GymAnswer({"question": "q", "answer": None}) == ""


def test_what_cannot_be_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="no data set 'chain_sums'; did you mean chain_sum"):
        ReasoningGym("chain_sums")
    with pytest.raises(UsageError, match="no option 'min_term'; did you mean min_terms"):
        chain_sum(options={"min_term": 3}).train()
    with pytest.raises(UsageError, match="refuses its options"):
        chain_sum(options={"min_terms": 9, "max_terms": 2}).train()
    with pytest.raises(UsageError, match=r"options\.seed: the task sets it"):
        chain_sum(options={"seed": 9}).train()
    with pytest.raises(UsageError, match=r"nothing is called \{expresion\}; did you mean"):
        chain_sum(asked="{expresion}").heldout()
    with pytest.raises(ValueError, match="size=0"):
        chain_sum(size=0)


def test_gym_names_are_those_that_are_registered_but_for_the_mixture_of_others() -> None:
    import reasoning_gym  # noqa: F401 - it registers them
    from reasoning_gym.factory import DATASETS

    assert set(DATASETS) - gym_names() == {"composite"}
    assert gym_names() <= set(DATASETS)


IMPORTS = """
import sys
from posttrain.data.tasks.reasoning_gym import ReasoningGym

ReasoningGym(name="chain_sum").train()[0]
print("matplotlib.pyplot" in sys.modules, "cellpylib" in sys.modules)
life = ReasoningGym(name="game_of_life", size=2, heldout_size=1).heldout()[0].answer.item
import cellpylib
import reasoning_gym

index, seed = life["metadata"]["source_index"], ReasoningGym(name="game_of_life").heldout_seed
print(reasoning_gym.create_dataset("game_of_life", seed=seed, size=9)[index] == life)
print(cellpylib.__spec__ is not None)
"""


def test_pyplot_is_imported_for_the_games_alone_that_draw_by_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False", "True", "True"]
