"""Chats as tokens: the template, the roles, and which tokens are the assistant's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from launch.errors import UsageError
from posttrain.data.packing import Document
from posttrain.data.tasks.base import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "CHAT_TEMPLATE",
    "CHAT_TOKENS",
    "ROLES",
    "check_messages",
    "encode_chat",
    "encode_chats",
    "encode_prompt",
    "encode_turns",
]

Message = Mapping[str, str]

ROLES = ("system", "user", "assistant", "tool")
CHAT_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
"""The special tokens that ``CHAT_TEMPLATE`` needs; ``<|end|>`` stops the assistant."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('this template has no role ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""A minimal template, for models made from nothing: ``<|user|>2+2?<|end|><|assistant|>4<|end|>``"""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Document:
    """Return a chat as one document, its mask True on what the assistant writes.

    That is each assistant message and the token that ends it, but neither the header before it
    nor whitespace after the end token, which the model is never asked for. Each turn stands after
    exactly the tokens that ``encode_prompt`` would give for the messages before it.

    Args:
        tokenizer: Any with a chat template. A template that marks the assistant's part with
            ``{% generation %}`` is taken at its word.
        messages: With ``role`` (one of ``ROLES``) and ``content``.

    Raises:
        ValueError: A message is malformed, there is no chat template, or the template writes
            earlier turns differently once later ones follow, as Qwen3's drops their thoughts: then
            no one sequence holds what the model saw at every turn; use ``encode_turns``.
    """
    check_messages(messages)
    text = _render(tokenizer, messages)
    if _GENERATION.search(_template(tokenizer)):
        return _encode_marked(tokenizer, messages)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            start, stop = _turn(tokenizer, messages[: index + 1])
            if not text.startswith(stop):
                raise ValueError(
                    f"the chat template writes message {index} (assistant) differently once later "
                    "messages follow it, for example without its thoughts: no one sequence holds "
                    "what the model saw at every turn. encode_turns gives a document for each turn"
                )
            spans.append((len(start), len(stop)))
    return _encode_spans(tokenizer, text, spans)


def encode_turns(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[Document]:
    """Return a document for each assistant turn, as the model sees it when it writes that turn.

    Only the last turn of each document counts. This holds for every template, at the price of
    repeating the turns before.
    """
    check_messages(messages)
    documents = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            start, stop = _turn(tokenizer, messages[: index + 1])
            documents.append(_encode_spans(tokenizer, stop, [(len(start), len(stop))]))
    return documents


def encode_chats(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Sequence[Message]]
) -> list[Document]:
    """Return ``encode_chat`` of each chat, or ``encode_turns`` where its template asks for that."""
    documents = []
    for messages in chats:
        if _rewrites(tokenizer, messages):
            documents += encode_turns(tokenizer, messages)
        else:
            documents.append(encode_chat(tokenizer, messages))
    return documents


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Return the tokens that the model continues.

    Messages go through the chat template, up to where the assistant begins. Text is encoded as it
    is, with a beginning-of-sequence token only if the tokenizer adds one by itself.

    Raises:
        ValueError: The prompt has no tokens, a message is malformed, or there is no template.
    """
    if prompt.messages is not None:
        check_messages(prompt.messages)
        tokens = _encode(tokenizer, _render(tokenizer, prompt.messages, turn=True))
    else:
        text = prompt.text or ""
        tokens = _encode(tokenizer, text)
        first = tokenizer.bos_token_id
        if first is not None and _encode(tokenizer, text, special=True)[:1] == [first]:
            tokens = tokens if tokens[:1] == [first] else [first, *tokens]
    if not tokens:
        raise ValueError("the prompt has no tokens: a model needs at least one to continue")
    return tokens


def check_messages(messages: Sequence[Message]) -> None:
    """Raise ValueError unless every message has a known role and text as content.

    >>> check_messages([{"role": "usr", "content": "hi"}])
    Traceback (most recent call last):
        ...
    ValueError: message 0 has role 'usr', expected one of system, user, assistant, tool
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise ValueError(f"got {type(messages).__name__} as messages, expected a list of them")
    if not messages:
        raise ValueError("a chat without messages: it needs at least one")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(
                f"message {index} is a {type(message).__name__}, expected a mapping with role and "
                "content"
            )
        if message.get("role") not in ROLES:
            raise ValueError(
                f"message {index} has role {message.get('role')!r}, expected one of "
                f"{', '.join(ROLES)}"
            )
        if not isinstance(message.get("content"), str):
            raise ValueError(
                f"message {index} ({message['role']}) has {message.get('content')!r} as content, "
                "expected text"
            )


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except (ValueError, AttributeError) as error:
        raise UsageError(
            "the tokenizer has no chat template, so a chat cannot be written as tokens: use a chat "
            "model's tokenizer, set tokenizer.chat_template (posttrain.data.chat.CHAT_TEMPLATE is "
            "a minimal one), or give the prompt as text"
        ) from error


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, turn: bool = False
) -> str:
    """Write messages as text; ``turn`` adds what comes before the assistant's next turn."""
    _template(tokenizer)
    plain: list[dict[str, Any]] = [dict(message) for message in messages]
    try:
        text = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=turn)
    except Exception as error:  # a template raises what it likes about roles and their order
        reason = " ".join(str(error).split())
        roles = ", ".join(message["role"] for message in messages) or "none"
        raise ValueError(
            f"the chat template refuses the roles {roles}: {type(error).__name__}: {reason}"
        ) from error
    return str(text)


