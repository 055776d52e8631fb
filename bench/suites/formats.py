"""Reading a million rows of public annotation files, as `svilm data convert` does."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from svilm_fast.bench.errors import WrongResult
from svilm_fast.bench.suites.benchmark import Prepared
from svilm_fast.data.formats import reader_of

ROWS = 1_000_000  # the aim is 2 s of CPU time
_CAPTIONS = 20  # of a video of MSRVTT_data.json


def _msrvtt_list() -> Iterator[str]:
    yield "key,vid_key,video_id,sentence\n"
    yield from (f"ret{n},msr{n},video{n},a man in shirt {n} walks a dog\n" for n in range(ROWS))


def _msrvtt_json() -> Iterator[str]:
    videos = [{"video_id": f"video{n}"} for n in range(ROWS // _CAPTIONS)]
    yield json.dumps({"videos": videos})[:-1] + ', "sentences": ['
    for n in range(ROWS):
        caption = f"a man in shirt {n} walks a dog"
        sentence = {"sen_id": n, "video_id": f"video{n // _CAPTIONS}", "caption": caption}
        yield json.dumps(sentence) + (", " if n < ROWS - 1 else "]}")


# Case: format, file name, text, rows that the reader gives.
FILES: dict[str, tuple[str, str, Callable[[], Iterator[str]], int]] = {
    "msrvtt_list": ("msrvtt", "test.csv", _msrvtt_list, ROWS),
    "msrvtt_json": ("msrvtt", "MSRVTT_data.json", _msrvtt_json, ROWS // _CAPTIONS),
}


def prepare(case: str) -> Prepared:
    """Write the file of a case to a temporary folder; a call reads it."""
    name, file_name, text, rows = FILES[case]
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / file_name
    with path.open("w") as file:
        file.writelines(text())
    reader = reader_of(name)

    def call() -> int:
        # The folder is removed with this function.
        assert folder.name
        return sum(1 for _ in reader([str(path)], Counter()))

    def verify() -> float:
        found = call()
        if found != rows:
            raise WrongResult(f"{found} of {rows} rows were read", abs(found - rows) / rows)
        return 0.0

    started = time.process_time()
    call()
    facts = {"cpu_seconds": round(time.process_time() - started, 2)}
    return Prepared(call=call, verify=verify, units={"rows": float(ROWS)}, facts=facts)
