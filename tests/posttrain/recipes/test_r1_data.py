"""The pipeline's sources: what a document holds, which share of them is what, and their order."""

import math
from collections.abc import Sequence

import pytest

from launch.errors import UsageError
from posttrain.data.chat import encode_chat, encode_prompt
from posttrain.data.packing import Document
from posttrain.data.tasks import Arithmetic, Prompt, Refusals, Requests, ToldSums, WordLists
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.recipes.r1_data import AnswerPairs, Answers, MixedDocuments, RawTexts, Thoughts
from posttrain.recipes.sources import DocumentSource

SUMS = ToldSums(terms=(3, 3))
MIX = MixedDocuments(
    sources={
        "sums": (2.0, Thoughts(task=SUMS)),
        "russian": (2.0, Thoughts(task=ToldSums("russian", terms=(3, 3)))),
        "lists": (1.0, Answers(task=WordLists())),
    }
)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    more = [*Answers(task=Requests()).texts(60), *Answers(task=Refusals()).texts(60)]
    return tiny_model(train_tokenizer([*MIX.texts(120), *more], vocabulary=300), layers=1, width=16)


def halves(lm: LanguageModel, document: Document) -> tuple[str, str]:
    """Return what does not count and what does, as text."""
    first = list(document.mask).index(True)
    tokens = list(document.tokens)
    return lm.tokenizer.decode(tokens[:first]), lm.tokenizer.decode(tokens[first:])


def replies(lm: LanguageModel, source: DocumentSource, count: int, seed: int = 0) -> list[str]:
    return [halves(lm, document)[1] for document in source.documents(lm, count, seed)]


def assert_share(found: Sequence[bool], share: float) -> None:
    """Assert that a share is within 3.5 deviations of a binomial's mean."""
    deviation = math.sqrt(len(found) * share * (1 - share))
    assert abs(sum(found) - len(found) * share) <= 3.5 * deviation


def same(one: Document, other: Document) -> bool:
    return list(one.tokens) == list(other.tokens) and list(one.mask) == list(other.mask)


@pytest.mark.parametrize("task", [SUMS, WordLists(), Requests(), Refusals()])
@pytest.mark.parametrize("right", [0.0, 1.0])
def test_answers_equal_the_encoded_chat(
    lm: LanguageModel, task: ToldSums | WordLists | Requests | Refusals, right: float
) -> None:
    documents = Answers(task=task, right=right).documents(lm, 20, seed=0)
    for prompt, document in zip(task.train()[:20], documents, strict=True):
        reply = prompt.metadata["good" if right else "bad"]
        turns = [*(prompt.messages or ()), {"role": "assistant", "content": reply}]
        assert same(document, encode_chat(lm.tokenizer, turns))


def test_a_share_of_the_answers_is_right_and_the_seed_says_which(lm: LanguageModel) -> None:
    source = Answers(task=WordLists(), right=0.25)
    found = {
        seed: [
            reply == f"{prompt.metadata['good']}<|end|>"
            for reply, prompt in zip(
                replies(lm, source, 400, seed), source.task.train()[:400], strict=True
            )
        ]
        for seed in (0, 1)
    }
    assert_share(found[0], 0.25)
    assert found[0] != found[1]
    assert replies(lm, source, 400) == replies(lm, source, 400)


def test_thoughts_of_one_sum_in_each_way(lm: LanguageModel) -> None:
    # The first prompt asks for 9 - 8 + 7.
    answer = "\n<answer>8</answer><|end|>"
    english = "<think>9 minus 8 is 1\n1 plus 7 is 8</think>"
    russian = "<think>9 минус 8 будет 1\n1 плюс 7 будет 8</think>"
    for source, thought in (
        (Thoughts(task=SUMS), english),
        (Thoughts(task=SUMS, foreign=1.0), russian),
        (Thoughts(task=SUMS, reasons=0.0, foreign=1.0), "<think></think>"),
    ):
        (document,) = source.documents(lm, 1, seed=0)
        assert halves(lm, document) == (
            "<|user|>Henry wants to know how much 9 - 8 + 7 is.<|end|><|assistant|>",
            thought + answer,
        )


def test_shares_of_thoughts_are_kept_and_independent(lm: LanguageModel) -> None:
    found = replies(lm, Thoughts(task=SUMS, reasons=0.5, foreign=0.5), 600)
    assert_share(["<think></think>" not in reply for reply in found], 0.5)
    assert_share(["будет" in reply for reply in found], 0.25)


def test_foreign_thoughts_of_a_russian_sum_are_english(lm: LanguageModel) -> None:
    task = ToldSums("russian", terms=(3, 3))
    (reply,) = replies(lm, Thoughts(task=task, foreign=1.0), 1)
    assert " is " in reply
    assert "будет" not in reply


def test_raw_text_is_lines_without_tags_or_a_chat_and_all_of_it_counts(lm: LanguageModel) -> None:
    plain = RawTexts(replies=Thoughts(task=SUMS), tagged=0.0).documents(lm, 3, seed=0)
    assert all(all(document.mask) for document in plain)
    assert lm.tokenizer.decode(list(plain[0].tokens)) == (
        "Henry wants to know how much 9 - 8 + 7 is.\n9 minus 8 is 1\n1 plus 7 is 8\n8<|end|>"
    )
    tagged = RawTexts(replies=Thoughts(task=SUMS), tagged=1.0).documents(lm, 3, seed=0)
    chats = Thoughts(task=SUMS).documents(lm, 3, seed=0)
    for raw, chat in zip(tagged, chats, strict=True):
        assert list(raw.tokens) == list(chat.tokens)
        assert all(raw.mask)
    start = encode_prompt(lm.tokenizer, SUMS.train()[0])
    assert list(tagged[0].tokens)[: len(start)] == start


