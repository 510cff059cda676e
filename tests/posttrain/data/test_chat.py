from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from posttrain.data.chat import (
    CHAT_TEMPLATE,
    CHAT_TOKENS,
    check_messages,
    encode_chat,
    encode_chats,
    encode_prompt,
    encode_turns,
)
from posttrain.data.packing import Document
from posttrain.data.tasks.base import Prompt

BODY = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
HEADER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = "{% for m in messages %}" + BODY + "{% endfor %}" + HEADER
PLAIN = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}" + HEADER
)
FORGETS = CHATML.replace(  # as Qwen3's: earlier turns lose their thoughts
    "m.content +", "(m.content if loop.last else m.content.split('</think>')[-1]) +"
)
NEVER_THINKS = CHATML.replace("m.content +", "m.content.split('</think>')[-1] +")
REFUSES = "{{ raise_exception('roles must alternate') }}"

CHAT = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "how are you"},
    {"role": "assistant", "content": "<think>fine</think> fine"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": " hello  world "},
]

Make = Callable[..., PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def make() -> Make:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<|im_start|>", "<|im_end|>", *CHAT_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = "hello world how are you fine be kind system user assistant think"
    bpe.train_from_iterator([f" {words}"] * 9, trainer)
    source = bpe.to_str()

    def make(template: str | None, *, bos: bool = False) -> PreTrainedTokenizerBase:
        made = Tokenizer.from_str(source)
        if bos:
            made.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", 0)]
            )
        names: dict[str, Any] = {"bos_token": "<s>"} if bos else {}
        return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, **names)

    return make


def shown(tokenizer: PreTrainedTokenizerBase, document: Document) -> str:
    """Decode with ``[...]`` around what counts."""
    text, counted = "", False
    for token, counts in zip(document.tokens, document.mask, strict=True):
        if counts != counted:
            text, counted = text + ("[" if counts else "]"), bool(counts)
        text += tokenizer.decode([token])
    return text + ("]" if counted else "")


def test_encode_chat_counts_the_assistant_and_its_end_in_our_template(make: Make) -> None:
    tokenizer = make(CHAT_TEMPLATE)
    document = encode_chat(tokenizer, CHAT)
    assert shown(tokenizer, document) == (
        "<|system|>be kind<|end|><|user|>how are you<|end|>"
        "<|assistant|>[<think>fine</think> fine<|end|>]"
        "<|user|>hello<|end|><|assistant|>[ hello  world <|end|>]"
    )


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_encode_chat_leaves_out_the_newline_behind_the_end(make: Make, template: str) -> None:
    tokenizer = make(template)
    document = encode_chat(tokenizer, CHAT)
    assert shown(tokenizer, document) == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhow are you<|im_end|>\n"
        "<|im_start|>assistant\n[<think>fine</think> fine<|im_end|>]\n"
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n[ hello  world <|im_end|>]\n"
    )
    assert document.tokens == tokenizer.apply_chat_template(CHAT, return_dict=False)


def test_encode_chat_takes_the_whole_turn_where_no_special_token_ends_it(make: Make) -> None:
    tokenizer = make(PLAIN)
    assert shown(tokenizer, encode_chat(tokenizer, CHAT[1:3])) == (
        "user: how are you\nassistant: [<think>fine</think> fine\n]"
    )


SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nbe kind<|im_end|>\n' }}"
    "{% endif %}"
)
THINKS = CHATML.replace(  # as Qwen3's: an answer without thoughts gets empty ones
    "m.content +", "('<think></think>' if m.role == 'assistant' else '') + m.content +"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHAT_TEMPLATE, "<|assistant|>[hello<|end|>]<|user|>you<|end|><|assistant|>[x<|end|>]"),
        (
            SYSTEM + CHATML,  # as Qwen2's: an empty chat has no first message
            "<|im_start|>system\nbe kind<|im_end|>\n"
            "<|im_start|>assistant\n[hello<|im_end|>]\n<|im_start|>user\nyou<|im_end|>\n"
            "<|im_start|>assistant\n[x<|im_end|>]\n",
        ),
        (
            THINKS,
            "<|im_start|>assistant\n[<think></think>hello<|im_end|>]\n"
            "<|im_start|>user\nyou<|im_end|>\n"
            "<|im_start|>assistant\n[<think></think>x<|im_end|>]\n",
        ),
        (MARKED, None),
        (PLAIN, "assistant: [hello\n]user: you\nassistant: [x\n]"),
    ],
)
def test_a_chat_may_begin_with_the_assistant(
    make: Make, template: str, expected: str | None
) -> None:
    tokenizer = make(template)
    chat = [
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "you"},
        {"role": "assistant", "content": "x"},
    ]
    expected = expected or (
        "<|im_start|>assistant\n[hello<|im_end|>]\n<|im_start|>user\nyou<|im_end|>\n"
        "<|im_start|>assistant\n[x<|im_end|>]\n"
    )
    assert shown(tokenizer, encode_chat(tokenizer, chat)) == expected
    if template != MARKED:
        alone, last = encode_turns(tokenizer, chat)
        assert expected.startswith(shown(tokenizer, alone))
        assert sum(last.mask) < sum(encode_chat(tokenizer, chat).mask)


