import math
import xml.etree.ElementTree as ET

import pytest

from launch import curves
from launch.curves import Line, Panel, draw_panels, draw_time_shares, families, metric_line, svg
from launch.palette import INK, MUTED, SERIES


def record(step: int, **figures: object) -> dict[str, object]:
    return {"step": step, **figures}


def test_metric_line_takes_the_records_that_hold_the_metric() -> None:
    records = [record(1, loss=2.0), record(2, reward=1.0), record(5, loss=0.5)]
    line = metric_line(records, "loss")
    assert (line.steps, line.values) == ([1.0, 5.0], [2.0, 0.5])


def test_metric_line_leaves_a_gap_for_what_is_no_finite_number() -> None:
    values = [1.0, None, "high", True, math.nan, math.inf, 10**400, 2]
    line = metric_line([record(i, loss=v) for i, v in enumerate(values)], "loss")
    finite = [(s, v) for s, v in zip(line.steps, line.values, strict=True) if math.isfinite(v)]
    assert finite == [(0.0, 1.0), (7.0, 2.0)]


def test_families_share_axes_only_where_the_scales_are_near() -> None:
    # 30 and 1.5 are within a factor of 20, 30 and 1.4 are not.
    assert families([{"a/x": 30.0, "a/y": 1.5}]) == [["a/x", "a/y"]]
    assert families([{"a/x": 30.0, "a/y": 1.4}]) == [["a/x"], ["a/y"]]


def test_families_take_the_greatest_absolute_value_over_all_records() -> None:
    records = [record(1, **{"a/x": 1.0, "a/y": 1.0}), record(2, **{"a/x": -50.0, "a/y": 1.0})]
    assert families(records) == [["a/x"], ["a/y"]]


def test_families_leave_out_the_clock_and_put_speed_last() -> None:
    first = {"step": 1, "seconds": 2.0, "speed/tokens": 9.0, "seconds/update": 1.0, "loss": 3.0}
    assert families([first]) == [["loss"], ["speed/tokens"]]


def test_families_hold_at_most_five_lines() -> None:
    assert [len(f) for f in families([{f"a/{i}": 1.0 for i in range(7)}])] == [5, 2]


def test_phase_seconds_adds_up_each_phase() -> None:
    records = [
        {"seconds": 1.0, "seconds/a": 0.25, "seconds/b": 0.5},
        {"seconds": 2.0, "seconds/b": 0.5, "seconds/a": None},
    ]
    assert curves.phase_seconds(records) == {"a": 0.25, "b": 1.0}


def test_long_line_becomes_mean_and_range_of_equal_stretches() -> None:
    # 320 records in 160 stretches of two: (0, 1), (2, 3), ...
    line = Line(
        label="x", steps=[float(i) for i in range(320)], values=[float(i) for i in range(320)]
    )
    steps, means, lows, highs = curves._stretches(line)
    assert means == steps == [2 * i + 0.5 for i in range(160)]
    assert lows == [2.0 * i for i in range(160)]
    assert highs == [2 * i + 1.0 for i in range(160)]


def test_stretch_without_a_finite_value_is_a_gap_and_others_use_what_they_have() -> None:
    values = [math.nan, math.inf, 4.0, math.nan] + [1.0] * 316
    line = Line(label="x", steps=[float(i) for i in range(320)], values=values)
    means = curves._stretches(line)[1]
    assert math.isnan(means[0])
    assert means[1:3] == [4.0, 1.0]


def test_svg_is_the_same_for_the_same_records_and_keeps_text_as_text() -> None:
    panel = Panel(
        title="Loss", lines=[metric_line([record(i, loss=1 / i) for i in (1, 2, 3)], "loss")]
    )
    text = svg(draw_panels([panel]))
    assert text == svg(draw_panels([panel]))
    texts = [e.text for e in ET.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
    assert {"Loss", "step", "0.4"} <= set(texts)


def test_svg_rounds_coordinates_but_no_label() -> None:
    panel = Panel(lines=[Line(label="x", steps=[1, 2], values=[0.0, 0.0175])])
    root = ET.fromstring(svg(draw_panels([panel])))
    assert "0.005" in [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    paths = [e.get("d", "") for e in root.iter("{http://www.w3.org/2000/svg}path")]
    numbers = [word for path in paths for word in path.split() if "." in word]
    assert numbers
    assert max(len(number.split(".")[1]) for number in numbers) <= 2


def test_labels_have_the_house_colours_wherever_the_figure_is_saved() -> None:
    figure = draw_panels([Panel(title="T", lines=[Line(label="x", steps=[1, 2], values=[1, 2])])])
    text = svg(figure)  # ticks are made here, outside the style under which it was drawn
    assert INK in text
    assert MUTED in text
    assert SERIES[0] in text
    assert "#000000" not in text


@pytest.mark.parametrize("values", [[], [math.nan, math.nan], [math.inf]])
def test_panel_without_a_finite_value_says_so(values: list[float]) -> None:
    line = Line(label="x", steps=[float(i) for i in range(len(values))], values=values)
    assert ">no records<" in svg(draw_panels([Panel(lines=[line])]))


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e308, -1e308], [1e-320, 0.0], [7.0]])
def test_extreme_values_are_drawn_without_a_warning(values: list[float]) -> None:
    line = Line(label="x", steps=[float(i) for i in range(len(values))], values=values)
    assert "<svg" in svg(draw_panels([Panel(lines=[line])]))


def test_time_shares_stack_to_the_whole() -> None:
    records = [record(s, **{"seconds/a": 1.0, "seconds/b": 3.0}) for s in (1, 2, 3)]
    axes = draw_time_shares(records).axes[0]
    tops = [patch.get_data().values.tolist() for patch in axes.patches]  # type: ignore[attr-defined]
    assert tops == [[0.25] * 3, [1.0] * 3]


def test_time_shares_of_records_without_phases_are_empty() -> None:
    assert "<svg" in svg(draw_time_shares([record(1, loss=1.0)]))
