from dataclasses import dataclass

import torch
from torch import Tensor

from launch.batch import TensorBatch, shaped


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Points(TensorBatch):
    x: Tensor = shaped("B D")
    label: Tensor = shaped("B")
    weight: Tensor | None = shaped("B", default=None)


def test_rows_are_taken_in_the_order_of_the_index() -> None:
    points = Points(x=torch.arange(8).view(4, 2), label=torch.arange(4))
    taken = points.take(torch.tensor([3, 0, 3]))
    assert taken.label.tolist() == [3, 0, 3]
    assert taken.x.tolist() == [[6, 7], [0, 1], [6, 7]]
    assert taken.weight is None
    assert points.take(torch.tensor([True, False, True, False])).label.tolist() == [0, 2]
    assert len(points.take(torch.zeros(0, dtype=torch.int64))) == 0
