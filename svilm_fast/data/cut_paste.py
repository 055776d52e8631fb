"""Cut-and-paste of clips in time, as S-ViLM makes its blended videos (section 1.2(a))."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from svilm_fast.core.philox import uniform
from svilm_fast.data.config import run_lengths

# Even, because classes are pairs.
CLIPS_AT_ONCE = 64


@dataclass(frozen=True)
class CutPaste:
    """Blended clips and what is whose."""

    blended: Tensor  # uint8 [b, F, H, W, 3]
    paste_mask: Tensor  # bool [b, T], True where the segment is the sample's own (foreground)
    partner: Tensor  # int64 [b], the sample whose frames are the background
    pair_ids: Tensor  # int64 [b], equal for samples that share frames


def pair_up(seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Partners and pairing classes of a batch.

    The samples are sorted by a random number of their own and neighbours become partners of each
    other. An odd batch has one class of three, where each takes the next one's frames; a lone
    sample is its own partner. The pairs depend on the samples, not on their order in the batch.

    Args:
        seeds: int64 [b].

    Returns:
        partner int64 [b] and pair_ids int64 [b].
    """
    count = len(seeds)
    by_seed = torch.argsort(seeds, stable=True)
    numbers = uniform(seeds, torch.zeros(1, dtype=torch.int64, device=seeds.device))[:, 0]
    order = by_seed[torch.argsort(numbers[by_seed], stable=True)]
    places = torch.arange(count, device=seeds.device)
    following = torch.where(places % 2 == 0, places + 1, places - 1)
    classes = places // 2
    if count % 2 and count > 1:
        following[-3:] = torch.tensor([count - 2, count - 1, count - 3], device=seeds.device)
        classes[-1] = classes[-2]
    elif count == 1:
        following = places
    partner = torch.empty_like(order)
    pair_ids = torch.empty_like(order)
    partner[order] = order[following]
    pair_ids[order] = classes
    return partner, pair_ids


def foreground(
    seeds: Tensor, num_segments: int, *, shortest: float = 0.5, longest: float = 1.0
) -> Tensor:
    """Which segments stay a sample's own: a run of uniform length at a uniform place.

    The length is U{ceil(shortest T), ..., min(floor(longest T), T - 1)}, and at least 1.

    Args:
        seeds: int64 [b].
        num_segments: T, at least 2.
        shortest, longest: bounds of the length as shares of T.

    Returns:
        bool [b, T]; every row has at least one True and one False.
    """
    counters = torch.arange(1, 3, device=seeds.device)  # number 0 pairs the samples
    numbers = uniform(seeds, counters)
    least, most = run_lengths(num_segments, shortest, longest)
    choices = most - least + 1
    length = least + (numbers[:, 0] * choices).long().clamp(max=choices - 1)
    starts = num_segments - length + 1
    start = torch.minimum((numbers[:, 1] * starts).long(), starts - 1)
    segment = torch.arange(num_segments, device=seeds.device)
    return (segment >= start[:, None]) & (segment < (start + length)[:, None])


def cut_and_paste(
    frames: Tensor,
    seeds: Tensor,
    num_segments: int,
    frames_per_position: int = 1,
    *,
    shortest: float = 0.5,
    longest: float = 1.0,
    in_place: bool = False,
) -> CutPaste:
    """Keep a run of each clip's segments and fill the others with its partner's frames.

    Frames stay at their place in time: blended_i[f] = frames_i[f] where the mask of i is True at
    f's segment, else frames_partner(i)[f].

    Args:
        frames: uint8 [b, F, H, W, 3] (any dtype works).
        seeds: int64 [b], `StepSeeds.at(Site.CUT_PASTE)`.
        num_segments: T; it divides the F / frames_per_position temporal positions.
        frames_per_position: frames that one temporal position of the encoder spans.
        shortest, longest: length of the run that stays, as shares of T; see `foreground`.
        in_place: write the blended clips over `frames`, at the memory of some clips instead of all.

    Returns:
        CutPaste. A batch of one stays as it is, its mask all True.

    Raises:
        ValueError: T below 2, T does not divide the temporal positions, or no run is so long.
    """
    count, length = frames.shape[:2]
    if seeds.shape != (count,):
        raise ValueError(f"seeds must have shape ({count},), got {tuple(seeds.shape)}")
    if length % frames_per_position or (length // frames_per_position) % num_segments:
        raise ValueError(
            f"num_segments={num_segments} must divide the temporal positions, and {length} frames "
            f"of {frames_per_position} per position give {length / frames_per_position:g}"
        )
    if num_segments < 2:
        raise ValueError(f"cut-and-paste needs at least 2 segments, got {num_segments}")
    partner, pair_ids = pair_up(seeds)
    mask = foreground(seeds, num_segments, shortest=shortest, longest=longest)
    if count == 1:
        mask = torch.ones_like(mask)
    source, time = _sources(mask, partner, length)
    if not in_place:
        return CutPaste(frames[source, time], mask, partner, pair_ids)
    # Frames are only shared inside a class, so whole classes can be overwritten one after another.
    for members in _whole_classes(pair_ids):
        frames[members] = frames[source[members], time]
    return CutPaste(frames, mask, partner, pair_ids)


def pasted(frames: Tensor, mask: Tensor, partner: Tensor) -> Tensor:
    """Return clips that keep the segments of their mask; the others are their partner's.

    Args:
        frames: [b, F, H, W, 3] of any dtype.
        mask: bool [b, T]; T divides F.
        partner: int64 [b], a sample for each.
    """
    source, time = _sources(mask, partner, frames.shape[1])
    return frames[source, time]


def _sources(mask: Tensor, partner: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return sample [b, F] and place [F] of the frame that each frame of a blended clip shows."""
    own = mask.repeat_interleave(length // mask.shape[1], dim=1)
    sample = torch.arange(len(mask), device=mask.device)[:, None]
    return torch.where(own, sample, partner[:, None]), torch.arange(length, device=mask.device)


def _whole_classes(pair_ids: Tensor) -> list[Tensor]:
    """Samples in groups of about `CLIPS_AT_ONCE` that no class of `pair_up` is split by."""
    order = torch.argsort(pair_ids, stable=True)
    # A class starts at an even place; the last one of an odd batch has three members.
    ends = range(CLIPS_AT_ONCE, len(order) - 1, CLIPS_AT_ONCE)
    return list(torch.tensor_split(order, list(ends)))
