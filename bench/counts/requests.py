"""Valgrind's client requests from Python: start and stop counting around a few calls.

Counting from the start of the process would spend a minute on imports. The requests in `torch._C`
only toggle collection; these also switch the instrumentation, which makes imports slow.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# From valgrind.h for x86-64: the request's array is in rax, the default answer in rdx. Valgrind
# recognises four rotations of rdi that cancel out. Outside Valgrind the default is returned.
_CODE = bytes.fromhex("4889f8 4889f2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db 4889d0 c3")
_RUNNING_ON_VALGRIND = 0x1001
_CALLGRIND = ord("C") << 24 | ord("T") << 16
_ZERO_STATS, _DUMP_STATS_AT, _START, _STOP = (_CALLGRIND + n for n in (1, 3, 4, 5))


class Requests:
    """Sends client requests to the Valgrind that runs this process."""

    def __init__(self) -> None:
        if not supported():
            raise RuntimeError("client requests are written for x86-64 Linux only")
        protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=protection)
        self._page.write(_CODE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        signature = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64)
        self._call = signature(address)

    def under_valgrind(self) -> bool:
        """Whether this process runs under Valgrind."""
        return bool(self._request(_RUNNING_ON_VALGRIND))

    @contextmanager
    def counting(self, name: str) -> Iterator[None]:
        """Count the instructions of the block and dump them under `name`."""
        text = ctypes.create_string_buffer(name.encode())
        self._request(_START)
        self._request(_ZERO_STATS)
        yield
        self._request(_DUMP_STATS_AT, ctypes.addressof(text))
        self._request(_STOP)

    def _request(self, code: int, argument: int = 0) -> int:
        array = (ctypes.c_uint64 * 6)(code, argument)
        return int(self._call(ctypes.addressof(array), 0))


def supported() -> bool:
    """Whether this machine runs the code above."""
    return platform.machine() == "x86_64" and platform.system() == "Linux"
