"""Decoding of files that may be hostile: in a process with limits of time and memory.

The workers of a loader are such processes already: there, the memory is limited for as long as a
file is decoded. Any other process hands the file to a child that decodes one file after the other.
The child can open no file and no socket. It answers in JSON and plain bytes, so that nothing that
it says is unpickled, and it is replaced when it takes too long or dies.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import multiprocessing
import os
import pkgutil
import resource
import signal
import threading
from collections.abc import Generator, Iterator
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np

from svilm_fast.core.messages import single_line
from svilm_fast.data import errors
from svilm_fast.data.config import LimitsConfig
from svilm_fast.data.decode import Choose, DecodedClip, FrameReader, FrameSink, decode_clip
from svilm_fast.data.decoders import reader_of
from svilm_fast.data.demux import too_slow
from svilm_fast.data.errors import CrashedDecoderError, DataError, SlowVideoError
from svilm_fast.data.main_module import main_module_hidden
from svilm_fast.data.palettes.decode import decode_palettes
from svilm_fast.data.palettes.format import is_compressed
from svilm_fast.data.sampling import FrameChoice
from svilm_fast.data.segments import InSegment
from svilm_fast.data.timeline import Timeline

_GRACE_S = 10.0  # beyond its time a file's decoding is ended from outside
_START_S = 120.0  # for the child's start on a busy machine
_ANSWER_BYTES = 1 << 24
# A GIF of one pixel whose three frames last 0.1, 0.5 and 0.1 s.
_PIXEL = b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff" + b"".join(
    b"!\xf9\4\0%c\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0" % hundredths for hundredths in (10, 50, 10)
)


def decode_limited(
    data: bytes,
    choose: Choose,
    *,
    short_side: int | None = None,
    limits: LimitsConfig | None = None,
    seconds: float | None = None,
    decoder: str = "auto",
) -> DecodedClip:
    """`decode_clip` under limits of time and memory, with the same result and errors.

    `decoder` is the library's name, as `data.decoder`. `choose` must be picklable and come from
    `svilm_fast.data`. Raises also SlowVideoError when the file exceeds its time, and
    CrashedDecoderError when it ends the decoding process.
    """
    limits = limits or LimitsConfig()
    if is_compressed(data):  # no library decodes it, and its size is known before it is decoded
        return decode_palettes(data, choose, short_side=short_side, limits=limits)
    if multiprocessing.current_process().daemon:  # a loader's worker; it may have no children
        with memory_limit(limits.memory_bytes):
            return decode_clip(
                data,
                choose,
                short_side=short_side,
                limits=limits,
                seconds=seconds,
                reader=reader_of(decoder),
            )
    reader_of(decoder)  # an error says here what is missing, not in the child
    return _pool.decode(data, choose, short_side, limits, seconds, decoder)


def stream_limited(
    data: bytes,
    choose: Choose,
    *,
    short_side: int | None = None,
    limits: LimitsConfig | None = None,
    chunk: int = 32,
) -> Generator[np.ndarray, None, DecodedClip]:
    """Yield the chosen frames of a video in order, up to `chunk` at a time: uint8 [n, h, w, 3].

    Every frame is decoded once, in another process under limits of time and memory, and no more
    than a few chunks are in memory. The generator returns a DecodedClip without frames. The time
    that the caller takes for a chunk does not count. `choose` and errors as in `decode_limited`;
    frames that were yielded before an error belong to the part that could be decoded.
    """
    return _pool.stream(data, choose, short_side, limits or LimitsConfig(), chunk)


@contextlib.contextmanager
def memory_limit(extra: int, used: int | None = None) -> Iterator[None]:
    """Let this process take at most `extra` bytes of address space beyond `used` (default: now)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    top = min(
        (address_space() if used is None else used) + extra,
        *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY),
        2**62,
    )
    resource.setrlimit(resource.RLIMIT_AS, (top, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def address_space() -> int:
    """Bytes of this process's address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


class _Child:
    """The parent's end of a decoding process."""

    def __init__(self, decoder: str) -> None:
        self.decoder = decoder
        # spawn: a fork of a process that has decoded or trained may hang (PyAV 1962).
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, decoder), daemon=True)
        with main_module_hidden():
            self._process.start()
        # Every kind of process does this at its end, before it waits for its children. A child of
        # `multiprocessing` runs no `atexit`, and the SIGTERM sent next is ignored.
        self._kill = Finalize(self, self._process.kill, exitpriority=0)
        theirs.close()
        if not self._connection.poll(_START_S) or not self._greeted():
            self.end()
            raise CrashedDecoderError("the video decoding process cannot be started")

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def _greeted(self) -> bool:
        try:
            return self._connection.recv_bytes(_ANSWER_BYTES) == b"ready"
        except (EOFError, OSError):
            return False

    def waits(self) -> bool:
        """Whether it is alive: an idle process has nothing to say, a dead one's end is readable."""
        return not self._connection.poll(0)

    def end(self) -> str:
        """End the process at once; how it ended."""
        self._kill()
        self._process.join()
        code = self._process.exitcode or 0
        self._connection.close()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def decode(
        self,
        data: bytes,
        choose: Choose,
        short_side: int | None,
        limits: LimitsConfig,
        time_s: float,
    ) -> DecodedClip:
        """Raises TimeoutError, with the process killed, unless all is over in time."""
        overdue = threading.Event()

        def end_it() -> None:
            overdue.set()
            self._process.kill()

        # A process that stops may do so while it takes the file, or amid its frames.
        watchdog = threading.Timer(time_s + _GRACE_S, end_it)
        watchdog.daemon = True
        watchdog.start()
        try:
            clip = self._exchange(data, choose, short_side, limits, time_s)
        except (EOFError, OSError):
            if overdue.is_set():
                raise TimeoutError from None
            raise
        finally:
            watchdog.cancel()
            watchdog.join()
        if overdue.is_set():  # it came too late, and the process is gone
            raise TimeoutError
        return clip

    def stream(
        self,
        data: bytes,
        choose: Choose,
        short_side: int | None,
        limits: LimitsConfig,
        time_s: float,
        chunk: int,
    ) -> Generator[np.ndarray, None, DecodedClip]:
        """Yield the frames in chunks. Raises TimeoutError if the process is silent for too long."""
        connection = self._connection
        connection.send((choose, short_side, limits, time_s, chunk))
        connection.send_bytes(data)
        while True:
            if not connection.poll(time_s + _GRACE_S):
                raise TimeoutError
            answer = json.loads(connection.recv_bytes(_ANSWER_BYTES))
            if "chunk" not in answer:
                return self._result(answer, np.empty((0, 0, 0, 3), np.uint8))
            frames = np.empty(_shape(answer["chunk"], limits), dtype=np.uint8)
            connection.recv_bytes_into(frames.data.cast("B"))
            yield frames

    def _exchange(
        self,
        data: bytes,
        choose: Choose,
        short_side: int | None,
        limits: LimitsConfig,
        time_s: float,
    ) -> DecodedClip:
        connection = self._connection
        connection.send((choose, short_side, limits, time_s, 0))
        connection.send_bytes(data)
        answer = json.loads(connection.recv_bytes(_ANSWER_BYTES))
        if "error" in answer:
            raise _error_of(*answer["error"])
        frames = np.empty(_shape(answer["shape"], limits), dtype=np.uint8)
        connection.recv_bytes_into(frames.data.cast("B"))
        return self._result(answer, frames)

    @staticmethod
    def _result(answer: dict[str, Any], frames: np.ndarray) -> DecodedClip:
        if "error" in answer:
            raise _error_of(*answer["error"])
        edges = answer["edges"]
        timeline = Timeline(
            int(answer["total"]),
            None if edges is None else np.array(edges, dtype=np.float64),
            float(answer["period"]),
        )
        width, height = answer["size"]
        index = np.array(answer["index"], dtype=np.int64)
        fallback = answer["fallback"]
        if fallback is not None:
            fallback = single_line(str(fallback))
        fps = float(answer["fps"])
        return DecodedClip(frames, index, timeline, fps, (width, height), fallback)


