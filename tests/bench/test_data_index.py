"""The made data set of `svilm bench data-index`, and what opening an index of any size touches."""

from __future__ import annotations

import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from svilm_fast.bench.data_index import command
from svilm_fast.bench.data_index.made import WORDS, make
from svilm_fast.bench.data_index.measure import Opened
from svilm_fast.bench.data_index.positions import measure_positions
from svilm_fast.bench.data_index.rank import draw
from svilm_fast.cli import main
from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.errors import DataError
from svilm_fast.data.samples import SampleTable, open_split
from svilm_fast.data.tokenizer import Tokenizer

SAMPLES = 100_500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "shards"
    make(folder, SAMPLES)
    return folder


def opened(folder: Path) -> ClipDataset:
    config = DataConfig(train=str(folder))
    return ClipDataset(config, "train", Tokenizer.train(WORDS), True, frames=4, image_size=16)


def mapped_bytes(table: SampleTable) -> int:
    """Bytes of the index that this process has mapped."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.endswith(str(table.stored.path)):
            resident = next(each for each in lines if each.startswith("Rss:"))
            return int(resident.split()[1]) * 1024
    raise AssertionError("the index is not mapped")


def test_the_made_samples_are_read_like_others(folder: Path) -> None:
    table = open_split(DataConfig(train=str(folder)), "train", nouns=True)
    assert len(table) == SAMPLES
    assert (table.keys >= 0).all()
    assert len(np.unique(table.keys)) == SAMPLES
    sample = table[100_001]
    assert sample.id == "sample-000100001"
    assert sample.video.path == str(folder / "shard-000100.tar")
    assert sample.captions[0].startswith("clip 100001: a ")
    for nouns in sample.nouns[0]:
        assert f"a {nouns}" in sample.captions[0]
    with pytest.raises(DataError, match="differ from the index's checksum"):
        table.read_video(100_001)  # the shard holds nothing but zeros


def test_opening_reads_no_column_of_samples(folder: Path) -> None:
    dataset = opened(folder)
    assert Path(str(dataset.table.stored.path)).stat().st_size > 15_000_000
    assert mapped_bytes(dataset.table) < 1_000_000


def test_what_was_looked_up_does_not_stay_mapped(folder: Path) -> None:
    dataset = opened(folder)
    draw(dataset, 0)
    assert mapped_bytes(dataset.table) < 1_000_000
    dataset.keys.sum()
    assert mapped_bytes(dataset.table) >= 8 * SAMPLES
    dataset.table.stored.release()
    assert mapped_bytes(dataset.table) == 0


def test_a_worker_is_given_as_much_for_any_number_of_samples(folder: Path, tmp_path: Path) -> None:
    make(tmp_path / "few", 1000)
    few, many = (len(pickle.dumps(opened(each))) for each in (tmp_path / "few", folder))
    assert abs(many - few) < 200
    dataset = pickle.loads(pickle.dumps(opened(folder)))
    assert dataset.keys.base is not None
    assert not dataset.keys.flags.writeable


def test_a_second_run_measures_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Any] = []

    def measure(sizes: list[int], folder: Path | None) -> Any:
        for size in sizes:
            measured.append(size)
            yield Opened(size, size * 200, 1.0, 0.01, 1e-4, 7000, 10**6, 10**6, 10**5, 10**5)
            if size == 2000 and len(measured) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure", measure)
    few = partial(measure_positions, (1000, 2500), 3)
    monkeypatch.setattr(command, "measure_positions", few)
    out, figure = tmp_path / "out.json", tmp_path / "figure.png"
    words = ["bench", "data-index", "--out", str(out), "--figure", str(figure)]
    words += [word for size in (1000, 2000, 3000) for word in ("--samples", str(size))]
    with pytest.raises(SystemExit):
        main(words)
    assert measured == [1000, 2000]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert not end.value.code
    assert measured == [1000, 2000, 3000]
    stored = json.loads(out.read_text())
    records, positions = stored["records"], stored["positions"]
    assert [(each["order"], each["samples"]) for each in positions] == [
        (order, samples) for order in ("permute", "window") for samples in (1000, 2500)
    ]
    assert all(each[name] > 0 for each in positions for name in ("first_s", "one_s", "batch_s"))
    assert [record["samples"] for record in records] == [1000, 2000, 3000]
    assert figure.read_bytes().startswith(b"\x89PNG")
