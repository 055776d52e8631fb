"""What a clip and a batch hold: frames, crops, captions, nouns, tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from svilm_fast.data.augment import centre_window, cut, random_window, speaks_of_direction
from svilm_fast.data.config import AugmentConfig, DataConfig, NounsConfig
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.errors import DataError
from svilm_fast.data.keys import sample_key
from svilm_fast.data.loader import build_loader
from svilm_fast.data.order import derangement


def _sample(**record):
    return {"json": json.dumps(record).encode()}


def test_a_batch_has_the_documented_shapes(make_dataset):
    dataset = make_dataset(6)
    batch = dataset.batch([0, 3, 5])
    assert batch.frames.shape == (3, 4, 24, 24, 3)
    assert batch.frames.dtype == torch.uint8
    assert batch.keys.tolist() == [sample_key(name) for name in batch.ids]
    assert batch.text_tokens.shape == batch.text_mask.shape == (3, 32)
    assert batch.noun_tokens.shape == batch.noun_token_mask.shape == (3, 2, 16)
    assert batch.noun_mask.shape == (3, 2)
    assert batch.frame_index.shape == (3, 4)
    assert batch.crop.shape == (3, 4)
    assert batch.flipped.shape == (3,)
    assert batch.metadata == []
    assert len(batch) == 3
    moved = batch.to("meta")
    assert moved.frames.device.type == "meta"
    assert moved.captions == batch.captions


def test_evaluation_batches_carry_the_json_and_the_middle_frames(make_dataset):
    dataset = make_dataset(4, train=False)
    batch = dataset.batch([2])
    assert batch.metadata[0]["caption"] == batch.captions[0] == dataset.table[2].captions[0]
    assert batch.frame_index.tolist() == [[1, 4, 7, 10]]
    grey = batch.frames.float().mean(dim=(2, 3, 4))[0]
    # video 2 begins at 6 and every frame is 16 brighter
    assert torch.allclose(grey, torch.tensor([22.0, 70.0, 118.0, 166.0]), atol=4)
    assert torch.equal(batch.frames, dataset.batch([2], seed=5, epoch=9).frames)


def test_prompted_nouns_are_the_tokens_of_template_and_noun(make_dataset):
    dataset = make_dataset(3, train=False)
    tokenizer = prepare_tokenizer(dataset.config)
    batch = dataset.batch([1])
    assert batch.nouns == [["green circle", "dark floor"]]
    decoded = tokenizer.decode(batch.noun_tokens[0, 0])
    assert decoded == f"a video of {batch.nouns[0][0]}."
    assert tokenizer.decode(batch.text_tokens[0]) == batch.captions[0].lower()


def test_training_draws_nouns_and_templates(make_dataset):
    words = ["dog", "cat", "tree", "house", "car"]
    replace = {0: _sample(caption="Many things.", nouns=words)}
    dataset = make_dataset(4, replace=replace)
    tokenizer = prepare_tokenizer(dataset.config)
    seen, prompts = set(), set()
    for epoch in range(30):
        batch = dataset.batch([0], epoch=epoch)
        assert len(set(batch.nouns[0])) == 2
        assert words.index(batch.nouns[0][0]) < words.index(batch.nouns[0][1])
        seen.update(batch.nouns[0])
        prompts.add(tokenizer.decode(batch.noun_tokens[0, 0]).replace(batch.nouns[0][0], "{}"))
    assert seen == set(words)
    assert len(prompts) == len(dataset.config.nouns.templates)


def test_where_nobody_looks_at_nouns_none_are_extracted(make_dataset):
    with_nouns = make_dataset(5)
    unusable = NounsConfig(extractor="spacy", spacy_model="no_such_model")
    without = ClipDataset(
        with_nouns.config.model_copy(update={"nouns": unusable}),
        "train",
        prepare_tokenizer(with_nouns.config),
        True,
        frames=4,
        image_size=24,
        nouns=False,
    )
    assert not without.report.notes
    full, bare = (d.batch(range(5), seed=1, epoch=2) for d in (with_nouns, without))
    assert full.noun_mask.any()
    assert bare.noun_tokens.shape == (5, 0, with_nouns.config.tokenizer.noun_length)
    assert bare.nouns == [[]] * 5
    for name in ("frames", "text_tokens", "text_mask", "crop", "frame_index", "keys"):
        assert torch.equal(getattr(full, name), getattr(bare, name)), name


def test_a_caption_without_nouns_is_fine_and_counted(make_dataset):
    replace = {1: _sample(caption="Running quickly."), 2: _sample(caption="It was.", nouns=[])}
    dataset = make_dataset(4, replace=replace)
    batch = dataset.batch([1, 2, 0])
    assert batch.noun_mask.tolist() == [[False, False], [False, False], [True, True]]
    assert batch.nouns[:2] == [[], []]
    assert not batch.noun_token_mask[:2].any()
    assert dataset.report.notes["captions without nouns"] == 2


def test_of_several_captions_training_draws_and_evaluation_takes_the_first(make_dataset):
    replace = {0: _sample(caption=["A dog runs.", "A cat sits.", "A bird sings."])}
    training = make_dataset(4, replace=replace)
    drawn = {training.batch([0], epoch=epoch).captions[0] for epoch in range(30)}
    assert drawn == {"A dog runs.", "A cat sits.", "A bird sings."}
    assert training.batch([1]).captions[0].startswith("clip 1")


def test_evaluation_takes_the_first_of_several_captions(make_dataset):
    replace = {0: _sample(caption=["A dog runs.", "A cat sits."])}
    assert make_dataset(4, train=False, replace=replace).batch([0]).captions == ["A dog runs."]


def test_the_grain_setting_picks_caption_and_nouns(make_shards):
    record = {
        "captions": {"coarse": "One dog.", "fine": "It moves left."},
        "nouns": {"coarse": [{"text": "dog", "span": [4, 7]}], "fine": []},
    }
    folder = make_shards(2, replace={n: _sample(**record) for n in range(2)})
    for grain, caption, nouns in (("coarse", "One dog.", ["dog"]), ("fine", "It moves left.", [])):
        config = DataConfig(train=str(folder), captions=grain)
        dataset = ClipDataset(config, "train", prepare_tokenizer(config), frames=2, image_size=16)
        assert dataset.batch([0]).captions == [caption]
        assert dataset.batch([0]).nouns == [nouns]


def test_the_memory_cache_changes_nothing_but_time(make_dataset):
    plain = make_dataset(5)
    cached = ClipDataset(
        plain.config.model_copy(update={"cache": "memory"}),
        "train",
        prepare_tokenizer(plain.config),
        True,
        frames=4,
        image_size=24,
    )
    for epoch in (0, 1):
        left, right = (d.batch(range(5), seed=1, epoch=epoch) for d in (plain, cached))
        assert torch.equal(left.frames, right.frames)
        assert torch.equal(left.frame_index, right.frame_index)
    cached.table.read_video = None  # a second look must not need the file
    cached.batch(range(5), seed=2)


def test_the_cache_stops_growing_at_its_limit(make_dataset):
    dataset = make_dataset(6, cache="memory", cache_bytes=1)
    dataset.batch(range(6))
    assert len(dataset._cache) == 1


def test_shuffled_captions_are_a_derangement_with_their_nouns(make_dataset):
    true, control = make_dataset(12), make_dataset(12, shuffle_captions=True)
    captions = dict(zip(true.ids, true.table.captions()))
    batch = control.batch(range(12))
    assert sorted(batch.captions) == sorted(captions.values())
    assert all(captions[name] != text for name, text in zip(batch.ids, batch.captions))
    for text, nouns in zip(batch.captions, batch.nouns):
        assert all(noun.split()[-1] in text for noun in nouns)
    again = make_dataset(12, shuffle_captions=True).batch(range(12))
    assert again.captions == batch.captions


@pytest.mark.parametrize("count", [2, 3, 4, 5, 10, 16, 17, 1000])
def test_a_derangement_moves_everything(count):
    moved = derangement(count, 3)(np.arange(count))
    assert sorted(moved.tolist()) == list(range(count))
    assert not np.any(moved == np.arange(count))
    cycle = [0]
    while (after := int(moved[cycle[-1]])) != 0:
        cycle.append(after)
    assert len(cycle) == count
    with pytest.raises(DataError, match="at least two"):
        derangement(1, 3)


def test_long_captions_are_cut_and_counted(make_dataset):
    dataset = make_dataset(3, tokenizer={"length": 6})
    loader = build_loader(dataset.config, dataset, batch_size=3)
    assert next(iter(loader)).text_mask.all()
    assert loader.skips.notes["captions cut"] == 3


def test_mirroring_spares_captions_with_a_direction():
    for text in (
        "moves left",
        "to the Right.",
        "spins clockwise",
        "counter-clockwise",
        "leftwards",
    ):
        assert speaks_of_direction(text)
    for text in ("a bright dog", "leftover food", "copyright"):
        assert not speaks_of_direction(text)
    always = AugmentConfig(flip=1.0)
    draws = np.full(5, 0.5)
    assert random_window(40, 32, draws, always, "a dog").flipped
    assert not random_window(40, 32, draws, always, "it moves left").flipped
    forced = AugmentConfig(flip=1.0, flip_directional=True)
    assert random_window(40, 32, draws, forced, "it moves left").flipped


def test_random_windows_stay_inside_and_keep_to_the_settings():
    config = AugmentConfig(crop_scale=(0.5, 0.9))
    random = np.random.default_rng(0)
    edges = np.array([[0.0] * 5, [np.nextafter(np.float32(1), np.float32(0))] * 5])
    for draws in np.concatenate([edges, random.random((300, 5))]).astype(np.float32):
        window = random_window(64, 48, draws, config, "a dog")
        assert 0 <= window.x <= 64 - window.width
        assert 0 <= window.y <= 48 - window.height
        assert 0.4 * 64 * 48 < window.width * window.height < 0.95 * 64 * 48


def test_cutting_and_mirroring_move_the_pixels_they_say():
    frames = np.arange(4 * 6 * 8 * 3, dtype=np.uint8).reshape(4, 6, 8, 3)
    window = random_window(8, 6, np.zeros(5), AugmentConfig(crop_scale=(1, 1)), "left")
    assert (window.width, window.height) == (6, 6)  # the narrowest ratio asked is 3:4
    window = centre_window(8, 6, 1.0)
    plain = cut(frames, window, 6)
    assert torch.equal(plain, torch.from_numpy(frames[:, :, 1:7]))
    mirrored = type(window)(window.x, window.y, 6, 6, flipped=True)
    assert torch.equal(cut(frames, mirrored, 6), plain.flip(2))
    assert window.fractions(8, 6) == (0.125, 0.0, 0.875, 1.0)
    assert cut(frames, window, 3).shape == (4, 3, 3, 3)


def test_the_crop_of_a_batch_finds_the_place_in_the_source(make_dataset, make_video):
    frames = np.zeros((12, 48, 48, 3), dtype=np.uint8)
    frames[:, 24:, :24] = 255
    video = make_video(frames)
    replace = {n: {"mp4": video} for n in range(4)}
    dataset = make_dataset(4, replace=replace, image_size=48)
    for epoch in range(4):
        batch = dataset.batch(range(4), epoch=epoch)
        for image, box, flipped in zip(batch.frames[:, 0], batch.crop, batch.flipped):
            x = (0.25 - box[0]) / (box[2] - box[0])
            y = (0.75 - box[1]) / (box[3] - box[1])
            column = int((1 - x if flipped else x) * 48)
            assert image[int(y * 48), min(column, 47), 0] > 200


def test_settings_that_cannot_be_are_refused():
    for wrong in (
        {"augment": {"crop_scale": (0.9, 0.1)}},
        {"augment": {"crop_ratio": (2.0, 1.0)}},
        {"cache": "disk"},
        {"captoins": "fine"},
    ):
        with pytest.raises(ValueError, match=r"crop|cache|captoins"):
            DataConfig(**wrong)
