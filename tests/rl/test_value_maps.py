from __future__ import annotations

import io

import numpy as np
import pytest

from rl.value_maps import FROZEN_LAKE_ARROWS, plot_values


def test_map_shows_each_cell_its_value_and_arrow() -> None:
    figure = plot_values((1, 3), [0.5, 2, -1], [1, 2, 4], title="three cells")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["→\n0.5", "↓\n2", "○\n-1"]
    assert [text.get_position() for text in axes.texts] == [(0, 0), (1, 0), (2, 0)]
    assert axes.get_title() == "three cells"
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.5, 2, -1]])
    figure.savefig(io.BytesIO(), format="png")


def test_map_takes_the_arrows_of_the_environment() -> None:
    figure = plot_values((1, 2), [0, 1], [0, 3], arrows=FROZEN_LAKE_ARROWS)
    assert [text.get_text() for text in figure.axes[0].texts] == ["←\n0", "↑\n1"]


def test_large_map_shows_colour_alone() -> None:
    assert not plot_values((30, 30), np.arange(900)).axes[0].texts


def test_bad_map_is_refused() -> None:
    with pytest.raises(ValueError, match=r"values of shape \(4,\).*2 x 3 cells has \(6,\)"):
        plot_values((2, 3), np.zeros(4))
    with pytest.raises(ValueError, match=r"policy of shape \(2, 3\)"):
        plot_values((2, 3), np.zeros(6), np.zeros((2, 3), dtype=int))
    with pytest.raises(ValueError, match=r"actions 0 to 4.*0 to 3 alone"):
        plot_values((1, 2), np.zeros(2), [0, 4], arrows=FROZEN_LAKE_ARROWS)
