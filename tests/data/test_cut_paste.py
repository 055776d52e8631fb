"""Cut-and-paste: the mask tells whose pixels are where, partners are mutual, T fits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from svilm_fast.core.philox import Site, StepSeeds
from svilm_fast.data.cut_paste import cut_and_paste, foreground, pair_up


def _seeds(count, step=0):
    return StepSeeds(7, step, torch.arange(100, 100 + count)).at(Site.CUT_PASTE)


def _frames(count, length=16):
    """Every pixel says which sample and frame it is from."""
    sample = torch.arange(count, dtype=torch.uint8)[:, None] * 16
    values = sample + torch.arange(length, dtype=torch.uint8)
    return values[:, :, None, None, None].expand(count, length, 2, 3, 3).contiguous()


@pytest.mark.parametrize("count", [62, 63, 64, 65, 66, 67, 128, 129, 131])
def test_many_clips_are_blended_in_place_as_apart(count):
    frames = torch.randint(0, 256, (count, 4, 2, 2, 3), dtype=torch.uint8)
    apart = cut_and_paste(frames, _seeds(count), 4)
    assert torch.equal(
        cut_and_paste(frames, _seeds(count), 4, in_place=True).blended, apart.blended
    )


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(("segments", "per_position"), [(8, 2), (4, 1), (2, 4), (16, 1)])
def test_mask_matches_the_pixels(count, segments, per_position):
    frames = _frames(count)
    result = cut_and_paste(frames, _seeds(count), segments, per_position)
    for i in range(count):
        for f in range(16):
            own = bool(result.paste_mask[i, f // (16 // segments)])
            source = i if own else int(result.partner[i])
            assert torch.equal(result.blended[i, f], frames[source, f])
    over = frames.clone()
    assert cut_and_paste(over, _seeds(count), segments, per_position, in_place=True).blended is over
    assert torch.equal(over, result.blended)
    if count > 1:
        kept = result.paste_mask.sum(1)
        assert bool((kept >= (segments + 1) // 2).all())
        assert bool((kept < segments).all())


@given(count=st.integers(2, 33), step=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_partners_share_a_class_and_classes_are_pairs_or_one_triple(count, step):
    partner, classes = pair_up(_seeds(count, step))
    assert bool((partner != torch.arange(count)).all())
    assert sorted(partner.tolist()) == list(range(count))
    assert torch.equal(classes[partner], classes)
    sizes = torch.bincount(classes)
    assert sorted(sizes.tolist()) == [2] * (count // 2 - count % 2) + [3] * (count % 2)
    mutual = partner[partner] == torch.arange(count)
    assert int((~mutual).sum()) == 3 * (count % 2)


def test_pairs_follow_the_samples_not_their_order_in_the_batch():
    seeds, shuffle = _seeds(9), torch.randperm(9, generator=torch.Generator().manual_seed(1))
    partner, _ = pair_up(seeds)
    shuffled, _ = pair_up(seeds[shuffle])
    assert torch.equal(shuffle[shuffled], partner[shuffle])
    assert torch.equal(foreground(seeds, 8)[shuffle], foreground(seeds[shuffle], 8))


def test_runs_are_contiguous_and_every_length_and_start_occurs():
    mask = foreground(_seeds(4000), 8)
    steps = mask[:, 1:].int() - mask[:, :-1].int()
    assert bool(((steps == 1).sum(1) + mask[:, 0].int() == 1).all())
    lengths = torch.bincount(mask.sum(1), minlength=9)
    assert lengths[:4].sum() == 0
    assert lengths[8] == 0
    # four lengths, 1000 expected each; five standard deviations
    assert bool(((lengths[4:8] - 1000).abs() < 5 * 27.4).all())
    starts = {tuple(row) for row in mask.int().tolist()}
    assert len(starts) == 5 + 4 + 3 + 2


def test_a_lone_sample_stays_whole_and_steps_differ():
    result = cut_and_paste(_frames(1), _seeds(1), 8)
    assert bool(result.paste_mask.all())
    assert torch.equal(result.blended, _frames(1))
    assert not torch.equal(foreground(_seeds(8, 0), 8), foreground(_seeds(8, 1), 8))


@pytest.mark.parametrize(
    ("segments", "per_position", "message"),
    [
        (3, 1, "must divide the temporal positions"),
        (16, 2, "give 8"),
        (4, 3, "must divide"),
        (1, 1, "at least 2 segments"),
    ],
)
def test_segments_that_do_not_fit_are_refused(segments, per_position, message):
    with pytest.raises(ValueError, match=message):
        cut_and_paste(_frames(2), _seeds(2), segments, per_position)


@pytest.mark.parametrize(
    ("shortest", "longest", "wanted"),
    [(0.5, 1.0, {4, 5, 6, 7}), (0.25, 0.5, {2, 3, 4}), (0.0, 0.1, set()), (0.3, 0.3, set())],
)
def test_the_range_of_lengths_is_a_setting(shortest: float, longest: float, wanted: set[int]):
    if not wanted:
        with pytest.raises(ValueError, match=r"no run of 8 segments.*data.cut_paste.shortest"):
            foreground(_seeds(4), 8, shortest=shortest, longest=longest)
        return
    mask = foreground(_seeds(400), 8, shortest=shortest, longest=longest)
    assert set(mask.sum(1).tolist()) == wanted
    result = cut_and_paste(_frames(4), _seeds(4), 8, shortest=shortest, longest=longest)
    assert torch.equal(
        result.paste_mask, foreground(_seeds(4), 8, shortest=shortest, longest=longest)
    )
