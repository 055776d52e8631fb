"""Hostile files: nothing is opened, and a file costs no more time and memory than allowed."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import psutil
import pytest

from svilm_fast.data import containers, decode_process
from svilm_fast.data.config import LimitsConfig
from svilm_fast.data.decode import decode_clip, every_frame, last_frame
from svilm_fast.data.decode_process import decode_limited, end_idle_processes
from svilm_fast.data.demux import Budget
from svilm_fast.data.errors import (
    CrashedDecoderError,
    OversizedVideoError,
    ShortClipError,
    SlowVideoError,
    TruncatedVideoError,
    VideoError,
)
from svilm_fast.data.pack import pack
from svilm_fast.data.sampling import FrameChoice

SCRIPTS = {
    "session description": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "concat": "ffconcat version 1.0\nfile {other}\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nfile://{other}\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"/>',
    "imf": '<?xml version="1.0"?><CompositionPlaylist '
    'xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"/>',
    "asf reference": "[Reference]\nRef1=http://127.0.0.1:{port}/x.asf\n",
    "rtsp": "RTSPtextRTSP://127.0.0.1:{port}/x",
    "link": "http://127.0.0.1:{port}/x.mp4",
}


@pytest.fixture
def child():
    """The process that decodes next, ready and idle."""
    child = decode_process._pool._take()
    decode_process._pool._give_back(child)
    return psutil.Process(child.pid)


def _peak(process):
    """The most memory that a process ever held, bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


@pytest.mark.parametrize("kind", SCRIPTS)
def test_scripts_and_playlists_are_refused_at_once(kind, tmp_path, videos):
    (tmp_path / "other.mp4").write_bytes(videos[0])
    data = SCRIPTS[kind].format(port=45678, other=tmp_path / "other.mp4").encode()
    for decode in (decode_clip, decode_limited):
        with pytest.raises(VideoError, match="not a video file of an allowed kind"):
            decode(data, every_frame)


@pytest.mark.parametrize("kind", SCRIPTS)
def test_a_script_that_passes_for_a_video_is_not_followed(kind, tmp_path, videos, monkeypatch):
    (tmp_path / "other.mp4").write_bytes(videos[0])
    data = SCRIPTS[kind].format(port=45678, other=tmp_path / "other.mp4").encode()
    for container in containers.CONTAINERS:
        monkeypatch.setattr(containers, "sniff", lambda data, found=container: found)
        with pytest.raises(VideoError):
            decode_clip(data, every_frame)


def test_no_socket_is_open_while_a_session_description_is_packed(tmp_path, videos):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    (tmp_path / "bad.mp4").write_text(SCRIPTS["session description"].format(port=port))
    (tmp_path / "good.mp4").write_bytes(videos[0])
    for name in ("bad", "good"):
        (tmp_path / f"{name}.txt").write_text("A red dog.")
    seen = []
    done = threading.Event()

    def watch():
        while not done.wait(0.002):
            seen.append(f":{port:04X} " in Path("/proc/net/udp").read_text())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        report = pack(str(tmp_path), tmp_path / "out")
    finally:
        done.set()
        watcher.join()
    assert len(seen) > 1
    assert not any(seen)
    assert report.written == 1
    assert [skip.sample for skip in report.refused] == ["bad.mp4"]