class _Pool:
    """Decoding processes; as many as there are threads that decode at the same time."""

    def __init__(self) -> None:
        self._idle: list[_Child] = []
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def decode(
        self,
        data: bytes,
        choose: Choose,
        short_side: int | None,
        limits: LimitsConfig,
        seconds: float | None,
        decoder: str,
    ) -> DecodedClip:
        time_s = limits.decode_s if seconds is None else seconds
        child = self._take(decoder)
        try:
            clip = child.decode(data, choose, short_side, limits, time_s)
        except DataError:
            self._give_back(child)
            raise
        except TimeoutError:
            child.end()
            raise SlowVideoError(too_slow(time_s)) from None
        except (EOFError, OSError, ValueError, KeyError, TypeError):  # it died, or answers nonsense
            how = child.end()
            raise CrashedDecoderError(f"the process that decoded the file died ({how})") from None
        except BaseException:
            child.end()
            raise
        self._give_back(child)
        return clip

    def stream(
        self,
        data: bytes,
        choose: Choose,
        short_side: int | None,
        limits: LimitsConfig,
        chunk: int,
    ) -> Generator[np.ndarray, None, DecodedClip]:
        child = self._take()
        try:
            clip = yield from child.stream(data, choose, short_side, limits, limits.decode_s, chunk)
        except DataError:
            self._give_back(child)
            raise
        except TimeoutError:
            child.end()
            raise SlowVideoError(too_slow(limits.decode_s)) from None
        except (EOFError, OSError, ValueError, KeyError, TypeError):
            how = child.end()
            raise CrashedDecoderError(f"the process that decoded the file died ({how})") from None
        except BaseException:  # also where the caller stops before the last frame
            child.end()
            raise
        self._give_back(child)
        return clip

    def _take(self, decoder: str = "auto") -> _Child:
        with self._lock:
            if self._owner != os.getpid():  # after a fork they are the parent's
                self._idle, self._owner = [], os.getpid()
            child = next((each for each in self._idle[::-1] if each.decoder == decoder), None)
            if child is not None:
                self._idle.remove(child)
        if child is not None and child.waits():
            return child
        if child is not None:
            child.end()
        return _Child(decoder)

    def _give_back(self, child: _Child) -> None:
        with self._lock:
            self._idle.append(child)

    def end_idle(self) -> None:
        """End the processes that decode nothing now."""
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle if self._owner == os.getpid() else []:
            child.end()


