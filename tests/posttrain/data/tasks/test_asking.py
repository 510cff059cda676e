import pytest

from launch.errors import UsageError
from posttrain.data.tasks.asking import Lazily, ask, fill, final_answer, is_heldout
from posttrain.data.tasks.base import Prompt


def test_fill_puts_values_in_place_of_names_alone() -> None:
    values = {"question": r"\frac{a}{2} {question}", "n": 3}
    assert fill("{n}: {question} {} { n } {{", values, "here") == (
        r"3: \frac{a}{2} {question} {} { n } {{"
    )
    with pytest.raises(UsageError, match=r"here: nothing is called \{questin\}; did you mean"):
        fill("{questin}", values, "here")


def test_ask_puts_the_system_first_in_both_forms() -> None:
    user = {"role": "user", "content": "1+1"}
    chat = ask("1+1", "2", system="be brief", form="chat", metadata={"level": 1})
    assert chat.messages == ({"role": "system", "content": "be brief"}, user)
    assert (chat.answer, chat.text, chat.metadata) == ("2", None, {"level": 1})
    assert ask("1+1", "2", system=None, form="chat", metadata={}).messages == (user,)
    assert ask("1+1", "2", system="be brief", form="text", metadata={}).text == "be brief\n\n1+1"
    assert ask("1+1", "2", system=None, form="text", metadata={}).text == "1+1"


@pytest.mark.parametrize(
    ("text", "answer"),
    [("so\n#### 42", "42"), ("####1 #### 1,234 \n", "1,234"), (" x = 2 ", "x = 2"), ("####", "")],
)
def test_final_answer_stands_behind_the_last_mark(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_is_heldout_holds_out_the_share_and_more_with_a_larger_one() -> None:
    questions = [f"question {i}" for i in range(4_000)]
    few = {q for q in questions if is_heldout(q, 0.1)}
    more = {q for q in questions if is_heldout(q, 0.3)}
    assert 320 < len(few) < 480
    assert 1_050 < len(more) < 1_350
    assert few < more
    assert not any(is_heldout(q, 0.0) for q in questions)


def test_lazily_makes_only_what_is_asked_for() -> None:
    made = []

    def make(index: int) -> Prompt:
        made.append(index)
        return Prompt(text=str(index), answer="")

    prompts = Lazily(10**9, make)
    assert len(prompts) == 10**9
    assert (prompts[3].text, prompts[-1].text) == ("3", "999999999")
    part = prompts[2:10:3][1:]
    assert len(part) == 2
    assert [prompt.text for prompt in part] == ["5", "8"]
    assert made == [3, 999_999_999, 5, 8]
    with pytest.raises(IndexError):
        prompts[10**9]
