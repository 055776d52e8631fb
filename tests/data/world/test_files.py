"""What lies on disk: MP4 that decodes, shards, the manifest, and errors that say how to go on."""

from __future__ import annotations

import hashlib
import io
import json

import av
import numpy as np
import pytest

from svilm_fast.data.world import WorldConfig, generate_clip, render_world, write
from svilm_fast.data.world.video import encode_mp4


def _decode(data):
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return stream.codec_context.name, float(stream.average_rate), np.stack(frames)


def test_videos_decode_to_the_frames_that_were_drawn(world):
    members = world.members("test")
    for key, sample in list(world.samples("test").items())[:8]:
        codec, rate, frames = _decode(members[f"{key}.mp4"])
        assert codec == "h264"
        assert rate == sample["fps"]
        assert frames.shape == (sample["num_frames"], sample["height"], sample["width"], 3)
        drawn, _ = generate_clip(sample["seed"], "test", world.config)
        assert np.abs(frames.astype(int) - drawn).mean() < 6


@pytest.mark.parametrize("fps,frames", [(29.97, 9), (12.5, 20), (8.0, 16)])
def test_any_rate_and_length_comes_back(fps, frames):
    drawn, sample = generate_clip(0, fps=fps, frames=frames, size=48)
    _, rate, decoded = _decode(encode_mp4(drawn, fps))
    assert len(decoded) == sample["num_frames"] == frames
    assert rate == pytest.approx(fps, rel=1e-3)


def test_samples_have_the_fields_that_readers_expect(samples):
    fields = {"id", "captions", "nouns", "fps", "num_frames", "width", "height", "action", "events"}
    fields |= {"objects", "masks", "questions", "split", "seed"}
    for sample in samples:
        assert fields <= set(sample)
        assert sample["id"].startswith(sample["split"])
        assert set(sample["captions"]) == set(sample["nouns"]) == {"coarse", "fine", "fused"}
        assert len(sample["objects"]) == len(sample["masks"])


def test_the_manifest_lists_the_shards(world):
    manifest = json.loads((world.folder / "manifest.json").read_text())
    assert manifest["config"] == json.loads(world.config.model_dump_json())
    for split in ("train", "val", "test"):
        part = manifest["splits"][split]
        assert part["samples"] == getattr(world.config, split) == len(world.samples(split))
        for shard in part["shards"]:
            data = (world.folder / shard["file"]).read_bytes()
            assert len(data) == shard["bytes"]
            assert hashlib.sha256(data).hexdigest() == shard["sha256"]
    assert len(manifest["splits"]["train"]["shards"]) == 2


def test_an_equal_world_is_kept_and_another_is_not_overwritten(world):
    before = (world.folder / "manifest.json").stat().st_mtime_ns
    report = render_world(world.folder, world.config, progress=False)
    assert report.reused
    assert "rendered before" in str(report)
    assert (world.folder / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="overwrite"):
        render_world(world.folder, world.config, train=31, progress=False)


def test_a_damaged_world_is_rendered_again(tmp_path):
    settings = {"train": 3, "val": 0, "test": 2, "size": 32, "frames": 8}
    render_world(tmp_path / "w", workers=1, progress=False, **settings)
    shard = tmp_path / "w" / "train" / "train-000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1000])
    report = render_world(tmp_path / "w", workers=1, progress=False, **settings)
    assert not report.reused
    assert shard.read_bytes() == whole


def test_overwriting_leaves_no_old_shard(tmp_path):
    settings = {"val": 0, "test": 1, "size": 32, "frames": 8, "shard_size": 2}
    render_world(tmp_path / "w", workers=1, progress=False, train=5, **settings)
    render_world(tmp_path / "w", workers=1, progress=False, overwrite=True, train=2, **settings)
    names = sorted(path.name for path in (tmp_path / "w" / "train").iterdir())
    assert names == ["train-000000.tar", "train-000000.tar.index.json"]


SMALL = {"train": 1, "val": 0, "test": 1, "size": 32, "frames": 8, "workers": 1, "progress": False}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name",
    ["thesis.txt", "train/train-000000.tar", "manifest.json", "manifest.json.partial"],
)
def test_what_is_no_world_is_left_alone(tmp_path, name, overwrite):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"precious": 1')
    with pytest.raises(FileExistsError, match="choose another folder"):
        render_world(tmp_path, overwrite=overwrite, **SMALL)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    assert path.read_text() == '{"precious": 1'


def test_overwriting_keeps_what_the_world_did_not_write(tmp_path):
    render_world(tmp_path, **SMALL)
    (tmp_path / "notes.txt").write_text("mine")
    render_world(tmp_path, overwrite=True, **SMALL | {"train": 2})
    assert (tmp_path / "notes.txt").read_text() == "mine"
    foreign = tmp_path / "train" / "train-000007.tar"
    foreign.write_text("mine")
    with pytest.raises(FileExistsError, match=r"train-000007\.tar is not a shard of the world"):
        render_world(tmp_path, overwrite=True, **SMALL)
    assert foreign.read_text() == "mine"


def test_a_killed_rendering_is_taken_up_again(tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(write, "_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            render_world(tmp_path, **SMALL)
    assert (tmp_path / "train" / "train-000000.tar").is_file()
    assert not render_world(tmp_path, **SMALL).reused
    assert render_world(tmp_path, **SMALL).reused


def test_without_a_terminal_a_line_tells_the_progress(tmp_path, capsys):
    render_world(tmp_path / "w", train=2, val=0, test=1, size=32, frames=8, workers=1)
    assert "rendering: 3/3 clips" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"size": 65}, "even for H.264, got 65: use 66"),
        ({"size": 8}, "size"),
        ({"frames": 2}, "frames"),
        ({"fps": 0}, "fps"),
        ({"colors": ("red", "gren")}, "unknown 'gren': choose from red"),
        ({"colors": ()}, "at least one"),
        ({"shapes": ("star", "star")}, "none twice"),
        ({"actions": ("stay",)}, "besides 'stay'"),
        ({"object_counts": (0.0, 0.0)}, "sum positive"),
        ({"object_counts": (1, 1, 1, 1)}, "one to three"),
        ({"trian": 5}, "did you mean 'train'"),
        ({"holdout": "shape"}, "object_action"),
        ({"colors": ("red",), "shapes": ("star",), "actions": ("spin",)}, "too few combinations"),
    ],
)
def test_wrong_settings_are_explained_on_one_line(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        render_world(tmp_path / "w", progress=False, **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "w").exists()


def test_more_clips_than_distinct_captions_are_refused(tmp_path):
    few = {
        "colors": ("red", "blue", "green"),
        "shapes": ("star", "moon"),
        "sequences": 0.0,
        "backgrounds": ("plain",),
    }
    with pytest.raises(ValueError, match=r"test: only \d+ distinct captions found for 10"):
        render_world(tmp_path / "w", progress=False, val=0, test=10, object_counts=(1.0,), **few)


def test_wrong_arguments_are_explained(tmp_path):
    with pytest.raises(ValueError, match="workers is 0"):
        render_world(tmp_path / "w", workers=0)
    with pytest.raises(ValueError, match="choose from train, val, test"):
        generate_clip(0, "tset")
    with pytest.raises(ValueError, match="whole number"):
        generate_clip(-1)


def test_a_second_world_from_settings_and_config_agree():
    config = WorldConfig(size=48)
    first, _ = generate_clip(9, "train", config)
    second, _ = generate_clip(9, "train", size=48)
    assert np.array_equal(first, second)
