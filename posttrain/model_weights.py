"""Which tensors a config promises, compared with the stored ones by name and shape.

Written down for the families that the engine computes, and GPT-2, so that a config and weights
that do not belong together are found without importing transformers. Other families are compared
when they are loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["describe_misfit", "find_misfit", "harmless"]

Shape = Sequence[int | None]

_HARMLESS = re.compile(r"(rotary_emb\.\w+|\.attn\.(masked_)?bias|position_ids)$")
_QUERIES = "num_attention_heads*head_dim"
_KEYS = "num_key_value_heads*head_dim"
_HEADS = ("hidden_size", "num_attention_heads", "num_key_value_heads")


@dataclass(frozen=True, slots=True)
class _Family:
    """Names and shapes, each axis in the config's own words; ``layer`` is repeated."""

    prefix: str
    layers: str
    count: str
    outer: dict[str, str]
    layer: dict[str, str]


_LLAMA = {
    "input_layernorm.weight": "hidden_size",
    "self_attn.q_proj.weight": f"{_QUERIES} hidden_size",
    "self_attn.k_proj.weight": f"{_KEYS} hidden_size",
    "self_attn.v_proj.weight": f"{_KEYS} hidden_size",
    "self_attn.o_proj.weight": f"hidden_size {_QUERIES}",
    "post_attention_layernorm.weight": "hidden_size",
    "mlp.gate_proj.weight": "intermediate_size hidden_size",
    "mlp.up_proj.weight": "intermediate_size hidden_size",
    "mlp.down_proj.weight": "hidden_size intermediate_size",
}
_QKV_BIAS = {
    "self_attn.q_proj.bias": _QUERIES,
    "self_attn.k_proj.bias": _KEYS,
    "self_attn.v_proj.bias": _KEYS,
}
_OUTPUT_BIAS = {"self_attn.o_proj.bias": "hidden_size"}
_MLP_BIAS = {
    "mlp.gate_proj.bias": "intermediate_size",
    "mlp.up_proj.bias": "intermediate_size",
    "mlp.down_proj.bias": "hidden_size",
}
_QK_NORM = {"self_attn.q_norm.weight": "head_dim", "self_attn.k_norm.weight": "head_dim"}
_GPT2 = _Family(
    prefix="transformer.",
    layers="h",
    count="n_layer",
    outer={
        "wte.weight": "vocab_size n_embd",
        "wpe.weight": "n_positions n_embd",
        "ln_f.weight": "n_embd",
        "ln_f.bias": "n_embd",
    },
    layer={
        "ln_1.weight": "n_embd",
        "ln_1.bias": "n_embd",
        "attn.c_attn.weight": "n_embd 3*n_embd",
        "attn.c_attn.bias": "3*n_embd",
        "attn.c_proj.weight": "n_embd n_embd",
        "attn.c_proj.bias": "n_embd",
        "ln_2.weight": "n_embd",
        "ln_2.bias": "n_embd",
        "mlp.c_fc.weight": "n_embd n_inner",
        "mlp.c_fc.bias": "n_inner",
        "mlp.c_proj.weight": "n_inner n_embd",
        "mlp.c_proj.bias": "n_embd",
    },
)
_CLASSES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "MistralForCausalLM": "mistral",
    "GPT2LMHeadModel": "gpt2",
}


def find_misfit(config: Mapping[str, object], stored: Mapping[str, Shape]) -> str | None:
    """Say how stored tensors differ from what a config promises, or None where they fit.

    Args:
        config: As in ``config.json``. What it leaves out promises nothing.
        stored: The shape of each tensor.
    """
    kind = config.get("model_type")
    family = _family(config)
    if family is None:
        classes = config.get("architectures")
        for name in classes if isinstance(classes, list) else ():
            if isinstance(name, str) and name in _CLASSES and kind not in _CLASSES.values():
                return f"{name} has model_type {_CLASSES[name]!r}, but the config says {kind!r}"
        return None
    stored = _full_names(family, stored)
    sizes = _sizes(config)
    held = _layers(family, stored)
    promised = sizes.get(family.count)
    axes = _promised(family, held if promised is None else min(promised, held + 1))
    optional = "lm_head.weight" if config.get("tie_word_embeddings") is not False else ""
    missing = [name for name in axes if name not in stored and name != optional]
    unexpected = sorted(name for name in stored if name not in axes and not harmless(name))
    wrong = []
    for name, words in axes.items():
        wanted = [sizes.get(word) for word in words.split()]
        shape = list(stored.get(name, wanted))
        if len(shape) != len(wanted) or any(
            b is not None and a != b for a, b in zip(shape, wanted, strict=True)
        ):
            wrong.append((f"{name} ({words.replace(' ', ' x ')})", shape, wanted))
    said = describe_misfit(missing, unexpected, wrong)
    if said and held and promised is not None and promised != held:
        said = f"{held} layers are stored, but {family.count} is {promised}; {said}"
    return said


