"""What a model sees in a few clips: groups of tokens, nouns, segments; as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClipProbe:
    """One clip, read by a model in evaluation mode; every picture of a clip is drawn from this.

    frames: uint8 [F, H, W, 3]; groups: int [P, h, w], the group of each token after the last
    grouping block (-1 where a token was dropped), or None for a model without groups; nouns: the
    texts of K nouns; noun_weights: float [K, G], softmax over the groups (rows sum to 1).
    clean: float [T, T] cosine similarity of the segments; blended, own: uint8 [F, H, W, 3] and bool
    [T] of the cut-and-pasted clip and its paste mask (True: own content); assignment: float [T, 2],
    probabilities of (own, pasted); blended_similarity: as `clean`, of the blended clip.
    """

    name: str
    caption: str
    frames: np.ndarray
    groups: np.ndarray | None
    num_groups: int
    nouns: tuple[str, ...]
    noun_weights: np.ndarray
    clean: np.ndarray
    blended: np.ndarray | None = None
    own: np.ndarray | None = None
    assignment: np.ndarray | None = None
    blended_similarity: np.ndarray | None = None
    untrained_similarity: np.ndarray | None = None
