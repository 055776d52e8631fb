"""Bad samples are replaced and counted, the same on every run; workers fail with a name."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from itertools import chain, islice

import psutil
import pytest
import torch

from svilm_fast.data import pipeline
from svilm_fast.data.assemble import Assembler, Request
from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.errors import DataError, SkipBudgetError, WorkerError
from svilm_fast.data.loader import build_loader, made_by_workers, stand_ins
from svilm_fast.data.skips import Skip, SkipReport
from tests.faults.samples import FailingRead

BROKEN = {3: {"mp4": b"broken"}, 8: {"mp4": b""}}


class SlowClips:
    """Reads every video `seconds` late, also in a worker."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def reading(self, read):
        self.read = read
        return self

    def __call__(self, index: int) -> bytes:
        time.sleep(self.seconds)
        return self.read(index)


def _batches(dataset, steps, *, state=None, batch_size=4, rank=0, world_size=1):
    loader = build_loader(
        dataset.config,
        dataset,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        seed=5,
        state=state,
    )
    with loader:
        return list(islice(loader.forever(), steps)), loader


def test_broken_samples_are_replaced_and_batches_stay_full(make_dataset):
    dataset = make_dataset(20, replace=BROKEN)
    batches, loader = _batches(dataset, 10)
    assert all(len(batch) == len(set(batch.ids)) == 4 for batch in batches)
    seen = set(chain.from_iterable(batch.ids for batch in batches))
    assert seen == set(dataset.ids) - {"s0003", "s0008"}
    assert loader.skips.counts() == {"undecodable video": 1, "no frames": 1}
    assert "s0003" in loader.skips.skipped
    assert "skipped 2 of 20 samples" in loader.skips.summary()


def test_replacements_are_the_same_after_resume_and_on_more_ranks(make_dataset):
    dataset = make_dataset(20, replace=BROKEN)
    whole, _ = _batches(dataset, 9)
    _, loader = _batches(dataset, 3)
    resumed, again = _batches(dataset, 6, state=loader.state_dict())
    for left, right in zip(whole[3:], resumed):
        assert left.ids == right.ids
        assert torch.equal(left.frames, right.frames)
    assert set(again.skips.skipped) == {"s0003", "s0008"}
    parts = [_batches(dataset, 9, batch_size=2, rank=r, world_size=2)[0] for r in range(2)]
    assert [left.ids + right.ids for left, right in zip(*parts)] == [b.ids for b in whole]


def test_stand_ins_avoid_the_batch_and_each_other():
    for total, size in ((20, 4), (23, 4), (9, 8)):
        for start in range(0, total - size + 1, size):
            first = [next(stand_ins(p, start, size, total)) for p in range(start, start + size)]
            if total % size == 0:
                assert len(set(first)) == size
                assert not set(first) & set(range(start, start + size))
            assert len(set(stand_ins(start, start, size, total))) == total - 1


def test_evaluation_leaves_broken_samples_out(make_dataset):
    dataset = make_dataset(10, replace=BROKEN, train=False)
    loader = build_loader(dataset.config, dataset, batch_size=4)
    ids = list(chain.from_iterable(batch.ids for batch in loader))
    assert ids == [name for name in dataset.ids if name not in ("s0003", "s0008")]
    assert len(loader.skips.skipped) == 2


def test_the_budget_ends_a_run_that_loses_too_much(make_dataset):
    dataset = make_dataset(20, replace=BROKEN, skips={"fraction": 0.01, "always_allowed": 1})
    with pytest.raises(SkipBudgetError, match=r"2 of \d+ samples skipped .*data\.skips"):
        _batches(dataset, 10)


def test_the_budget_counts_what_listing_refuses(make_dataset):
    replace = {n: {"json": b"{"} for n in range(3)}
    with pytest.raises(SkipBudgetError, match=r"3 of 20 .*bad sample json"):
        make_dataset(20, replace=replace, skips={"always_allowed": 2})
    assert len(make_dataset(20, replace=replace)) == 17


