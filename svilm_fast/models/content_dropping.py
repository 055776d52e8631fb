"""Token dropping that looks at the pixels: frame differences, and clusters of look-alikes.

Everything is counted in whole numbers, so that no order of summation and no device changes a
selection.
"""

from __future__ import annotations

import math

import torch
from einops import reduce
from torch import Tensor

Grid = tuple[int, int, int]

# Weight of a token without any change, in units of the clip's mean change.
STILL = 0.1


def motion_scores(frames: Tensor, grid: Grid, drawn: Tensor) -> Tensor:
    """Return scores for `motion`: the smallest ones are a weighted draw without replacement.

    A token's weight is its mean absolute change to the frame before, plus a tenth of the clip's
    mean change; the first frame takes the change to the second. A still clip is drawn from
    uniformly. Method: exponential races (Efraimidis and Spirakis, 2006).

    Args:
        frames: uint8 [b, F, H, W, 3].
        grid: token positions along time, height and width.
        drawn: float64 [b, L] in [0, 1).

    Returns:
        float64 [b, L].
    """
    weights = motion_weights(frames, grid)
    return -torch.log1p(-drawn) / weights


def motion_weights(frames: Tensor, grid: Grid) -> Tensor:
    """Weights float64 [b, L] of the draw of `motion_scores`, positive, of any scale."""
    _, height, width = grid
    earlier, later = frames[:, :-1], frames[:, 1:]
    change = torch.maximum(earlier, later) - torch.minimum(earlier, later)
    moved = reduce(change, "b f (h p) (w q) c -> b f (h w)", "sum", h=height, w=width)
    first = moved[:, :1] if moved.shape[1] else moved.new_zeros(len(moved), 1, height * width)
    moved = reduce(torch.cat([first, moved], 1), "b (t u) p -> b (t p)", "sum", t=grid[0]).double()
    # A clip without any change has equal weights.
    return moved + STILL * moved.mean(1, keepdim=True) + (moved.amax(1, keepdim=True) == 0)


def cluster_kept(
    frames: Tensor,
    grid: Grid,
    drawn: Tensor,
    drawn_times: Tensor,
    counts: Tensor,
    most: int,
) -> Tensor:
    """Return which tokens `cluster` keeps: one of each cluster of a time, counts[i] of clip i.

    After ClusterSTM (arXiv 2603.22953), as far as its abstract tells: the tokens of a time are
    partitioned into as many clusters as tokens stay, and each keeps the token with the highest
    temporal density. Ours is in pixel space, as it comes before the embedding: a token is the mean
    colours of its quadrants; the centres are drawn far from each other (k-means++); the density is
    the likeness to the most similar tokens of the times before and after.

    Args:
        frames: uint8 [b, F, H, W, 3].
        grid: token positions along time, height and width.
        drawn: float64 [b, L] in [0, 1).
        drawn_times: float64 [b, T] in [0, 1), for the times that keep one token more than others.
        counts: int64 [b].
        most: no count is above it.

    Returns:
        bool [b, L].
    """
    time, height, width = grid
    looks = _looks(frames, grid)
    drawn = drawn.unflatten(1, (time, height * width))
    share = counts[:, None] // time
    clusters = share + (drawn_times.argsort(dim=1).argsort(dim=1) < counts[:, None] - share * time)
    members = _clusters(looks, -torch.log1p(-drawn), clusters, -(-most // time))
    # Tokens of equal density come in drawn order.
    order = drawn.argsort(-1)
    order = order.gather(-1, _density(looks).gather(-1, order).argsort(dim=-1, stable=True))
    places = torch.arange(height * width, device=frames.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, places)
    # The last column collects the times that keep nothing.
    best = rank.new_full((*rank.shape[:2], height * width + 1), -1)
    best.scatter_reduce_(-1, members, rank, "amax")
    best[..., -1] = -1
    return (best.gather(-1, members) == rank).flatten(1)


def _clusters(looks: Tensor, exponential: Tensor, clusters: Tensor, most: int) -> Tensor:
    """The cluster of every token, int64 [b, T, P]; P where a time has no cluster.

    No cluster is empty: its centre belongs to it.

    Args:
        looks: float64 [b, T, P, d], whole numbers.
        exponential: float64 [b, T, P], exponential numbers for the draw of the centres.
        clusters: int64 [b, T], clusters of a time.
        most: no number of clusters is above it.
    """
    places = looks.shape[2]
    nearest = torch.full_like(exponential, torch.inf)
    members = torch.full(exponential.shape, places, device=looks.device)
    is_centre = torch.zeros_like(members, dtype=torch.bool)
    race = exponential
    for number in range(most):
        race = race.masked_fill(is_centre, torch.inf)
        centre = race.argmin(-1, keepdim=True)
        distance = looks - looks.gather(2, centre[..., None].expand(-1, -1, -1, looks.shape[3]))
        distance = distance.square().sum(-1)
        active = (number < clusters)[..., None]
        here = torch.zeros_like(is_centre).scatter_(-1, centre, True) & active
        closer = ((distance < nearest) & active & ~is_centre) | here
        members = members.masked_fill(closer, number)
        nearest = torch.where(closer, distance, nearest)
        is_centre = is_centre | here
        # One more than the distance, so that look-alikes of a centre can be drawn last.
        race = exponential / (nearest + 1)
    return members


def _density(looks: Tensor) -> Tensor:
    """Minus the mean squared distance to the nearest tokens of both neighbouring times [b, T, P].

    The first and the last time have one neighbour; a single time has none, and equal densities.
    """
    total = looks.new_zeros(looks.shape[:-1])
    squares = looks.square().sum(-1)
    # One pair of times after the other: [b, P, P] for all of them would be large.
    for time in range(1, looks.shape[1]):
        earlier, later = looks[:, time - 1], looks[:, time]
        # float64 is outside autocast, and exact here.
        distance = squares[:, time, :, None] + squares[:, time - 1, None, :]
        distance = distance - 2 * later @ earlier.mT
        total[:, time] += distance.amin(-1)
        total[:, time - 1] += distance.amin(-2)
    neighbours = torch.full_like(total[:1, :, :1], 2)
    neighbours[:, [0, -1]] = 1
    return -total / neighbours


def _looks(frames: Tensor, grid: Grid) -> Tensor:
    """Mean colours of the quadrants of every token, float64 [b, T, P, 12], whole numbers.

    A token with an odd side is not divided: [b, T, P, 3].
    """
    time, height, width = grid
    parts = 1 if frames.shape[2] // height % 2 else 2
    sizes = {"t": time, "h": height, "w": width, "s": parts, "r": parts}
    sums = reduce(frames, "b (t u) (h s p) (w r q) c -> b t (h w) (s r c)", "sum", **sizes)
    pixels = frames[0].numel() // (math.prod(grid) * sums.shape[-1])
    return (sums // pixels).double()