_pool = _Pool()
end_idle_processes = _pool.end_idle


def _shape(shape: list[int], limits: LimitsConfig) -> tuple[int, ...]:
    count, height, width, channels = (int(size) for size in shape)
    if min(count, height, width) < 1 or channels != 3:
        raise OSError("bad answer")
    if math.prod((count, height, width, channels)) > limits.memory_bytes:
        raise OSError("bad answer")
    return count, height, width, channels


def _error_of(name: str, message: str) -> Exception:
    kind = getattr(errors, str(name), None)
    if isinstance(kind, type) and issubclass(kind, DataError):
        return kind(message)
    return RuntimeError(f"{name}: {message}")


def _serve(connection: Connection, decoder: str) -> None:
    """The child: decode what comes until the parent is gone."""
    import av

    # PyAV and NumPy import some of their modules late, when a call first needs them: now is the
    # last moment.
    decode_clip(_PIXEL, InSegment(FrameChoice(2, None), None))
    np.median(np.zeros(3))
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if module.name not in ("av.__main__", "av.datasets"):
            importlib.import_module(module.name)
    reader = reader_of(decoder)
    if reader is not None:
        with contextlib.suppress(DataError):  # it opens what it needs at its first file
            decode_clip(_PIXEL, FrameChoice(2, None), reader=reader)
    # The parent alone reacts to signals; when it ends, the connection does.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    used = address_space()
    # From here on it can open nothing and write no file, not even a memory dump.
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))
    try:
        connection.send_bytes(b"ready")
        while True:
            choose, short_side, limits, seconds, chunk = connection.recv()
            data = connection.recv_bytes()
            sink = _ChunkSender(connection, chunk) if chunk else None
            answer, frames = _answer(data, choose, short_side, limits, seconds, used, reader, sink)
            if sink is not None:
                sink.flush()
            connection.send_bytes(json.dumps(answer).encode())
            if frames is not None and sink is None:
                connection.send_bytes(frames.data.cast("B"))
            del data, frames, sink
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


class _ChunkSender:
    """Sends the frames of a stream to the parent, several at a time."""

    def __init__(self, connection: Connection, chunk: int) -> None:
        self._connection, self._chunk = connection, chunk
        self._frames: list[np.ndarray] = []

    def __call__(self, image: np.ndarray, times: int) -> None:
        for _ in range(times):
            self._frames.append(image)
            if len(self._frames) == self._chunk:
                self.flush()

    def flush(self) -> None:
        """Send what is held."""
        if self._frames:
            frames, self._frames = np.stack(self._frames), []
            self._connection.send_bytes(json.dumps({"chunk": frames.shape}).encode())
            self._connection.send_bytes(frames.data.cast("B"))


def _answer(
    data: bytes,
    choose: Choose,
    short_side: int | None,
    limits: LimitsConfig,
    seconds: float,
    used: int,
    reader: FrameReader | None,
    sink: FrameSink | None = None,
) -> tuple[dict[str, Any], np.ndarray | None]:
    try:
        with memory_limit(limits.memory_bytes, used):
            clip = decode_clip(
                data,
                choose,
                short_side=short_side,
                limits=limits,
                seconds=seconds,
                reader=None if sink else reader,
                sink=sink,
            )
    except Exception as error:
        return {"error": [type(error).__name__, single_line(error)]}, None
    edges = clip.timeline.edges
    frames = np.ascontiguousarray(clip.frames)
    return {
        "shape": frames.shape,
        "index": clip.index.tolist(),
        "total": clip.total,
        "edges": None if edges is None else edges.tolist(),
        "period": clip.timeline.period,
        "fps": clip.fps,
        "size": clip.source_size,
        "fallback": clip.fallback,
    }, frames
