"""Short common words, of which several tasks make their texts, so that a tokenizer can be small."""

from __future__ import annotations

__all__ = ["ADJECTIVES", "NAMES", "THINGS"]

NAMES = (
    *("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Ida", "Jack", "Mary"),
    "Paul",
)
ADJECTIVES = (
    *("red", "blue", "green", "white", "black", "old", "new", "small", "large", "round", "long"),
    "warm",
)
THINGS = (
    *("stone", "tree", "fish", "lamp", "kite", "boat", "book", "coin", "drum", "bell", "cup"),
    *("hat", "key", "map", "ring", "rope", "shoe", "sock", "spoon", "star", "table", "chair"),
    *("door", "wheel", "box", "clock", "shirt", "flag", "knife", "plate", "bag", "ball", "bed"),
    *("bike", "brush", "cart", "coat", "comb", "desk", "doll"),
)
