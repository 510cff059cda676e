import pytest

from posttrain.data.chat import encode_chat
from posttrain.data.tasks import Prompt
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.recipes.sources import worked_texts
from posttrain.recipes.tiny import sums
from posttrain.recipes.worked import Mixture, demonstrations, raw_lines, response, worked_sum
from posttrain.rewards import AnswerReward, FormatReward, Sample


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    texts = worked_texts(sums((2, 3), heldout=8), 200)
    return tiny_model(train_tokenizer(texts, vocabulary=120), layers=1, width=8, heads=2)


@pytest.mark.parametrize(
    ("expression", "lines"),
    [
        ("5", ""),
        ("3 - 9", "3 - 9 = -6"),
        ("3 - 9 + 2", "3 - 9 = -6\n-6 + 2 = -4"),
        ("12 + 30 - 2", "12 + 30 = 42\n42 - 2 = 40"),
    ],
)
def test_worked_sum_of_hand_worked_expressions(expression: str, lines: str) -> None:
    assert worked_sum(expression) == lines


@pytest.mark.parametrize("reasons", [True, False])
def test_both_kinds_of_response_are_right_and_well_formed(reasons: bool) -> None:
    prompt = Prompt(text="", answer="-4", metadata={"expression": "3 - 9 + 2"})
    text = response(prompt, reasons=reasons)
    sample = Sample(prompt="", completion=text, answer="-4")
    assert FormatReward()([sample]).tolist() == [1.0]
    assert AnswerReward()([sample]).tolist() == [1.0]
    assert ("3 - 9" in text) is reasons


def test_every_demonstration_of_the_task_ends_in_its_gold_answer() -> None:
    prompts = sums((5, 8), heldout=8).train()
    for prompt in (prompts[i] for i in range(50)):
        thought = worked_sum(str(prompt.metadata["expression"]))
        assert thought.rpartition("= ")[2] == prompt.answer


def test_mixture_reasons_always_at_first_and_then_in_its_share(lm: LanguageModel) -> None:
    prompts = sums((2, 3), heldout=8).train()
    documents = demonstrations(prompts, lm, Mixture(first=0.5, reasoning=0.25), 800, seed=0)
    texts = [lm.tokenizer.decode(list(documents[i].tokens)) for i in range(800)]
    reasoning = ["<think></think>" not in text for text in texts]
    assert all(reasoning[:400])
    assert 70 < sum(reasoning[400:]) < 130  # binomial(400, 1/4): 100 +- 3.5 deviations
    assert documents[500].tokens == documents[500].tokens
    with pytest.raises(IndexError, match="document 800 of 800"):
        documents[800]


def test_demonstration_equals_the_encoded_chat(lm: LanguageModel) -> None:
    prompt = sums((2, 3), heldout=8).train()[5]
    (document,) = demonstrations([prompt], lm, Mixture(first=1.0), 1, seed=0)
    turn = {"role": "assistant", "content": response(prompt, reasons=True)}
    expected = encode_chat(lm.tokenizer, [*(prompt.messages or ()), turn])
    assert list(document.tokens) == list(expected.tokens)
    assert list(document.mask) == list(expected.mask)


def test_raw_lines_begin_with_exactly_the_prompts_tokens(lm: LanguageModel) -> None:
    prompts = [
        Prompt(text=f"{a} + {b} =", answer=str(a + b), metadata={"expression": f"{a} + {b}"})
        for a in range(3)
        for b in range(3)
    ]
    documents = raw_lines(prompts, lm, tagged=0.5, count=40, seed=1)
    tagged = 0
    for i, prompt in enumerate(prompts):
        start = lm.tokenizer.encode(prompt.text, add_special_tokens=False)
        tokens = list(documents[i].tokens)
        assert tokens[: len(start)] == start
        assert tokens[-1] == lm.stop_tokens[0]
        assert all(documents[i].mask)
        tagged += "<answer>" in lm.tokenizer.decode(tokens)
    assert 0 < tagged < len(prompts)


def test_mixture_refuses_what_is_no_share() -> None:
    with pytest.raises(ValueError, match=r"reasoning=1\.5: give a share"):
        Mixture(reasoning=1.5)
