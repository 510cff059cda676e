"""A small network's forward pass in numpy, on the very memory of its parameters.

For a handful of observations torch spends most of its time on the way to the matrix product. The
readable twin is ``network(observations)`` under ``no_grad``; tests hold them equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from rl.encoders import OneHot, Vector
from rl.layers import NoisyLinear
from rl.networks import Network
from rl.observations import map_tensors, to_tensors
from rl.spaces import Observations

__all__ = ["Forward"]

# OpenBLAS multiplies with one thread up to this many multiplications; beyond, its threads would
# contend with torch's for the cores.
LARGEST_PRODUCT = 262_144


class Forward:
    """Computes ``network(observations)`` for arrays, without gradients.

    In numpy for vectors and one-hots through linear layers of float32 on the CPU, as long as the
    batch is small; in torch, on the network's device, for all else. The weights are viewed, not
    copied: an optimizer's step, ``load_state_dict`` and ``.to`` are seen at once. Noisy layers
    act by their means.

    >>> layer = nn.utils.skip_init(nn.Linear, 2, 1)
    >>> _ = layer.weight.data.fill_(1.0), layer.bias.data.fill_(0.5)
    >>> network = Network(Vector((2,)), nn.Sequential(), layer, config=None)
    >>> Forward(network)(np.array([[1.0, 2.0]], np.float32))
    array([[3.5]], dtype=float32)
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._noisy = [m for m in network.modules() if isinstance(m, NoisyLinear)]
        self._layers = _linear_layers(network)
        linear = [m for m in self._layers or [] if isinstance(m, nn.Linear | NoisyLinear)]
        self._pointers: list[int] = []
        self._views: list[tuple[np.ndarray | None, np.ndarray | None, nn.Module]] = []
        encoder = getattr(network, "encoder", None)
        self._encoder = encoder if isinstance(encoder, OneHot | Vector) else None
        # nn.Module's own dicts: by way of its attributes, looking would cost as much as computing.
        self._parameters = [layer._parameters for layer in linear]
        self._largest = max((layer.weight.numel() for layer in linear), default=0)

    def __call__(self, observations: Observations) -> np.ndarray:
        """Return the outputs, ``(B, ...)`` float32."""
        if (
            self._layers is not None
            and isinstance(observations, np.ndarray)
            and len(observations) * self._largest <= LARGEST_PRODUCT
            and self._fresh()
        ):
            return self._in_numpy(observations)
        return self._in_torch(observations)

    def _fresh(self) -> bool:
        """View the parameters anew if they have moved; False where numpy cannot see them."""
        weights = [named[name] for named in self._parameters for name in ("weight", "bias")]
        pointers = [p.data_ptr() for p in weights]  # type: ignore[union-attr]  # no None among them
        if pointers != self._pointers:
            dtypes = {(p.device.type, p.dtype) for p in self.network.parameters()}
            seen = dtypes == {("cpu", torch.float32)}
            self._pointers = pointers
            self._views = [_view(layer) for layer in self._layers or []] if seen else []
        return bool(self._views)

    def _in_numpy(self, x: np.ndarray) -> np.ndarray:
        encoder = self._encoder
        if x.ndim != 2:
            x = x.reshape(len(x), math.prod(x.shape[1:]))
        if isinstance(encoder, OneHot):
            x = x[:, encoder.column.numpy()] == encoder.value.numpy()
        if x.dtype != np.float32:
            x = x.astype(np.float32)
        for weight, bias, layer in self._views:
            if weight is not None:
                x = x @ weight + bias
            elif isinstance(layer, nn.Tanh):
                x = np.tanh(x)
            elif isinstance(layer, nn.ReLU):
                x = np.maximum(x, 0.0)
            else:
                x = x.reshape(len(x), *layer.unflattened_size)  # type: ignore[misc]  # sizes, of nn.Unflatten
        return x

    def _in_torch(self, observations: Observations) -> np.ndarray:
        tensors = to_tensors(observations)
        device = next((p.device for p in self.network.parameters()), torch.device("cpu"))
        if device.type != "cpu":
            tensors = map_tensors(lambda x: x.to(device), tensors)
        modes = [layer.training for layer in self._noisy]
        for layer in self._noisy:
            layer.training = False
        try:
            with torch.no_grad():
                outputs: Tensor = self.network(tensors)
        finally:
            for layer, mode in zip(self._noisy, modes, strict=True):
                layer.training = mode
        return outputs.float().cpu().numpy()


def _linear_layers(network: nn.Module) -> list[nn.Module] | None:
    """Return the layers after the encoder in their order, or None if numpy does not know one."""
    if type(network) is not Network or not isinstance(network.encoder, Vector | OneHot):
        return None
    layers = [*_flat(network.body), *_flat(network.head)]
    return layers if all(map(_is_known, layers)) else None


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.Sequential):
        for part in module:
            yield from _flat(part)
    else:
        yield module


def _is_known(layer: nn.Module) -> bool:
    if type(layer) is nn.Linear:
        return layer.bias is not None
    return type(layer) in (NoisyLinear, nn.Tanh, nn.ReLU, nn.Unflatten)


def _view(layer: nn.Module) -> tuple[np.ndarray | None, np.ndarray | None, nn.Module]:
    """Return weight and bias of a linear layer; a noisy one acts by its means."""
    if isinstance(layer, nn.Linear | NoisyLinear):
        return layer.weight.detach().numpy().T, layer.bias.detach().numpy(), layer
    return None, None, layer
