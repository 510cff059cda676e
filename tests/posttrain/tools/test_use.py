from types import SimpleNamespace

import pytest

from posttrain.models import train_tokenizer
from posttrain.tools import ToolOutput, ToolUse
from posttrain.tools.use import closing_tokens

TEXTS = ["<tool>1+2</tool><output>3</output> so 3 > 2 -> yes"] * 3


def test_the_first_closed_call_is_asked_and_a_later_opening_begins_anew() -> None:
    use = ToolUse()
    assert use.request("a <tool>1+2</tool> b <tool>3</tool>") == "1+2"
    assert use.request("<tool>1+<tool> 2 </tool>") == " 2 "
    assert use.request("<tool></tool>") == ""
    for text in ("", "<tool>1", "1</tool>", "</tool><tool>1"):
        assert use.request(text) is None
    assert use.written(ToolOutput("3")) == "<output>3</output>"


def test_a_tag_that_is_a_token_is_the_one_that_ends_calls() -> None:
    tokenizer = train_tokenizer(TEXTS, vocabulary=120, tags=("<tool>", "</tool>"))
    closing = closing_tokens(tokenizer, "</tool>")
    assert tokenizer.convert_tokens_to_ids("</tool>") in closing
    texts = [tokenizer.decode([token]) for token in closing]
    assert tokenizer.encode("</tool>") == [tokenizer.convert_tokens_to_ids("</tool>")]
    assert not {"<tool>", "</think>", "<answer>"} & set(texts)


def test_otherwise_it_is_every_token_in_which_the_last_character_can_stand() -> None:
    ends = [
        ">",
        "l>",
        "tool>",
        "</tool>",
        "12</tool>",
        "</tool><output>",
        "l>>",
        ">\n",
        "a</tool>b",
    ]
    others = ["->", "</think>", "<tool>", "</tool", "l >", "1", ""]
    texts = [text for pair in zip(ends, [*others, "->>l>", " >"], strict=True) for text in pair]
    vocabulary = {f"piece {i}": 7 * i for i in range(len(texts))}
    tokenizer = SimpleNamespace(
        get_vocab=lambda: vocabulary,
        batch_decode=lambda rows, skip_special_tokens: [texts[i // 7] for [i] in rows],
    )
    found = closing_tokens(tokenizer, "</tool>")  # type: ignore[arg-type]  # all that it asks for
    assert [texts[token // 7] for token in found] == ends


def test_whatever_completes_a_tag_is_among_them() -> None:
    # Merges cross the bounds of words, so that a tag may end within a token.
    tokenizer = train_tokenizer(TEXTS, vocabulary=120)
    closing = set(closing_tokens(tokenizer, "</tool>"))
    for text in ("<tool>1+2</tool>", TEXTS[0], "2</tool> <tool>12</tool>>"):
        tokens = tokenizer.encode(text, add_special_tokens=False)
        counts = [tokenizer.decode(tokens[:n]).count("</tool>") for n in range(len(tokens) + 1)]
        completing = {
            token
            for token, before, after in zip(tokens, counts[:-1], counts[1:], strict=True)
            if after > before
        }
        assert completing
        assert completing <= closing


def test_tags_that_cannot_be_told_apart_are_refused() -> None:
    for opening, closing in (("", "</tool>"), ("<tool>", ""), ("$", "$")):
        with pytest.raises(ValueError, match="a call needs two different tags"):
            ToolUse(opening=opening, closing=closing)
    with pytest.raises(ValueError, match="max_calls=0: give at least 1"):
        ToolUse(max_calls=0)
