"""An exported model embeds exactly as the evaluation of its run does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import svilm_fast
from svilm_fast.core.errors import UserError
from svilm_fast.data.errors import DataError
from svilm_fast.evaluation.embed import embed_clips
from svilm_fast.inference.config import PretrainedConfig
from svilm_fast.inference.folder import is_exported
from svilm_fast.tasks.clips import evaluation_clips
from svilm_fast.train.run.embed_shards import embed_shards
from svilm_fast.train.run.loaded_run import load_run


@pytest.fixture(scope="module")
def dataset(run):
    loaded = load_run(run)
    return evaluation_clips(loaded.config, "test", loaded.tokenizer, nouns=False)


@pytest.fixture(scope="module")
def paths(dataset, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    found = [folder / f"{name}.mp4" for name in dataset.ids]
    for index, path in enumerate(found):
        path.write_bytes(dataset.table.read_video(index))
    return found


def test_videos_are_embedded_bit_for_bit_as_by_the_evaluation_and_by_embed(
    run, exported, dataset, paths, tmp_path
):
    model = svilm_fast.load_pretrained(exported)
    videos = model.embed_video(paths)
    assert videos.shape == (6, model.embed_dim)
    assert videos.dtype == torch.float32
    torch.testing.assert_close(videos.norm(dim=1), torch.ones(6))
    batch = dataset.batch(range(6))
    expected = embed_clips(load_run(run).model.encoder, [batch], progress=False)
    assert torch.equal(videos, expected.videos)
    assert torch.equal(model.embed_text(batch.captions), expected.texts)
    embed_shards(run, str(run.with_name("run-world") / "test"), tmp_path / "out")
    with np.load(next((tmp_path / "out").glob("*.npz"))) as stored:
        assert stored["ids"].tolist() == list(dataset.ids)
        assert np.array_equal(stored["videos"], videos.numpy())
        assert np.array_equal(stored["texts"], expected.texts.numpy())
    assert not torch.allclose(videos[0], videos[1], atol=1e-4)


def test_one_video_one_path_and_frames_of_the_models_size(exported, dataset, paths):
    model = svilm_fast.load_pretrained(exported)
    one = model.embed_video(str(paths[0]))
    assert one.shape == (1, model.embed_dim)
    frames = dataset.batch([0, 1]).frames
    assert torch.equal(model.embed_video(frames[0]), one)
    assert torch.equal(model.embed_video(frames), model.embed_video(paths[:2]))
    assert model.embed_text("a red circle").shape == (1, model.embed_dim)
    assert model.embed_video([]).shape == model.embed_text([]).shape == (0, model.embed_dim)
    parts = model.embed_video(paths[:3], batch_size=2)
    torch.testing.assert_close(parts, model.embed_video(paths[:3]), rtol=0, atol=1e-6)


def test_arrays_are_frames_and_other_sequences_are_refused(exported, dataset):
    model = svilm_fast.load_pretrained(exported)
    frames = dataset.batch([0]).frames[0]
    flipped = frames.numpy()[..., ::-1]  # a view, as OpenCV's users make one
    expected = model.embed_video(frames.flip(-1))
    assert torch.equal(model.embed_video(flipped), expected)
    assert torch.equal(model.ground(flipped, "dog").clip, frames.flip(-1))
    with pytest.raises(ValueError, match="got a Tensor in a list"):
        model.embed_video([frames, frames])


def test_texts_are_embedded_in_batches(exported, monkeypatch):
    model = svilm_fast.load_pretrained(exported)
    sizes, encode = [], model.encoder.encode_text
    monkeypatch.setattr(
        model.encoder, "encode_text", lambda *a: sizes.append(len(a[0])) or encode(*a)
    )
    texts = [f"clip {number}" for number in range(5)]
    parts = model.embed_text(texts, batch_size=2)
    assert sizes == [2, 2, 1]
    torch.testing.assert_close(parts, model.embed_text(texts), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="at least 1"):
        model.embed_text(texts, batch_size=0)


def test_half_precision_is_read_and_computed_in_fp32(exported, tmp_path):
    folder = copied(exported, tmp_path / "model")
    path = folder / "model.safetensors"
    halves = {name: value.half() for name, value in load_file(path).items()}
    save_file(halves, path)
    (folder / "README.md").write_bytes(b"caf\xe9")
    model = svilm_fast.load_pretrained(folder)
    state = model.encoder.state_dict()
    assert all(torch.equal(state[name], value.float()) for name, value in halves.items())
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_other_frames_are_chosen_and_cropped(exported):
    model = svilm_fast.load_pretrained(exported)
    wanted, size = model.settings.video.frames, model.settings.video.image_size
    # 3 equal parts of 3 frames each around the one that is read; the crop is 1 / 1.2 of 48 pixels.
    frames = torch.zeros(wanted * 3, 48, 96, 3, dtype=torch.uint8)
    frames[1::3, 4:44, 28:68] = torch.randint(0, 256, (wanted, 40, 40, 3), dtype=torch.uint8)
    border = frames.clone()
    border[::3] = border[2::3] = 255
    border[:, :4] = border[:, 44:] = border[:, :, :28] = border[:, :, 68:] = 99
    assert torch.equal(model.embed_video(frames), model.embed_video(border))
    assert not torch.equal(model.embed_video(frames), model.embed_video(frames.flip(2)))
    assert model.embed_video(frames[None].expand(2, -1, -1, -1, -1)).shape[0] == 2
    assert size != 48


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(4, 32, 32, 3),
        torch.zeros(4, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(32, 32, 3, dtype=torch.uint8),
        torch.zeros(0, 32, 32, 3, dtype=torch.uint8),
    ],
    ids=["float", "channels first", "an image", "no frames"],
)
def test_other_tensors_are_refused(exported, frames):
    with pytest.raises(ValueError, match="must be uint8 RGB frames"):
        svilm_fast.load_pretrained(exported).embed_video(frames)


def test_files_that_cannot_be_read_are_errors(exported, tmp_path):
    model = svilm_fast.load_pretrained(exported)
    broken = tmp_path / "broken.mp4"
    broken.write_text("this is no video")
    with pytest.raises(DataError, match="not a video file"):
        model.embed_video(broken)
    with pytest.raises(FileNotFoundError):
        model.embed_video(tmp_path / "absent.mp4")


def test_equal_models_have_one_fingerprint(exported):
    model = svilm_fast.load_pretrained(exported)
    before = model.fingerprint()
    assert before == svilm_fast.load_pretrained(exported).fingerprint()
    with torch.no_grad():
        next(model.encoder.parameters()).view(-1)[0] += 1
    assert model.fingerprint() != before


def copied(exported: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_folders_that_are_no_exported_model(run, exported, tmp_path):
    for folder, message in (
        (tmp_path / "absent", "is not a folder"),
        (run, "export the run first"),
        (tmp_path, "give a folder that `svilm export` wrote"),
    ):
        with pytest.raises(UserError, match=message):
            svilm_fast.load_pretrained(folder)
        assert not is_exported(folder)
    assert is_exported(exported)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", lambda text: text.replace("pretrained/1", "pretrained/9"), "this version"),
        ("config.json", lambda text: text[:50], "cannot be read"),
        ("config.json", lambda text: text.replace('"width": 24', '"width": 48'), "does not fit"),
        ("config.json", lambda text: text.replace('"depth": 2', '"deep": 2'), "unknown key 'deep'"),
        ("model.safetensors", lambda text: "", "is not complete"),
        ("tokenizer.json", lambda text: "{}", "is not complete"),
    ],
)
def test_damaged_folders_say_what_is_wrong(exported, tmp_path, name, change, message):
    folder = copied(exported, tmp_path / "model")
    text = (folder / name).read_text(errors="replace")
    (folder / name).write_text(change(text))
    with pytest.raises(UserError, match=message):
        svilm_fast.load_pretrained(folder)


def test_settings_survive_json(exported):
    settings = svilm_fast.load_pretrained(exported).settings
    assert PretrainedConfig.model_validate(settings.to_json()) == settings


def test_importing_the_package_imports_no_torch():
    code = "import sys, svilm_fast; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'load_pretrain'"):
        _ = svilm_fast.load_pretrain
