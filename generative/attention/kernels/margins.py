"""What a margin does to the logit of the right class."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Margin"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Margin:
    r"""``scale (cos(theta + angle) - cosine)`` in place of ``scale cos(theta)``.

    Eq. 4 of Deng et al. 2019 (arXiv:1801.07698) with ``m_1 = 1``. Where ``theta + angle`` passes
    pi, the cosine would rise again and push the sample away; there, as in the authors' code,
    ``cos(theta) - angle sin(angle)`` takes its place, which goes on falling.
    """

    scale: float = 1.0
    """s, factor of all logits."""
    angle: float = 0.0
    """m of ArcFace, radians, from 0 to pi."""
    cosine: float = 0.0
    """m of CosFace."""

    def own(self, cosines: Tensor) -> Tensor:
        """Return the right class's logits. Without ``angle`` the argument may be any logit."""
        if self.angle == 0.0:
            return self.scale * (cosines - self.cosine)
        c = cosines.clamp(-1.0, 1.0)
        turned = c * math.cos(self.angle) - (1 - c * c).sqrt() * math.sin(self.angle)
        fallen = c - self.angle * math.sin(self.angle)
        return self.scale * (torch.where(self._passes(c), fallen, turned) - self.cosine)

    def slope(self, cosines: Tensor) -> Tensor:
        """Return the derivative of ``own``.

        Of the turned cosine it is ``sin(theta + angle) / sin(theta)``. It has no bound towards
        theta = 0, where the cosine's own gradient vanishes as fast; it is held finite there.
        """
        if self.angle == 0.0:
            return torch.full_like(cosines, self.scale)
        c = cosines.clamp(-1.0, 1.0)
        sine = (1 - c * c).clamp(min=torch.finfo(c.dtype).eps).sqrt()
        turned = math.cos(self.angle) + math.sin(self.angle) * c / sine
        return self.scale * torch.where(self._passes(c), 1.0, turned)

    def _passes(self, c: Tensor) -> Tensor:
        return c <= math.cos(math.pi - self.angle)