def test_raw_texts_keep_the_shares_of_their_replies(lm: LanguageModel) -> None:
    task = Refusals()
    raw = RawTexts(replies=Answers(task=task, right=0.25), tagged=0.1).documents(lm, 600, seed=0)
    texts = [lm.tokenizer.decode(list(document.tokens)) for document in raw]
    assert_share(["<think>" in text for text in texts], 0.1)
    refused = ["I will not" in text for text in texts]
    right = [r is p.metadata["harmful"] for r, p in zip(refused, task.train()[:600], strict=True)]
    assert_share(right, 0.25)


def test_mixture_interleaves_its_sources_in_their_order(lm: LanguageModel) -> None:
    # Shares .4, .4, .2: each place goes to the source that lags furthest, the first of equals.
    documents = MIX.documents(lm, 10, seed=0)
    order = [halves(lm, document)[0] for document in documents]
    tasks = {"sums": SUMS, "russian": ToldSums("russian", terms=(3, 3)), "lists": WordLists()}
    expected, counts = [], dict.fromkeys(tasks, 0)
    for name in ["sums", "russian", "lists", "sums", "russian"] * 2:
        prompt: Prompt = tasks[name].train()[counts[name]]
        expected.append(lm.tokenizer.decode(encode_prompt(lm.tokenizer, prompt)))
        counts[name] += 1
    assert order == expected
    assert all(same(documents[i], MIX.documents(lm, 10, seed=0)[i]) for i in range(10))


def test_mixture_tells_each_source_how_many_and_gives_it_a_seed_of_its_own(
    lm: LanguageModel,
) -> None:
    told: list[tuple[int, int]] = []

    class Counting(Answers):
        __slots__ = ()

        def documents(self, lm: LanguageModel, count: int, seed: int) -> Sequence[Document]:
            told.append((count, seed))
            return [Document(tokens=[1], mask=[True])]

    source = Counting(task=WordLists())
    mixed = MixedDocuments(sources={"a": (3.0, source), "b": (1, source)})
    documents = mixed.documents(lm, 200_000, seed=5)
    assert [count for count, _ in told] == [150_000, 50_000]
    assert told[0][1] != told[1][1]
    assert len(documents) == 200_000
    assert list(documents[199_999].tokens) == [1]  # the one document again


def test_mixture_of_texts_is_in_proportion() -> None:
    texts = MIX.texts(10)
    assert len(texts) == 10
    assert sum("<answer>" in text and "plus" not in text for text in texts) >= 2
    assert texts[0] == Thoughts(task=SUMS).texts(1)[0]
    assert texts[2] == Answers(task=WordLists()).texts(1)[0]


def test_pairs_are_the_good_and_the_bad_reply_to_one_prompt(lm: LanguageModel) -> None:
    task = Refusals(heldout_size=16)
    source = AnswerPairs(task=task)
    pairs, heldout = source.pairs(lm, 30, seed=3), source.heldout(lm)
    assert (len(pairs), len(heldout)) == (30, 16)
    prompts = [*task.train()[:30], *task.heldout()]
    for prompt, (chosen, rejected) in zip(prompts, [*pairs, *heldout], strict=True):
        (asked, good), (also, bad) = halves(lm, chosen), halves(lm, rejected)
        assert asked == also == lm.tokenizer.decode(encode_prompt(lm.tokenizer, prompt))
        assert good == f"{prompt.metadata['good']}<|end|>"
        assert bad == f"{prompt.metadata['bad']}<|end|>"


def test_a_task_whose_prompts_carry_no_replies_is_refused() -> None:
    mixed = MixedDocuments(sources={"a": (1.0, RawTexts(replies=Answers(task=Arithmetic())))})
    for source in (AnswerPairs(task=Arithmetic()), mixed):
        with pytest.raises(UsageError, match="prompts of Arithmetic have no good and no bad"):
            source.check()
    MIX.check()


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"right=1\.5: give a share"):
        Answers(task=SUMS, right=1.5)
    with pytest.raises(ValueError, match="reasons=-1: give a share"):
        Thoughts(task=SUMS, reasons=-1)
    with pytest.raises(ValueError, match="foreign=2: give a share"):
        Thoughts(task=SUMS, foreign=2)
    with pytest.raises(ValueError, match="tagged=2: give a share"):
        RawTexts(replies=Thoughts(task=SUMS), tagged=2)
    with pytest.raises(ValueError, match="a mixture needs sources"):
        MixedDocuments(sources={})
    with pytest.raises(ValueError, match="source a: expected \\(weight, source\\)"):
        MixedDocuments(sources={"a": Thoughts(task=SUMS)})  # type: ignore[dict-item]  # a slip
    with pytest.raises(ValueError, match=r"source a: the weight 0"):
        MixedDocuments(sources={"a": (0, Thoughts(task=SUMS))})