def _turn(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[str, str]:
    """Return the text before the last message, which is the assistant's, and after it."""
    stop = _render(tokenizer, messages)
    if len(messages) > 1:
        start = _render(tokenizer, messages[:-1], turn=True)
    else:
        start = _opening(tokenizer, messages[0])
    if not stop.startswith(start) or _dense(messages[-1]["content"]) not in _dense(
        stop[len(start) :]
    ):
        raise ValueError(
            f"the chat template does not write message {len(messages) - 1} (assistant) as its "
            "content after the header with which the model would begin that turn; it changes or "
            "drops a part, such as the thoughts. Set tokenizer.chat_template to one that keeps it"
        )
    return start, stop


def _opening(tokenizer: PreTrainedTokenizerBase, message: Message) -> str:
    """Return the text before an assistant's message that opens its chat.

    Templates take no empty chat, so it is read off two chats that differ in their content alone:
    all that they share up to the header of an assistant's turn, as it stands after a user's.
    """
    one, other = (_render(tokenizer, [{**message, "content": text}]) for text in ("x", "y"))
    differ = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    shared = one[: next(differ, len(one))]
    asked = [{"role": "user", "content": "x"}]
    header = _render(tokenizer, asked, turn=True).removeprefix(_render(tokenizer, asked))
    return shared[: shared.rfind(header) + len(header)] if header in shared else shared


def _dense(text: str) -> str:
    """Return ``text`` without whitespace, which templates trim and add."""
    return "".join(text.split())


def _rewrites(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> bool:
    """Tell whether an earlier assistant turn reads differently once later messages follow."""
    check_messages(messages)
    text = _render(tokenizer, messages)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    return any(not text.startswith(_render(tokenizer, messages[: i + 1])) for i in turns[:-1])


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=special))


def _encode_spans(
    tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[tuple[int, int]]
) -> Document:
    """Encode ``text`` so that tokens end where spans begin and end, True inside of the spans.

    Where the whole text's own tokens do not, as when a header's last space would be merged into
    the answer's first word, the pieces are encoded apart, as they are when a model generates.
    """
    cuts = [0, *(cut for span in spans for cut in span), len(text)]
    whole = _encode(tokenizer, text)
    heads = [_encode(tokenizer, text[:cut]) for cut in cuts]
    if all(whole[: len(head)] == head for head in heads):
        places = [len(head) for head in heads]
        pieces = [whole[i:j] for i, j in pairwise(places)]
    else:
        pieces = [_encode(tokenizer, text[i:j]) for i, j in pairwise(cuts)]
    mask: list[bool] = []
    for index, piece in enumerate(pieces):
        counted = _until_end(tokenizer, piece) if index % 2 else 0
        mask += [True] * counted + [False] * (len(piece) - counted)
    return Document([token for piece in pieces for token in piece], mask)


def _until_end(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> int:
    """Return how many tokens there are up to the last special one, if only space is behind it."""
    special = _special_ids(tokenizer)
    last = max((i for i, token in enumerate(tokens) if token in special), default=None)
    if last is None or str(tokenizer.decode(list(tokens[last + 1 :]))).strip():
        return len(tokens)
    return last + 1


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added = tokenizer.added_tokens_decoder.items()
    return set(tokenizer.all_special_ids) | {index for index, token in added if token.special}


def _encode_marked(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Document:
    """Encode with the template's own marks, and the end token if it stands just behind them."""
    plain: list[dict[str, Any]] = [dict(message) for message in messages]
    encoded = tokenizer.apply_chat_template(
        plain, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    tokens = [int(token) for token in encoded["input_ids"]]
    mask = [bool(mark) for mark in encoded["assistant_masks"]]
    special = _special_ids(tokenizer)
    for index in range(1, len(tokens)):
        inside = mask[index - 1] and tokens[index - 1] not in special
        if inside and not mask[index] and tokens[index] in special:
            mask[index] = True
    return Document(tokens, mask)
