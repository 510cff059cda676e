import pytest

from posttrain.recipes.controls import RandomReward
from posttrain.rewards import Sample


def sample(i: int, answer: str = "") -> Sample:
    return Sample(prompt="p", completion=str(i), answer=answer)


def test_random_reward_knows_nothing_of_the_answer_and_repeats_itself() -> None:
    coin = RandomReward(probability=0.25)
    rewards = coin([sample(i) for i in range(1000)])
    assert 0.2 < rewards.mean().item() < 0.3
    assert rewards.equal(coin([sample(i, answer="7") for i in range(1000)]))
    assert not rewards.equal(
        RandomReward(probability=0.25, seed=1)([sample(i) for i in range(1000)])
    )


def test_random_reward_refuses_what_is_no_probability() -> None:
    with pytest.raises(ValueError, match="probability=2"):
        RandomReward(probability=2)