def describe_misfit(
    missing: Sequence[str],
    unexpected: Sequence[str],
    wrong: Sequence[tuple[str, Shape, Shape]],
) -> str | None:
    """Say in a part of one line what does not fit, or None where all three are empty.

    Args:
        missing: Promised, but not stored.
        unexpected: Stored, but not promised.
        wrong: Names with the stored shape and the promised one.

    >>> describe_misfit(["b", "c"], [], [("a", [2], [3])])
    'a has shape [2], promised is [3]; missing: b and 1 more'
    """
    parts = []
    if wrong:
        name, shape, wanted = wrong[0]
        said = ", ".join("any" if size is None else str(size) for size in wanted)
        more = f" ({len(wrong) - 1} more such)" if len(wrong) > 1 else ""
        parts.append(f"{name} has shape {list(shape)}, promised is [{said}]{more}")
    for title, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            parts.append(f"{title}: {names[0]}{more}")
    return "; ".join(parts) or None


def harmless(name: str) -> bool:
    """Whether a stored tensor is a buffer that models compute anew, such as rotary frequencies."""
    return _HARMLESS.search(name) is not None


def _family(config: Mapping[str, object]) -> _Family | None:
    """Return the tensors of a config's family, or None where they are not written down here."""
    if config.get("quantization_config"):
        return None  # its tensors have names and shapes of their own
    kind = config.get("model_type")
    if kind == "gpt2":
        return None if config.get("add_cross_attention") else _GPT2
    biased = bool(config.get("attention_bias"))
    if kind == "llama":
        more = _QKV_BIAS | _OUTPUT_BIAS if biased else {}
        more |= _MLP_BIAS if config.get("mlp_bias") else {}
    elif kind == "qwen2":
        more = _QKV_BIAS
    elif kind == "qwen3":
        more = _QK_NORM | (_QKV_BIAS | _OUTPUT_BIAS if biased else {})
    elif kind == "mistral":
        more = {}
    else:
        return None
    outer = {"embed_tokens.weight": "vocab_size hidden_size", "norm.weight": "hidden_size"}
    return _Family("model.", "layers", "num_hidden_layers", outer, _LLAMA | more)


def _promised(family: _Family, layers: int) -> dict[str, str]:
    """Return every promised tensor with its axes, ``lm_head`` always among them."""
    width = "n_embd" if family is _GPT2 else "hidden_size"
    axes = {family.prefix + name: words for name, words in family.outer.items()}
    axes["lm_head.weight"] = f"vocab_size {width}"
    for index in range(layers):
        for name, words in family.layer.items():
            axes[f"{family.prefix}{family.layers}.{index}.{name}"] = words
    return axes


def _full_names(family: _Family, stored: Mapping[str, Shape]) -> dict[str, Shape]:
    """Name the tensors of a model that was saved without its head as within one with a head."""
    if next(iter(family.outer)) not in stored:
        return dict(stored)
    return {
        name if name.startswith((family.prefix, "lm_head.")) else family.prefix + name: shape
        for name, shape in stored.items()
    }


def _layers(family: _Family, stored: Mapping[str, Shape]) -> int:
    pattern = re.compile(re.escape(f"{family.prefix}{family.layers}.") + r"(\d{1,6})\.")
    found = [match for name in stored if (match := pattern.match(name))]
    return 1 + max((int(match[1]) for match in found), default=-1)


def _sizes(config: Mapping[str, object]) -> dict[str, int | None]:
    """Return what each axis measures, as far as the config says it."""
    known = {k: v for k, v in config.items() if isinstance(v, int) and not isinstance(v, bool)}
    sizes: dict[str, int | None] = dict(known)
    width, heads, keys = (known.get(name) for name in _HEADS)
    if "num_key_value_heads" in config and config["num_key_value_heads"] is None:
        keys = heads
    size = known.get("head_dim")
    derives = config.get("model_type") != "qwen3"  # its heads have 128 features unless it says
    if size is None and derives and width is not None and heads:
        size = width // heads
    sizes["head_dim"] = size
    sizes[_QUERIES] = None if size is None or heads is None else heads * size
    sizes[_KEYS] = None if size is None or keys is None else keys * size
    if "n_embd" in known:
        sizes["3*n_embd"] = 3 * known["n_embd"]
        sizes["n_inner"] = known.get("n_inner", 4 * known["n_embd"])
    return sizes
