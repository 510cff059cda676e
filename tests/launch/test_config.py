from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.config import (
    changed_fields,
    changed_keys,
    configure,
    flags,
    from_yaml,
    override,
    resumable,
    resumable_keys,
    to_yaml,
)
from launch.errors import UsageError


class Objective(Protocol):
    def denominator(self, batch: int) -> float: ...
    def __call__(self, log_probs: float, batch: int) -> float: ...


def k1(x: float) -> float:
    return x


def k3(x: float) -> float:
    return x * x


@dataclass(frozen=True, kw_only=True, slots=True)
class Clipped:
    """A clipped objective.

    More about it.
    """

    clip_low: float = 0.2
    """Lower bound of the ratio."""
    clip_high: float = 0.2
    kl: Callable[[float], float] = k3

    def __post_init__(self) -> None:
        if self.clip_low > self.clip_high:
            raise ValueError(
                f"clip_low={self.clip_low} is above\nclip_high={self.clip_high}: swap them"
            )

    def denominator(self, batch: int) -> float:
        return 1.0

    def __call__(self, log_probs: float, batch: int) -> float:
        return 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounded:
    max_length: int

    def denominator(self, batch: int) -> float:
        return 1.0

    def __call__(self, log_probs: float, batch: int) -> float:
        return 0.0


@dataclass(frozen=True)
class NoObjective:
    x: int = 0


class Plain:
    """No dataclass, though it would do as an objective."""

    def denominator(self, batch: int) -> float:
        return 1.0

    def __call__(self, log_probs: float, batch: int) -> float:
        return 0.0


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True)
class Sums:
    length: int = 5

    @property
    def name(self) -> str:
        return "sums"


def parse_task(text: str) -> Sums:
    if not text.isdecimal():
        raise ValueError(f"unknown task {text}")
    return Sums(length=int(text))


