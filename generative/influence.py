"""Which earlier tokens a prediction rests on, for any mixer."""

from __future__ import annotations

import torch
from torch import Tensor

from generative.attention.decoder_lm import DecoderLM

__all__ = ["influence"]


def influence(model: DecoderLM, tokens: Tensor) -> Tensor:
    r"""Return how much each prediction would change with each token's embedding.

        a_ts = |d log p(token_{t+1} | tokens up to t) / d embedding_s|_2,    rows divided by sums

    Attention has weights to look at, linear attention and gated units have others, and all of them
    pass through several layers; a gradient means the same for each (saliency, Simonyan et al. 2013,
    arXiv:1312.6034).

    Args:
        model: A decoder; its parameters get no gradients.
        tokens: ``(T + 1,)`` int64.

    Returns:
        ``(T, T)``, rows sum to 1 (or are 0 where nothing has any influence); 0 above the diagonal.
    """
    embedded: list[Tensor] = []

    def cut(module: object, inputs: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    hook = model.embedding.register_forward_hook(cut)
    try:
        with torch.enable_grad():
            log_probs = torch.log_softmax(model(tokens[None, :-1])[0].float(), -1)
    finally:
        hook.remove()
    chosen = log_probs.gather(1, tokens[1:, None])[:, 0]
    rows = [torch.autograd.grad(x, embedded[0], retain_graph=True)[0][0] for x in chosen]
    norms = torch.stack(rows).float().norm(dim=-1)
    return norms / norms.sum(-1, keepdim=True).clamp(min=torch.finfo(norms.dtype).tiny)