def test_the_process_can_open_nothing_and_takes_no_signals(child):
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        assert resource.prlimit(child.pid, limit) == (0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        child.send_signal(number)
    time.sleep(0.05)
    assert child.is_running()
    assert child.status() != psutil.STATUS_ZOMBIE


def test_frames_and_errors_are_those_of_the_calling_process(videos, make_video, make_ramp, odd):
    varying = odd.encode(make_ramp(12), "matroska", times=[*range(10), 40, 80])
    for data in (videos[1], varying):
        here, there = (decode(data, every_frame) for decode in (decode_clip, decode_limited))
        assert np.array_equal(here.frames, there.frames)
        assert np.array_equal(here.index, there.index)
        assert (here.total, here.fps, here.source_size) == (
            there.total,
            there.fps,
            there.source_size,
        )
        left, right = here.timeline.edges, there.timeline.edges
        assert (left is None) == (right is None) == (data is videos[1])
        assert left is None or np.array_equal(left, right)
    assert there.frames.flags.writeable
    cut = make_video(make_ramp(30), movflags="faststart")
    with pytest.raises(TruncatedVideoError, match=r"of 30 frames"):
        decode_limited(cut[: int(0.8 * len(cut))], every_frame)
    with pytest.raises(ShortClipError, match="12 frames, 20 are needed"):
        decode_limited(videos[0], FrameChoice(20, None, "skip"))


def test_a_huge_picture_is_refused_by_its_header(odd, child):
    before = _peak(child)
    with pytest.raises(VideoError, match=r"35651584 pixels allowed \(limits\.frame_pixels\)"):
        decode_limited(odd.gif_header(16_000, 16_000), every_frame)
    assert child.is_running()
    assert _peak(child) - before < 32 << 20


def test_a_stream_whose_frames_become_huge_is_refused_before_they_are_decoded(odd, monkeypatch):
    small, huge = (
        odd.encode(np.full((3, height, 4 * height // 3, 3), 90, np.uint8), "mpeg", "mpeg1video")
        for height in (48, 480)
    )
    sizes = []

    def check_size(self, width, height, check=Budget.check_size):
        sizes.append((width, height))
        check(self, width, height)

    monkeypatch.setattr(Budget, "check_size", check_size)
    assert decode_clip(small + huge, every_frame).total == 6
    assert (640, 480) in sizes
    sizes.clear()
    with pytest.raises(VideoError):
        decode_clip(small + huge, every_frame, limits=LimitsConfig(frame_pixels=64 * 48))
    assert set(sizes) == {(64, 48)}  # no frame of the larger size came out of the decoder


def test_demuxers_may_open_nothing_and_start_listed_codecs_only(videos, monkeypatch):
    given = []

    def spy(*arguments, opened=av.open, **settings):
        given.append(settings)
        return opened(*arguments, **settings)

    monkeypatch.setattr(av, "open", spy)
    decode_clip(videos[0], last_frame, limits=LimitsConfig(frame_pixels=5000))
    (settings,) = given
    assert settings["format"] == containers.MOV.demuxer
    assert settings["options"] == {
        "protocol_whitelist": "none",
        "codec_whitelist": containers.CODEC_WHITELIST,
        "max_pixels": "5000",
    }


def test_pixels_are_counted_after_their_aspect(make_ramp, odd):
    data = odd.encode(make_ramp(2), aspect=20)
    with pytest.raises(OversizedVideoError, match="800 x 32 pixels"):
        decode_clip(data, every_frame, limits=LimitsConfig(frame_pixels=10_000))


def test_memory_is_limited_while_a_file_is_decoded(odd, videos):
    data = odd.gif_header(4000, 4000)
    assert decode_limited(data, every_frame).frames.shape == (1, 4000, 4000, 3)
    with pytest.raises(OversizedVideoError, match=r"33554432 bytes .*limits\.memory_bytes"):
        decode_limited(data, every_frame, limits=LimitsConfig(memory_bytes=32 << 20))
    assert decode_limited(videos[0], last_frame).total == 12


def test_time_is_limited_between_packets(videos):
    with pytest.raises(SlowVideoError, match=r"1e-06 s allowed \(limits\.decode_s"):
        decode_clip(videos[0], last_frame, limits=LimitsConfig(decode_s=1e-6))
    with pytest.raises(SlowVideoError):
        decode_limited(videos[0], last_frame, seconds=1e-6)


def test_a_decoder_that_hangs_is_ended_and_replaced(videos, child, monkeypatch):
    monkeypatch.setattr(decode_process, "_GRACE_S", 0.1)
    child.suspend()
    with pytest.raises(SlowVideoError, match=r"0\.1 s allowed"):
        decode_limited(videos[0], last_frame, seconds=0.1)
    assert not child.is_running()
    assert decode_limited(videos[0], last_frame, seconds=60).total == 12


def test_a_decoder_that_hangs_while_it_takes_the_file_is_ended(videos, child, monkeypatch):
    monkeypatch.setattr(decode_process, "_GRACE_S", 0.1)
    child.suspend()
    with pytest.raises(SlowVideoError, match=r"0\.1 s allowed"):  # more than a pipe holds
        decode_limited(videos[0] + bytes(2_000_000), last_frame, seconds=0.1)
    assert not child.is_running()


def test_a_decoder_that_hangs_amid_its_frames_is_ended(videos, child, monkeypatch):
    monkeypatch.setattr(decode_process, "_GRACE_S", 0.1)
    answer = {"shape": [1, 8, 8, 3]}

    def half_an_answer(self, size):
        child.suspend()
        return json.dumps(answer).encode()

    monkeypatch.setattr(Connection, "recv_bytes", half_an_answer)
    monkeypatch.setattr(Connection, "send", lambda self, value: None)
    monkeypatch.setattr(Connection, "send_bytes", lambda self, value: None)
    with pytest.raises(SlowVideoError, match=r"0\.1 s allowed"):
        decode_limited(videos[0], last_frame, seconds=0.1)


def test_a_decoder_that_dies_costs_its_file_only(videos, child):
    child.suspend()
    killer = threading.Timer(0.1, child.kill)
    killer.start()
    with pytest.raises(CrashedDecoderError, match=r"died \(signal 9\)"):
        decode_limited(videos[0], last_frame)
    killer.join()
    assert decode_limited(videos[0], last_frame).total == 12


def test_a_process_that_was_killed_while_idle_is_replaced(videos, child):
    child.kill()
    while child.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert decode_limited(videos[0], last_frame).total == 12


def test_a_loaders_worker_decodes_itself_under_the_limit(videos, odd, monkeypatch):
    daemon = SimpleNamespace(daemon=True)
    monkeypatch.setattr(multiprocessing, "current_process", lambda: daemon)
    monkeypatch.setattr(decode_process, "_pool", None)
    before = resource.getrlimit(resource.RLIMIT_AS)
    assert decode_limited(videos[0], last_frame).total == 12
    with pytest.raises(OversizedVideoError, match="memory_bytes"):
        decode_limited(
            odd.gif_header(4000, 4000), every_frame, limits=LimitsConfig(memory_bytes=32 << 20)
        )
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_process_that_loads_alone_hands_files_to_a_child(make_dataset, monkeypatch):
    def never(*arguments, **settings):
        raise AssertionError("decoded in the training process")

    monkeypatch.setattr(decode_process, "decode_clip", never)
    dataset = make_dataset(3, workers=0)
    assert dataset.batch([0, 1, 2]).frames.shape[:2] == (3, 4)


def test_no_process_stays_behind(videos, tmp_path):
    (tmp_path / "a.mp4").write_bytes(videos[0])
    program = (
        "import os, signal, sys\n"
        "from svilm_fast.data.decode import last_frame\n"
        "from svilm_fast.data import decode_process\n"
        "decode_process.decode_limited(open('a.mp4', 'rb').read(), last_frame)\n"
        "print(*(child.pid for child in decode_process._pool._idle), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL) if sys.argv[1] == 'killed' else None\n"
    )
    pids = []
    for how, status in (("leaves", 0), ("killed", -signal.SIGKILL)):
        done = subprocess.run(
            [sys.executable, "-c", program, how],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": str(Path(decode_process.__file__).parents[2])},
        )
        assert done.returncode == status, done.stderr
        pids += [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def _decode_and_return(data):
    decode_limited(data, last_frame)


def test_a_process_of_multiprocessing_ends_after_it_has_decoded(videos):
    process = multiprocessing.get_context("spawn").Process(
        target=_decode_and_return, args=(videos[0],)
    )
    process.start()
    try:
        process.join(60)
        assert process.exitcode == 0
    finally:
        for left in psutil.Process(process.pid).children() if process.is_alive() else []:
            left.kill()
        process.kill()


def test_idle_processes_are_ended_on_request(child):
    end_idle_processes()
    assert not child.is_running()
