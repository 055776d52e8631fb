"""A small unit of off-line work for tests: two files of given content; slow where asked."""

from __future__ import annotations

import os
import time
from typing import Any

from svilm_fast.data.errors import DataError
from svilm_fast.data.offline.engines import worker_number
from svilm_fast.data.offline.outputs import Outputs
from svilm_fast.data.offline.work import Unit


class _OddError(Exception):
    """Cannot be made of its arguments, so no other process can receive it."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def write_two(name: str, content: Any, settings: Any, out: Outputs) -> dict[str, Any]:
    """`name.index` and `name`; content may ask for an error or the end of the process."""
    if content == "die":
        os._exit(9)
    if content == "refuse":
        raise DataError(f"{name} is refused")
    if content == "odd":
        raise _OddError("an", "odd error")
    time.sleep(settings.get("sleep_s", 0))
    out.path(f"{name}.index").write_bytes(b"index of " + content.encode())
    out.path(name).write_bytes(content.encode() * settings.get("times", 1000))
    time.sleep(settings.get("sleep_s", 0))
    return {"bytes": len(content)}


def units(count: int) -> list[Unit]:
    return [Unit(f"u{n}.bin", f"content {n} ", {"content": n}) for n in range(count)]


def tell_worker(name: str, content: Any, settings: Any, out: Outputs) -> dict[str, Any]:
    return {"worker": worker_number()}