def test_a_template_that_refuses_an_assistant_first_is_said_clearly(make: Make) -> None:
    after_user = "{% if messages[0].role == 'assistant' %}" + REFUSES + "{% endif %}" + CHATML
    with pytest.raises(ValueError, match=r"refuses the roles assistant: .*roles must alternate"):
        encode_chat(make(after_user), [{"role": "assistant", "content": "1"}])
    with pytest.raises(ValueError, match=r"does not write message 0 \(assistant\)"):
        encode_chat(make(NEVER_THINKS), [{"role": "assistant", "content": "<think>a</think>b"}])


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, CHATML, PLAIN])
def test_each_turn_stands_behind_the_tokens_of_its_prompt(make: Make, template: str) -> None:
    # PLAIN ends its header with a space, which would be merged into " hello" in one text.
    tokenizer = make(template)
    chat = [*CHAT[1:4], {"role": "assistant", "content": "hello"}]
    document = encode_chat(tokenizer, chat)
    starts = [i for i, counts in enumerate(document.mask) if counts and not document.mask[i - 1]]
    for start, before in zip(starts, (1, 3), strict=True):
        prompt = Prompt(messages=tuple(chat[:before]), answer="")
        assert list(document.tokens[:start]) == encode_prompt(tokenizer, prompt)


def test_encode_chat_without_an_assistant_counts_nothing(make: Make) -> None:
    assert not any(encode_chat(make(CHATML), CHAT[:2]).mask)


def test_encode_chat_refuses_a_template_that_rewrites_earlier_turns(make: Make) -> None:
    with pytest.raises(ValueError, match=r"writes message 2 .* encode_turns gives a document"):
        encode_chat(make(FORGETS), CHAT)
    with pytest.raises(ValueError, match="changes or drops a part, such as the thoughts"):
        encode_chat(make(NEVER_THINKS), CHAT[:3])


def test_encode_turns_gives_each_turn_as_the_model_saw_it(make: Make) -> None:
    tokenizer = make(FORGETS)
    turns = encode_turns(tokenizer, CHAT[1:])
    assert [shown(tokenizer, turn) for turn in turns] == [
        "<|im_start|>user\nhow are you<|im_end|>\n"
        "<|im_start|>assistant\n[<think>fine</think> fine<|im_end|>]\n",
        "<|im_start|>user\nhow are you<|im_end|>\n<|im_start|>assistant\n fine<|im_end|>\n"
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n[ hello  world <|im_end|>]\n",
    ]


def test_encode_chats_gives_one_document_where_the_template_allows_it(make: Make) -> None:
    chats = [CHAT, CHAT[:3]]
    assert [len(encode_chats(make(t), chats)) for t in (CHATML, FORGETS)] == [2, 3]


def test_encode_prompt_of_messages_ends_where_the_assistant_begins(make: Make) -> None:
    tokenizer = make(CHATML, bos=True)
    tokens = encode_prompt(tokenizer, Prompt(messages=tuple(CHAT[1:2]), answer=""))
    assert tokenizer.decode(tokens) == (
        "<|im_start|>user\nhow are you<|im_end|>\n<|im_start|>assistant\n"
    )


def test_encode_prompt_of_text_adds_only_what_the_tokenizer_begins_with(make: Make) -> None:
    prompt = Prompt(text="hello world", answer="")
    assert make(None).decode(encode_prompt(make(None), prompt)) == "hello world"
    with_bos = make(None, bos=True)
    assert with_bos.decode(encode_prompt(with_bos, prompt)) == "<s>hello world"
    once = Prompt(text="<s>hello", answer="")
    assert with_bos.decode(encode_prompt(with_bos, once)) == "<s>hello"
    with pytest.raises(ValueError, match="no tokens"):
        encode_prompt(make(None), Prompt(text="", answer=""))


def test_a_missing_template_and_one_that_refuses_are_said_clearly(make: Make) -> None:
    prompt = Prompt(messages=tuple(CHAT[1:2]), answer="")
    for call in (lambda t: encode_chat(t, CHAT), lambda t: encode_prompt(t, prompt)):
        with pytest.raises(ValueError, match="has no chat template"):
            call(make(None))
        with pytest.raises(ValueError, match=r"refuses the roles .*user.*roles must alternate"):
            call(make(REFUSES))
    tool = [{"role": "tool", "content": "42"}]
    with pytest.raises(ValueError, match="has no role tool"):
        encode_chat(make(CHAT_TEMPLATE), tool)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "without messages"),
        ("hello", "got str as messages"),
        ({"role": "user", "content": "a"}, "got dict as messages"),
        (["hello"], "message 0 is a str"),
        ([CHAT[0], {"role": "bot", "content": "a"}], "message 1 has role 'bot'"),
        ([{"content": "a"}], "message 0 has role None"),
        ([{"role": "user"}], r"message 0 \(user\) has None as content"),
        ([{"role": "user", "content": [1]}], r"message 0 \(user\) has \[1\] as content"),
    ],
)
def test_check_messages_names_the_message(messages: Sequence[Mapping[str, str]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_messages(messages)
