"""Packing that is stopped continues with equal bytes; other arguments are refused."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from svilm_fast.data.config import DataConfig
from svilm_fast.data.errors import DataError
from svilm_fast.data.pack import pack
from svilm_fast.data.shards import ShardFile
from tests.kills import KILLS

_ROWS = [
    ("a.mp4", "A red dog runs.", {}),
    ("bad.mp4", "No video.", {}),
    ("b.mp4", "A blue cat sits.", {}),
    ("b.mp4", "It sits.", {}),
    ("sub/a.mp4", "A cup.", {"start": 0.5, "end": 1.0}),
    ("sub/a.mp4", "A green cup.", {"start": 0.0, "end": 0.5}),
    ("a_.mp4", "Dogs &amp; cats.", {}),
    ("a .mp4", "Two cats.", {}),
]


@pytest.fixture
def listed(tmp_path, videos):
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.mp4", "b.mp4", "sub/a.mp4", "a_.mp4", "a .mp4")):
        (folder / name).write_bytes(videos[number % 4])
    (folder / "bad.mp4").write_bytes(b"no video" * 9)
    lines = [json.dumps({"video": v, "caption": c, **more}) for v, c, more in _ROWS]
    (folder / "list.jsonl").write_text("\n".join(lines))
    return folder


def _content(folder):
    """Shards, indexes and report by name: everything but the manifest, which has an order."""
    left = "pack_manifest.jsonl", ".svilm-pack-partial"
    names = [path for path in folder.iterdir() if not path.name.endswith(left)]
    return {path.name: path.read_bytes() for path in names}


def test_equal_bytes_for_one_two_and_three_workers(listed, tmp_path):
    for workers in (1, 2, 3):
        out = tmp_path / str(workers)
        pack(str(listed / "list.jsonl"), out, shard_samples=2, workers=workers, threads=workers)
    expected = _content(tmp_path / "1")
    assert len(expected) == 9
    assert _content(tmp_path / "2") == _content(tmp_path / "3") == expected


def test_a_failed_packing_continues_with_equal_bytes(listed, tmp_path, monkeypatch):
    source = str(listed / "list.jsonl")
    pack(source, tmp_path / "whole", shard_samples=2)
    real = ShardFile.add

    def full_disk(self, key, members):
        if key == "a_":
            raise OSError(28, "No space left on device")
        real(self, key, members)

    monkeypatch.setattr(ShardFile, "add", full_disk)
    with pytest.raises(OSError, match="No space"):
        pack(source, tmp_path / "out", shard_samples=2, workers=1)
    assert 0 < len(_content(tmp_path / "out")) < 9
    monkeypatch.undo()
    pack(source, tmp_path / "out", shard_samples=2, workers=1)
    assert _content(tmp_path / "out") == _content(tmp_path / "whole")


def test_a_finished_packing_started_again_changes_nothing(listed, tmp_path):
    source, out = str(listed / "list.jsonl"), tmp_path / "out"
    calls = []
    first = pack(source, out, finished=calls.append)
    before = _content(out)
    assert pack(source, out, finished=calls.append) == first
    assert _content(out) == before
    assert calls == [out, out]


def test_other_arguments_and_a_changed_list_are_refused(listed, tmp_path, videos):
    source, out = str(listed / "list.jsonl"), tmp_path / "out"
    pack(source, out)
    before = _content(out)
    with pytest.raises(DataError, match=r"shard_samples=1000 before, 500 now"):
        pack(source, out, shard_samples=500)
    with pytest.raises(DataError, match=r"limits\.frames=36000 before, 30 now"):
        pack(source, out, config=DataConfig(limits={"frames": 30}))
    (listed / "list.jsonl").write_text('{"video": "a.mp4", "caption": "another"}')
    with pytest.raises(DataError, match=r"input has changed, for example that of shard-000000"):
        pack(source, out)
    assert _content(out) == before


def test_shards_inside_the_packed_folder_are_not_reported_as_foreign(listed):
    (listed / "list.jsonl").unlink()
    for name in ("a", "b"):
        (listed / f"{name}.txt").write_text("A dog.")
    (listed / "notes.md").write_text("mine")
    first = pack(str(listed), listed, progress=False)
    assert first.passed_over == ["notes.md"]
    assert pack(str(listed), listed) == first
    assert pack(str(listed), listed / "out").passed_over[-1].endswith("shard-000000.tar.index.json")


_PROGRAM = """
import sys
from svilm_fast.data.pack import pack
if __name__ == "__main__":
    pack(sys.argv[1], sys.argv[2], shard_samples=2, workers=2, threads=1, progress=False)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_random_moments(tmp_path, videos):
    folder = tmp_path / "videos"
    folder.mkdir()
    rows = []
    for number in range(60):
        (folder / f"{number}.mp4").write_bytes(videos[number % 4])
        rows.append(json.dumps({"video": f"{number}.mp4", "caption": f"Dog {number} runs."}))
    (folder / "list.jsonl").write_text("\n".join(rows))
    source = str(folder / "list.jsonl")
    pack(source, tmp_path / "whole", shard_samples=2, workers=1)
    expected = _content(tmp_path / "whole")
    draw, kills, finished, before = random.Random(0), 0, 0, 0
    while kills < KILLS:
        out = tmp_path / f"out-{finished}"
        manifest = out / "pack_manifest.jsonl"
        size = manifest.stat().st_size if manifest.exists() else 0
        command = [sys.executable, "-c", _PROGRAM, source, str(out)]
        process = subprocess.Popen(command, start_new_session=True)
        # Some kills come at any time of the start, most while shards are written.
        if draw.random() < 0.75:
            while process.poll() is None and not (
                manifest.exists() and manifest.stat().st_size > size
            ):
                time.sleep(0.01)
        time.sleep(draw.random() * 0.1)
        process.kill()
        killed = process.wait() == -signal.SIGKILL
        left = _content(out) if out.exists() else {}
        assert left.items() <= expected.items()
        assert len(left) >= before
        kills, finished, before = kills + killed, finished + (not killed), killed * len(left)
        assert killed or left == expected
    pack(source, out, shard_samples=2, workers=2)
    assert _content(out) == expected
