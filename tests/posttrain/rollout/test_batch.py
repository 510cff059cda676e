from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from posttrain.rollout import Sampling


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 2.5}, "max_tokens=2.5 is of type float: give an integer"),
        ({"max_tokens": "8"}, "max_tokens='8' is of type str"),
        ({"max_tokens": True}, "max_tokens=True is of type bool"),
        ({"max_tokens": None}, "max_tokens=None"),
        ({"top_k": 1.5}, "top_k=1.5 is of type float: give an integer"),
        ({"top_p": "0.9"}, "top_p='0.9' is of type str: give a number"),
        ({"temperature": None}, "temperature=None is of type NoneType: give a number"),
        ({"stop_tokens": 2}, "stop_tokens=2 is of type int: give a tuple of token ids"),
        ({"stop_tokens": None}, r"stop_tokens=None .* \(\) for none"),
        ({"stop_tokens": "</s>"}, "stop_tokens='</s>' is of type str"),
        ({"stop_tokens": (2, "</s>")}, r"stop_tokens\[1\]='</s>' is of type str"),
    ],
)
def test_other_types_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Sampling(**{"max_tokens": 4, **settings})


@pytest.mark.parametrize("temperature", [float("nan"), float("inf"), -1e-9])
def test_temperatures_that_mean_nothing_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature="):
        Sampling(max_tokens=4, temperature=temperature)


@pytest.mark.parametrize(
    "stops",
    [[2, 7], torch.tensor([2, 7]), np.array([2, 7]), iter((2, 7))],
    ids=["list", "tensor", "array", "iterator"],
)
def test_integers_of_other_libraries_become_pythons(stops: Any) -> None:  # noqa: ANN401
    sampling = Sampling(max_tokens=np.int64(4), top_k=torch.tensor(3), stop_tokens=stops)
    assert sampling == Sampling(max_tokens=4, top_k=3, stop_tokens=(2, 7))
    assert [type(x) for x in (sampling.max_tokens, *sampling.stop_tokens)] == [int] * 3
