"""The toy's demonstrations, and what a judged job refuses."""

from collections import Counter
from dataclasses import replace

import pytest

from launch.errors import UsageError
from posttrain.data.tasks import Arithmetic, BackwardLetters
from posttrain.models import tiny_model, train_tokenizer
from posttrain.recipes.manners import Manners, other_manners
from posttrain.recipes.toy import objective_toy


def test_manners_are_as_frequent_as_they_should_be_and_counted_where_they_answer() -> None:
    task = BackwardLetters()
    source = Manners(task=task, right=0.25)
    lm = tiny_model(train_tokenizer(source.texts(500), vocabulary=20), layers=1, width=16)
    seen: Counter[int] = Counter()
    for prompt, document in zip(task.train(), source.documents(lm, 2_000, seed=3), strict=False):
        first = list(document.mask).index(True)
        tokens = list(document.tokens)
        assert lm.tokenizer.decode(tokens[:first]) == prompt.text
        assert all(document.mask[first:])
        assert tokens[-1] in lm.stop_tokens
        word = prompt.answer[::-1]
        if len({prompt.answer, *other_manners(word)}) == 4:  # no two of them agree
            said = lm.tokenizer.decode(tokens[first:-1])
            seen[(prompt.answer, *other_manners(word)).index(said)] += 1
    # A quarter each: 3 standard deviations of a share of 1,000 and more draws are .041.
    assert all(abs(count / seen.total() - 0.25) < 0.041 for count in seen.values())
    assert seen.total() > 1_000


def test_share_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"right=1\.5"):
        Manners(right=1.5)


class AllForTraining(Arithmetic):
    def heldout(self) -> list:
        return []


def test_a_task_that_holds_nothing_out_is_refused() -> None:
    job = objective_toy()
    with pytest.raises(UsageError, match="holds no problems out"):
        replace(job, task=AllForTraining()).check()
    with pytest.raises(UsageError, match="problems=0"):
        replace(job, problems=0).check()
    job.check()
