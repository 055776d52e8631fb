"""`svilm data bench`: all loaders load the same frames, and the figures come from one run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from svilm_fast.bench.errors import WrongResult
from svilm_fast.bench.loading import loaders as loaders_module
from svilm_fast.bench.loading import stages as stages_module
from svilm_fast.bench.loading.loaders import PLAIN, PRODUCT, dataset_of, loaders
from svilm_fast.bench.loading.measure import Measurement, _require_equal
from svilm_fast.bench.loading.sources import folder_source, made_source
from svilm_fast.bench.loading.stages import STAGES, Clock, stage_seconds
from svilm_fast.cli import main
from svilm_fast.data.decode import decode_clip, every_frame


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return made_source(1, 2, tmp_path_factory.mktemp("cache"), lambda: None)


@pytest.fixture
def dataset(source):
    return dataset_of(source, frames=4, size=32)


def test_made_videos_are_kept_and_long_ones_repeat_packets(source, tmp_path, monkeypatch):
    again = made_source(1, 2, source.folder.parent, lambda: pytest.fail("encoded again"))
    assert again == source
    monkeypatch.setattr("svilm_fast.bench.loading.sources._ENCODED_S", 1)
    long = made_source(3, 1, tmp_path, lambda: None)
    video = dataset_of(long, 4, 32).table.read_video(0)
    clip = decode_clip(video, every_frame, short_side=32)
    assert clip.total == 75
    assert clip.timeline.edges is None
    assert np.array_equal(clip.frames[5], clip.frames[55])


def test_the_plain_loop_loads_the_same_clips_with_and_without_webdataset(
    source, dataset, monkeypatch
):
    found = loaders(source, dataset)
    ours = found[PRODUCT]()
    assert ours.shape == (2, 4, 32, 32, 3)
    assert torch.equal(ours, found[PLAIN]())
    monkeypatch.setattr(loaders_module.importlib.util, "find_spec", lambda name: None)
    assert torch.equal(ours, found[PLAIN]())


def test_other_frames_are_no_measurement():
    ours = torch.zeros(2, 4, 8, 8, 3, dtype=torch.uint8)
    _require_equal({PRODUCT: ours, PLAIN: ours, "torchcodec loop": ours + 2})
    with pytest.raises(WrongResult, match="plain loop loads other frames"):
        _require_equal({PRODUCT: ours, PLAIN: ours + 2})
    with pytest.raises(WrongResult, match="torchcodec loop loads other frames"):
        _require_equal({PRODUCT: ours, "torchcodec loop": ours + 9})


def test_a_second_counts_for_the_innermost_stage(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr(stages_module.time, "process_time", lambda: next(now))
    clock = Clock()
    with clock.stage("outer"), clock.stage("inner"):
        pass
    assert clock.seconds == {"outer": 1.0 + 4.0, "inner": 2.0}


def test_every_stage_has_its_time_and_nothing_stays_replaced(dataset, monkeypatch):
    # As in a loader's worker: decoding happens in this process.
    monkeypatch.setattr(
        "svilm_fast.data.decode_process.multiprocessing.current_process",
        lambda: type("Daemon", (), {"daemon": True}),
    )
    before = stages_module.decode.open_video, stages_module.display.to_rgb
    seconds = stage_seconds(dataset, 2)
    assert list(seconds) == list(STAGES)
    assert all(value > 0 for value in seconds.values())
    assert seconds["decode"] == max(seconds.values())
    assert before == (stages_module.decode.open_video, stages_module.display.to_rgb)
    assert "collate" not in vars(dataset)


def test_ratios_are_those_of_rounds():
    result = Measurement("x", 1, None, 8, 224)
    result.cpu = {PRODUCT: [1.0, 2.0, 4.0], PLAIN: [3.0, 4.0, 8.0]}
    assert result.ratio(PLAIN) == (2.0, 2.0, 3.0)
    assert result.clips_per_core(PRODUCT) == 0.5


@pytest.mark.slow
def test_the_command_prints_tables_and_writes_json(tmp_path, monkeypatch, capsys, make_film):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mp4").write_bytes(make_film)
    out = tmp_path / "loading.json"
    arguments = ["--seconds", "1", "--frames", "2", "--size", "32", "--rounds", "2"]
    with pytest.raises(SystemExit) as ended:
        main(["data", "bench", *arguments, "--videos", str(tmp_path / "films"), "--out", str(out)])
    assert not ended.value.code
    text = capsys.readouterr().out
    assert "plain loop" in text
    assert "crop and resize" in text
    results = json.loads(out.read_text())["results"]
    assert [result["source"] for result in results] == ["1 s", "films"]
    for result in results:
        assert {len(values) for values in result["cpu"].values()} == {2}
        middle, low, high = result["times_faster_than"][PLAIN]
        assert 0 < low <= middle <= high


@pytest.fixture
def make_film(source):
    return dataset_of(source, 2, 32).table.read_video(0)


@pytest.mark.parametrize("seconds", ["0", "ten", "5000", ""])
def test_lengths_that_make_no_sense_are_refused(seconds, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["data", "bench", "--seconds", seconds])
    assert ended.value.code == 2
    assert "--seconds" in capsys.readouterr().err


def test_a_folder_without_videos_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no videos"):
        folder_source(tmp_path, 3, tmp_path / "shards")