def test_when_everything_is_broken_the_error_names_a_sample(make_dataset):
    dataset = make_dataset(10, replace={n: {"mp4": b"x"} for n in range(10)})
    with pytest.raises(WorkerError, match=r"8 samples in a row .*'s000\d'"):
        _batches(dataset, 1)


def test_clips_that_are_decoded_from_their_first_frame_are_counted(make_dataset, odd, make_ramp):
    replace = {3: {"mp4": odd.encode(make_ramp(12, 48, 64), "avi", "mpeg4")}}
    _, loader = _batches(make_dataset(8, replace=replace), 2)
    assert loader.skips.notes == {"clips decoded from their first frame (codec mpeg4)": 1}


def test_short_clips_are_repeated_and_noted_or_skipped(make_dataset, make_video, make_ramp):
    replace = {2: {"mp4": make_video(make_ramp(3))}}
    batches, loader = _batches(make_dataset(8, replace=replace), 2)
    assert loader.skips.notes == {"clips with repeated frames": 1}
    batch = next(batch for batch in batches if "s0002" in batch.ids)
    assert len(set(batch.frame_index[batch.ids.index("s0002")].tolist())) == 3
    batches, loader = _batches(make_dataset(8, replace=replace, short_clip="skip"), 2)
    assert loader.skips.counts() == {"short clip": 1}


def test_a_shard_that_changed_under_the_index_is_a_counted_skip(make_dataset):
    dataset = make_dataset(8)
    place = dataset.table[1].video
    with open(place.path, "r+b") as stream:
        stream.seek(place.entry.offset + 40)
        stream.write(b"\xff\xff\xff\xff")
    _, loader = _batches(dataset, 2)
    assert loader.skips.counts() == {"checksum": 1}


def test_a_report_survives_its_state():
    report = SkipReport(seen=5)
    report.add(Skip.of("a", DataError("bad\nthing")))
    report.add(Skip.of("a", DataError("again")))
    report.notes["x"] += 2
    other = SkipReport()
    other.load_state_dict(report.state_dict())
    assert other == report
    assert other.summary() == "skipped 1 of 5 samples (1 x data); 2 x x"


def test_an_unexpected_error_names_the_sample(make_dataset):
    dataset = make_dataset(8)
    dataset.table.read_video = FailingRead(dataset.table.read_video, 6)
    with pytest.raises(WorkerError, match="'s0006': unexpected ValueError"):
        _batches(dataset, 2)


def test_workers_give_the_same_batches_and_errors_with_names(make_dataset):
    dataset = make_dataset(20, replace=BROKEN)
    expected, here = _batches(dataset, 6)
    dataset.config.workers = 2
    got, loader = _batches(dataset, 6)
    for left, right in zip(expected, got):
        assert left.ids == right.ids
        assert torch.equal(left.frames, right.frames)
        assert not right.frames.is_shared()  # of all units of a batch, shared memory is too small
    assert loader.skips == here.skips
    assert loader.state_dict() == here.state_dict()
    dataset.table.read_video = FailingRead(dataset.table.read_video, 6)
    with pytest.raises(WorkerError, match="'s0006': unexpected ValueError") as caught:
        _batches(dataset, 6)
    assert "Traceback" in caught.value.__notes__[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "message"),
    [(signal.SIGKILL, "killed by signal 9"), (signal.SIGSTOP, r"longer than data\.timeout_s=3 s")],
)
def test_a_dead_or_hanging_worker_names_the_sample(make_dataset, sent, message):
    dataset = make_dataset(20, workers=1, prefetch=1, timeout_s=3)
    before = {child.pid for child in multiprocessing.active_children()}
    loader = build_loader(dataset.config, dataset, batch_size=4)
    stream = loader.forever()
    next(stream)
    workers = [c.pid for c in multiprocessing.active_children() if c.pid not in before]
    for pid in workers:
        os.kill(pid, sent)
    with pytest.raises(WorkerError, match=rf"({message}).*(sample|samples) 's00"):
        list(islice(stream, 10))
    # Ended by force: a stopped worker would be waited for, 10 s beyond the timeout.
    assert not any(map(psutil.pid_exists, workers))
    loader.close()


