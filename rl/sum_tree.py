"""A binary tree of sums: draw leaves in proportion to their weights in logarithmic time.

Node i has the children 2i and 2i + 1; node 1 is the root, the leaves begin at ``size``. Every node
is its children's sum, computed anew on each change, so that a tree built from the same leaves in
any order has the same bits. Schaul et al. 2016, arXiv:1511.05952, appendix B.2.1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rl.classic_kernels import compiled

__all__ = ["SumTree", "draw_leaves", "find_leaves", "set_leaves"]


class SumTree:
    """Weights of ``capacity`` leaves, 0 at first.

    >>> tree = SumTree(4)
    >>> tree.set(np.array([0, 2]), np.array([1.0, 3.0]))
    >>> tree.total
    4.0
    >>> tree.find(np.array([0.0, 0.99, 1.0, 3.99]))
    array([0, 0, 2, 2])
    """

    def __init__(self, capacity: int) -> None:
        self.size = 1 << max(0, capacity - 1).bit_length()
        self.nodes = np.zeros(2 * self.size)

    @property
    def total(self) -> float:
        """The sum of all leaves."""
        return float(self.nodes[1])

    def set(self, indices: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
        """Give leaves their weights; of an index that comes twice the last counts."""
        set_leaves(self.nodes, indices, weights)

    def get(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the weights of leaves."""
        return self.nodes[self.size + indices]

    def find(self, points: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the leaf in whose share of [0, total) each point lies; none has weight 0."""
        return find_leaves(self.nodes, points)

    def draw(
        self, uniforms: NDArray[np.float64], count: int, beta: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Draw a leaf from each of B equal parts of the total; see ``draw_leaves``."""
        return draw_leaves(self.nodes, uniforms, count, beta)


@compiled
def set_leaves(
    nodes: NDArray[np.float64], indices: NDArray[np.int64], weights: NDArray[np.float64]
) -> None:
    """Set leaves and every sum above them, in place."""
    size = len(nodes) // 2
    for i in range(len(indices)):
        node = size + indices[i]
        nodes[node] = weights[i]
        node //= 2
        while node:
            nodes[node] = nodes[2 * node] + nodes[2 * node + 1]
            node //= 2


@compiled
def find_leaves(nodes: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Descend from the root for each point."""
    size = len(nodes) // 2
    found = np.empty(len(points), np.int64)
    for i in range(len(points)):
        node, point = 1, points[i]
        while node < size:
            node *= 2
            # Where rounding leads past the last weight, what is to the right has none.
            if point >= nodes[node] and nodes[node + 1] > 0:
                point -= nodes[node]
                node += 1
        found[i] = node - size
    return found


@compiled
def draw_leaves(
    nodes: NDArray[np.float64], uniforms: NDArray[np.float64], count: int, beta: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw a leaf from each of B equal parts of the total, with the weights that undo the bias.

    Args:
        nodes: Of a tree.
        uniforms: ``(B,)`` in [0, 1), places within the parts.
        count: N, leaves that are in use.
        beta: 1 undoes the bias in full, 0 not at all.

    Returns:
        Leaves ``(B,)`` and ``(N P(leaf))^-beta`` ``(B,)``, divided by the largest.
    """
    size, total = len(nodes) // 2, nodes[1]
    parts = np.arange(len(uniforms))
    leaves = find_leaves(nodes, (parts + uniforms) * (total / len(uniforms)))
    weights = (count * (nodes[size + leaves] / total)) ** -beta
    return leaves, (weights / weights.max()).astype(np.float32)
