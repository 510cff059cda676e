import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import page


@given(st.text(alphabet=st.sampled_from("<>&\"'/ab`*#- \n\x00\ud800"), max_size=60))
def test_no_text_can_leave_its_element(text: str) -> None:
    for shown in (page.escape(text), page.completion(text), page.prose(text)):
        rest = shown
        for tag in ("p", "strong", "em", "code", "ul", "li"):
            rest = rest.replace(f"<{tag}>", "").replace(f"</{tag}>", "")
        rest = rest.replace('<p class="heading">', "")
        assert not set(rest) & {"<", ">", '"', "'", "\x00", "\ud800"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.94123, "0.941"),
        (-0.5, "\u22120.5"),
        (28.72, "28.7"),
        (123.456, "123.5"),
        (1234.5, "1,234"),
        (1_234_567, "1,234,567"),
        (3e-4, "3e-4"),
        (-1.25e-7, "\u22121.25e-7"),
        (2e15, "2e15"),
        (0.0, "0"),
        (float("nan"), "\u2013"),
        (float("-inf"), "\u2212\u221e"),
    ],
)
def test_number_is_short(value: float, words: str) -> None:
    assert page.number(value) == words


def test_completion_sets_think_and_answer_apart() -> None:
    assert page.completion("a<think>b</think>c<answer>d</answer>e") == (
        'a<span class="tag">&lt;think&gt;</span><span class="think">b</span>'
        '<span class="tag">&lt;/think&gt;</span>c<span class="tag">&lt;answer&gt;</span>'
        '<span class="answer">d</span><span class="tag">&lt;/answer&gt;</span>e'
    )


def test_long_completion_is_cut_and_says_so() -> None:
    shown = page.completion("x" * 13_000)
    assert shown.count("x") == 12_000
    assert "and 1,000 characters more" in shown


def test_table_has_all_columns_and_sets_intervals_apart() -> None:
    rows = [
        {"model": "before", "pass@1": "0.300 [0.280, 0.320]"},
        {"model": "after", "pass@1": {"mean": 0.9, "low": 0.8, "high": 1.0}, "right": True},
    ]
    shown = page.table(rows, caption="t")
    assert '<td class="number">0.300 <span class="interval">[0.280, 0.320]</span></td>' in shown
    assert '0.9 <span class="interval">[0.8, 1]</span>' in shown
    assert '<th scope="row">after</th>' in shown
    assert shown.count('<th scope="col"') == 3
    assert "<td>\u2013</td></tr>" in shown or '<td class="number">\u2013</td></tr>' in shown
    assert "yes</td></tr>" in shown


def test_table_cell_of_an_integer_beyond_float64_is_shown() -> None:
    assert "10000000000000000000\u2026" in page.table([{"a": "x", "b": 10**400}], caption="t")


def test_only_columns_of_numbers_stand_right() -> None:
    shown = page.table([{"model": "a", "problems": "5 to 8 terms", "n": "1,024"}], caption="t")
    assert "<td>5 to 8 terms</td>" in shown
    assert '<td class="number">1,024</td>' in shown


def test_sample_row_has_prompt_chips_and_one_column_a_text() -> None:
    row = {
        "prompt": "1+1?",
        "answer": "2",
        "step": 7,
        "before": "3",
        "after": {"text": "<answer>2</answer>", "correct": True, "reward": 1.1},
    }
    shown = page.samples([row])
    assert shown.count('<div class="sample">') == 2
    assert shown.index("<h4>before</h4>") < shown.index("<h4>after</h4>")
    assert '<span class="chip">step <b>7</b></span>' in shown
    assert '<span class="chip right">\u2713 right</span>' in shown
    assert '<span class="chip">reward <b>1.1</b></span>' in shown


def test_samples_of_chats_and_empty_texts_are_shown() -> None:
    shown = page.samples([{"prompt": [{"role": "user", "content": "hi <b>"}], "completion": ""}])
    assert "hi &lt;b&gt;" in shown
    assert "(empty)" in shown