@dataclass(frozen=True, kw_only=True, slots=True)
class Nested:
    precision: Literal["fp32", "bf16"] = "fp32"
    keep: int = resumable(2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    objective: Objective = field(default_factory=Clipped)
    """What is optimised."""
    nested: Nested = Nested()
    steps: int = resumable(10)
    rate: float = 1e-4
    flag: bool = False
    name: str = "job"
    model: Path | None = None
    limit: int | None = 3
    mixed: int | str = "auto"
    trackers: tuple[str, ...] = resumable(())
    sizes: tuple[int, ...] = (64, 64)
    pair: tuple[int, float] = (1, 0.5)
    listed: Sequence[float] = ()
    weights: Mapping[str, tuple[float, Objective]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    colour: Colour = Colour.RED
    function: Callable[[float], float] = k1
    kind: type = Clipped
    maybe: Clipped | None = None
    task: Sums = field(default=Sums(), metadata={"parse": parse_task})


HERE = __name__
FULL = Job(
    objective=Bounded(max_length=7),
    nested=Nested(precision="bf16", keep=9),
    steps=-3,
    rate=1e-17,
    flag=True,
    name="1e-4",
    model=Path("a b/c"),
    limit=None,
    mixed="5",
    trackers=("yes", "tensorboard, wandb"),
    sizes=(),
    pair=(-1, 2.0),
    listed=(math.inf, 1.0),
    weights={"a b": (1.0, Clipped()), "no": (2.5, Bounded(max_length=1))},
    options={"x": [1, "2", None], "y": {"z": 1e-4}},
    colour=Colour.BLUE,
    function=math.sqrt,
    kind=Bounded,
    maybe=Clipped(clip_high=0.3, kl=k1),
    task=Sums(length=1),
)


@pytest.mark.parametrize("config", [Job(), FULL])
@pytest.mark.parametrize("default", [Job(), FULL])
def test_yaml_comes_back_exactly_whatever_the_default(config: Job, default: Job) -> None:
    assert from_yaml(to_yaml(config), default) == config
    assert to_yaml(from_yaml(to_yaml(config), default)) == to_yaml(config)


@given(
    name=st.text(),
    rate=st.floats(allow_nan=False),
    mixed=st.one_of(st.integers(), st.text()),
    options=st.dictionaries(
        st.text().filter(lambda name: name != "_type"),
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    ),
    trackers=st.lists(st.text()).map(tuple),
)
def test_any_text_and_number_comes_back_exactly(
    name: str,
    rate: float,
    mixed: int | str,
    options: dict[str, Any],
    trackers: tuple[str, ...],
) -> None:
    config = replace(Job(), name=name, rate=rate, mixed=mixed, options=options, trackers=trackers)
    back = from_yaml(to_yaml(config), Job())
    assert back == config
    assert type(back.mixed) is type(mixed)


def test_objects_name_their_class_and_functions_their_module() -> None:
    text = to_yaml(Job())
    assert f"objective:\n  _type: {HERE}:Clipped\n  clip_low: 0.2\n" in text
    assert "nested:\n  precision: fp32\n" in text  # exactly its annotation: no _type
    assert f"function: {HERE}:k1\n" in text
    assert "sizes: [64, 64]\n" in text
    assert "rate: 0.0001\n" in text


def test_partial_yaml_keeps_the_other_keys() -> None:
    changed = from_yaml("rate: 3e-4\nobjective:\n  clip_high: 0.5\n", replace(Job(), steps=7))
    assert changed == replace(Job(), steps=7, rate=3e-4, objective=Clipped(clip_high=0.5))


def test_empty_yaml_changes_nothing() -> None:
    assert from_yaml("# only a comment\n", FULL) == FULL


def test_a_type_makes_a_new_object_and_none_changes_the_present_one() -> None:
    present = replace(Job(), objective=Clipped(clip_low=0.1, clip_high=0.4))
    assert from_yaml("objective: {clip_high: 0.3}", present).objective == Clipped(
        clip_low=0.1, clip_high=0.3
    )
    named = f"objective: {{_type: {HERE}:Clipped, clip_high: 0.3}}"
    assert from_yaml(named, present).objective == Clipped(clip_high=0.3)


@pytest.mark.parametrize(
    ("flag", "text", "expected"),
    [
        ("steps", "-5", -5),
        ("steps", "1_000", 1000),
        ("rate", "1e-4", 1e-4),
        ("rate", "3", 3.0),
        ("rate", "-.5", -0.5),
        ("rate", "inf", math.inf),
        ("flag", "true", True),
        ("flag", "False", False),
        ("name", "007", "007"),
        ("name", "true", "true"),
        ("name", "", ""),
        ("name", "{x", "{x"),
        ("model", "none", None),
        ("model", "runs/a", Path("runs/a")),
        ("limit", "null", None),
        ("limit", "4", 4),
        ("mixed", "4", 4),
        ("mixed", "4x", "4x"),
        ("trackers", "tensorboard", ("tensorboard",)),
        ("trackers", "a, b", ("a", "b")),
        ("trackers", "[a, b]", ("a", "b")),
        ("trackers", "", ()),
        ("sizes", "3", (3,)),
        ("sizes", "[]", ()),
        ("pair", "2,0.25", (2, 0.25)),
        ("pair.1", "0.25", (1, 0.25)),
        ("colour", "BLUE", Colour.BLUE),
        ("colour", "blue", Colour.BLUE),
        ("function", f"{HERE}:k3", k3),
        ("function", "math:sqrt", math.sqrt),
        ("kind", f"{HERE}:Bounded", Bounded),
        ("nested.precision", "bf16", Nested(precision="bf16")),
        ("nested", "{precision: bf16}", Nested(precision="bf16")),
        ("options", "{a: 1e-4}", {"a": 1e-4}),
        ("options.a", "1e-4", {"a": 1e-4}),
        ("maybe", "{clip_high: 0.5}", Clipped(clip_high=0.5)),
        ("maybe.clip_high", "0.5", Clipped(clip_high=0.5)),
        ("task", "12", Sums(length=12)),
        ("task.length", "12", Sums(length=12)),
        ("task", f"{{_type: {HERE}:Sums, length: 3}}", Sums(length=3)),
        ("objective", f"{HERE}:Clipped", Clipped()),
        ("objective", f"{{_type: {HERE}:Bounded, max_length: 4}}", Bounded(max_length=4)),
    ],
)
def test_a_flag_takes_text(flag: str, text: str, expected: object) -> None:
    value = getattr(override(Job(), {flag: text}), flag.partition(".")[0])
    assert value == expected
    assert type(value) is type(expected)


def test_flags_below_a_replaced_object_apply_to_the_new_one_in_any_order() -> None:
    flags = {"objective.max_length": "3", "objective": f"{HERE}:Bounded"}
    assert override(Job(), flags).objective == Bounded(max_length=3)
    assert override(Job(), dict(reversed(flags.items()))).objective == Bounded(max_length=3)


def test_values_that_are_only_valid_together_may_come_in_any_order() -> None:
    flags = {"objective.clip_low": "0.5", "objective.clip_high": "0.6"}
    expected = Clipped(clip_low=0.5, clip_high=0.6)
    assert override(Job(), flags).objective == expected
    file = "objective: {clip_low: 0.5}"
    both = configure(Job(), text=file, changes={"objective.clip_high": "0.6"})
    assert both.objective == expected


def test_a_flag_wins_over_the_file() -> None:
    both = configure(Job(), text="steps: 5\nrate: 2.0\n", changes={"steps": "6"})
    assert (both.steps, both.rate) == (6, 2.0)


def test_a_function_stands_where_its_protocol_is_asked_for() -> None:
    @dataclass(frozen=True)
    class Scoring:
        reward: Callable[[float], float] | None = None

    assert override(Scoring(), {"reward": f"{HERE}:k1"}).reward is k1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"stepz": "1"}, "unknown key stepz; did you mean steps?"),
        (
            {"objective.clip_hihg": "1"},
            "unknown key objective.clip_hihg; did you mean objective.clip_high?",
        ),
        ({"clip_high": "1"}, "unknown key clip_high; did you mean objective.clip_high?"),
        ({"precison": "1"}, "unknown key precison; did you mean nested.precision?"),
        ({"steps.x": "1"}, "unknown key steps.x; there are no keys there"),
        ({"sizes.2": "1"}, "unknown key sizes.2; the keys there are 0, 1"),
        ({"steps": "abc"}, "steps: got 'abc', expected an integer (int)"),
        ({"steps": "1.5"}, "steps: got '1.5', expected an integer (int)"),
        ({"steps": "none"}, "steps: got 'none', expected an integer (int)"),
        ({"rate": "1e"}, "rate: got '1e', expected a number (float)"),
        ({"flag": "2"}, "flag: got '2', expected true or false (bool)"),
        (
            {"nested.precision": "fb16"},
            "nested.precision: got 'fb16', expected one of fp32, bf16; did you mean bf16?",
        ),
        ({"colour": "green"}, "colour: got 'green', expected one of RED, BLUE"),
        ({"limit": "x"}, "limit: got 'x', expected an integer (int) or null"),
        ({"sizes": "1,x"}, "sizes.1: got 'x', expected an integer (int)"),
        (
            {"pair": "1"},
            "pair: got '1', expected a list [an integer (int), a number (float)]",
        ),
        ({"nested": "5"}, "nested: got '5', expected a Nested"),
        (
            {"objective": "Bounded"},
            "objective: got 'Bounded', expected an Objective, as {_type: module:Class, ...} or "
            "module:Class",
        ),
        (
            {"objective": f"{HERE}:NoObjective"},
            "objective: NoObjective has no denominator, __call__, expected an Objective",
        ),
        (
            {"objective": f"{HERE}:Bounded"},
            "objective: Bounded needs a value for objective.max_length",
        ),
        (
            {"objective": f"{HERE}:Clippd"},
            f"objective: {HERE} has no Clippd; did you mean Clipped?",
        ),
        (
            {"objective": "no_such_module:X"},
            "objective: no_such_module cannot be imported "
            "(ModuleNotFoundError: No module named 'no_such_module')",
        ),
        (
            {"objective.clip_low": "0.9"},
            "objective: clip_low=0.9 is above clip_high=0.2: swap them",
        ),
        ({"maybe": "{clip_low: 0.9}"}, "maybe: clip_low=0.9 is above clip_high=0.2: swap them"),
        ({"maybe.clip_lo": "1"}, "unknown key maybe.clip_lo; did you mean maybe.clip_low?"),
        ({"task": "chess"}, "task: unknown task chess"),
        ({"function": "k1"}, "function: got 'k1', expected a function (module:name)"),
        ({"function": "math:pi"}, "function: got 'math:pi', expected a function (module:name)"),
        ({"kind": f"{HERE}:k1"}, f"kind: got '{HERE}:k1', expected a class (module:Class)"),
        ({"nested": "{precision: [}"}, "nested, line 1: expected the node content, but found '}'"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(flags: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        override(Job(), flags)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1.0", "steps: got 1.0, expected an integer (int)"),
        ("steps: true", "steps: got true, expected an integer (int)"),
        ("steps: null", "steps: got null, expected an integer (int)"),
        ("flag: 1", "flag: got 1, expected true or false (bool)"),
        ("name: 12", "name: got 12, expected text (str); put it in quotes"),
        ("name: [a]", "name: got ['a'], expected text (str)"),
        ("sizes: {a: 1}", "sizes: got {'a': 1}, expected a list, each item an integer (int)"),
        ("nested: [1]", "nested: got [1], expected a Nested"),
        ("stepz: 1", "unknown key stepz; did you mean steps?"),
        ("nested: {kep: 1}", "unknown key nested.kep; did you mean nested.keep?"),
        ("objective: {_type: x}", "objective._type: got 'x', expected module:Class"),
        (
            "objective: {_type: 'math:sqrt'}",
            "objective: math:sqrt is no dataclass, expected an Objective",
        ),
        ("steps: 1\nrate: 1\nsteps: 2", "c.yaml, line 3: duplicate key steps"),
        ("nested:\n  keep: 1\n  keep: 2", "c.yaml, line 3: duplicate key keep"),
        ("steps: 1\n\tx: 2", "c.yaml, line 2: found character '\\t' that cannot start any token"),
        ("steps", "c.yaml: got str, expected keys and values"),
        ("[1, 2]", "c.yaml: got list, expected keys and values"),
    ],
)
def test_wrong_yaml_is_one_line_that_names_the_place(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_yaml(text, Job(), source="c.yaml")
    assert str(caught.value).startswith(message if "c.yaml" in message else f"c.yaml: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("rate: x", {"steps": "5"}, "c.yaml: rate: got 'x', expected a number (float)"),
        ("objective: {clip_low: 9}", {"steps": "5"}, "c.yaml: objective: clip_low=9.0 is above"),
        ("rate: 1", {"steps": "x"}, "steps: got 'x', expected an integer (int)"),
        ("rate: x", {"rate": "y"}, "rate: got 'y', expected a number (float)"),
        ("objective: {clip_low: 0.1}", {"objective.clip_high": "0.05"}, "objective: clip_low=0.1"),
    ],
)
def test_an_error_names_the_file_where_that_is_at_fault(
    text: str, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        configure(Job(), text=text, source="c.yaml", changes=changes)
    assert str(caught.value).startswith(message)


def test_a_key_without_a_near_one_lists_the_keys_there() -> None:
    with pytest.raises(UsageError, match=r"unknown key nested\.qqq; the keys there are precision"):
        override(Job(), {"nested.qqq": "1"})


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (replace(Job(), function=lambda x: x), "function"),
        (replace(Job(), objective=Plain()), "objective"),
        (replace(Job(), options={"a": [object()]}), "options.a.0"),
    ],
)
def test_what_cannot_come_back_is_not_written(config: Job, key: str) -> None:
    with pytest.raises(UsageError, match=f"^{key}: .* cannot be written into a config"):
        to_yaml(config)


