"""Small random language models, a word-level tokenizer and random text, for both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerFast

__all__ = ["SHAPES", "WORDS", "build", "corpus", "prompts", "tokenizer"]

SHAPES = {
    "0.35m": {
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 256,
    },
    "5m": {
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 768,
    },
}
WORDS = [str(d) for d in range(10)] + list("+-*=?.,:()") + list("abcdefghijklmnopqrstuvwxyz")
VOCABULARY = 512


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 512 words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<eos>", "<unk>", *WORDS]
    words += [f"w{i}" for i in range(VOCABULARY - len(words))]
    t = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=t,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )


def build(shape: str, seed: int = 0) -> nn.Module:
    """Return a Qwen2 with random weights and tied embeddings."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **SHAPES[shape],
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def prompts(count: int, words: int, seed: int = 0) -> list[str]:
    """Return texts of exactly ``words`` tokens."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, len(WORDS), (count, words), generator=g).tolist()
    return [" ".join(WORDS[i] for i in row) for row in rows]


def corpus(count: int, low: int = 8, high: int = 64, seed: int = 0) -> list[str]:
    """Return documents whose lengths are uniform between ``low`` and ``high`` tokens."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high + 1, (count,), generator=g).tolist()
    return [
        " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (n,), generator=g).tolist())
        for n in lengths
    ]
