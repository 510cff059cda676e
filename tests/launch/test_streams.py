from hypothesis import given
from hypothesis import strategies as st

from launch.streams import key, keys, stream


def test_key_of_a_row_does_not_depend_on_which_process_asks() -> None:
    whole = keys(7, "rollout", 3, range(10))
    assert keys(7, "rollout", 3, range(4)) + keys(7, "rollout", 3, range(4, 10)) == whole


@given(st.tuples(st.integers(), st.text(), st.integers(0), st.integers(0)))
def test_key_is_a_63_bit_integer(parts: tuple[int, str, int, int]) -> None:
    assert 0 <= key(*parts) < 2**63


def test_keys_differ_in_every_part() -> None:
    found = {
        key(seed, name, step, index)
        for seed in (0, 1)
        for name in ("a", "b")
        for step in range(20)
        for index in range(20)
    }
    assert len(found) == 2 * 2 * 20 * 20


def test_stream_starts_anew_each_time() -> None:
    assert stream(1, "x", 2, 3).initial_seed() == key(1, "x", 2, 3)