def test_flags_tell_kind_value_and_doc() -> None:
    found = {flag.key: flag for flag in flags(Job())}
    assert list(found)[:5] == [
        "objective",
        "objective.clip_low",
        "objective.clip_high",
        "objective.kl",
        "nested",
    ]
    assert found["objective"].doc == "What is optimised."
    assert found["objective"].object_doc == "A clipped objective."
    assert found["objective.clip_low"].doc == "Lower bound of the ratio."
    assert (found["rate"].kind, found["rate"].value) == ("FLOAT", "0.0001")
    assert found["sizes"].value == "[64, 64]"
    assert found["model"].value == "null"


def test_every_value_that_a_flag_shows_is_taken_back() -> None:
    for flag in flags(FULL):
        if flag.object_doc is None and flag.key not in ("trackers", "mixed", "weights", "options"):
            assert override(FULL, {flag.key: flag.value}) == FULL, flag


def test_resumable_fields_are_found_wherever_they_are_nested() -> None:
    assert resumable_keys(Job()) == {"steps", "nested.keep", "trackers"}


def test_nothing_below_a_field_that_is_marked_so_is_resumable() -> None:
    @dataclass(frozen=True)
    class Stages:
        first: Job = field(default_factory=Job, metadata={"resumable": False})
        second: Job = field(default_factory=Job)

    assert resumable_keys(Stages()) == {"second.steps", "second.nested.keep", "second.trackers"}


def test_changed_fields_are_those_that_are_not_resumable() -> None:
    old = to_yaml(Job())
    new = replace(
        Job(), steps=99, trackers=("a",), nested=Nested(precision="bf16", keep=5), rate=2e-4
    )
    assert changed_fields(old, new) == ["nested.precision", "rate"]
    assert changed_fields(old, Job()) == []


def test_an_object_of_another_class_is_named_without_its_keys() -> None:
    new = replace(Job(), objective=Bounded(max_length=2))
    assert changed_fields(to_yaml(Job()), new) == ["objective"]


def test_a_key_that_came_or_went_has_changed() -> None:
    assert changed_keys("{a: 1, b: 2}", "{a: 1, c: 2}", frozenset()) == ["c", "b"]
    assert changed_keys("x: .nan", "x: .nan", frozenset()) == []
    assert changed_keys("x: 1", "x: true", frozenset()) == ["x"]