def test_an_error_of_the_requests_is_no_fault_of_a_worker(make_dataset):
    dataset = make_dataset(20, workers=1)

    def requests():
        yield Request(0, [[0], [1]])
        raise RuntimeError("out of requests")

    made = made_by_workers(Assembler(dataset, 0, 1), requests(), dataset.config, False)
    with pytest.raises(RuntimeError, match=r"^out of requests$"):
        list(made)


@pytest.mark.slow
def test_the_time_limit_holds_for_a_clip_not_for_the_batch(make_dataset):
    slow = SlowClips(0.4)
    dataset = make_dataset(16, workers=1, timeout_s=3)
    dataset.table.read_video = slow.reading(dataset.table.read_video)
    batches, _ = _batches(dataset, 2, batch_size=8)  # 3.2 s each
    assert [len(batch) for batch in batches] == [8, 8]


def test_units_join_to_the_batch_of_one_unit(make_dataset):
    dataset = make_dataset(16)
    whole = dataset.batch([3, 1, 4, 1, 5], seed=1)
    parts = [dataset.batch(rows, seed=1) for rows in ([3, 1], [4, 1], [5])]
    joined = ClipBatch.joined(pickle.loads(pickle.dumps(parts)))
    for field in dataclasses.fields(ClipBatch):
        left, right = getattr(whole, field.name), getattr(joined, field.name)
        same = torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right
        assert same, field.name


def test_too_little_shared_memory_is_said_at_the_start(make_dataset, monkeypatch):
    dataset = make_dataset(16, workers=2, unit=4)
    needed = 2 * 2 * 4 * dataset.frames * dataset.image_size**2 * 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(pipeline, "SHARED_MEMORY", str(dataset.config.train))
    for free, fits in ((3 * needed, True), (3 * needed - 1, False)):
        usage = shutil._ntuple_diskusage(free, 0, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        if fits:
            build_loader(dataset.config, dataset, batch_size=4)
            continue
        with pytest.raises(DataError, match=r"2 workers for each of 3 ranks .* lower data"):
            build_loader(dataset.config, dataset, batch_size=4)


def test_shared_memory_of_an_evaluation_is_checked_before_training(make_dataset, monkeypatch):
    dataset = make_dataset(16, workers=2, unit=4)
    needed = 2 * pipeline.shared_bytes(dataset.config, dataset)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setattr(pipeline, "SHARED_MEMORY", str(dataset.config.train))

    def leave(free):
        usage = shutil._ntuple_diskusage(free, 0, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    leave(needed)
    with pipeline.shared_memory_checked(dataset.config, dataset, [dataset, dataset]):
        build_loader(dataset.config, dataset, batch_size=4)
        leave(1)  # training and other ranks fill it
        build_loader(dataset.config, dataset, batch_size=4)
    with pytest.raises(DataError, match="lower data"):
        build_loader(dataset.config, dataset, batch_size=4)
    leave(needed - 1)
    with (
        pytest.raises(DataError, match="lower data"),
        pipeline.shared_memory_checked(dataset.config, dataset, [dataset]),
    ):
        raise AssertionError("opened")


@pytest.mark.slow
def test_workers_do_not_run_the_main_script_again(make_shards, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "print('started')\n"
        "from svilm_fast.data.config import DataConfig\n"
        "from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer\n"
        "from svilm_fast.data.loader import build_loader\n"
        f"config = DataConfig(train={str(make_shards(8))!r}, workers=1)\n"
        "tokenizer = prepare_tokenizer(config)\n"
        "data = ClipDataset(config, 'train', tokenizer, True, frames=4, image_size=16)\n"
        "with build_loader(config, data, batch_size=4) as loader:\n"
        "    print(sum(len(batch) for batch in loader), __file__)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["started", "8", str(script)]
