"""A million rows of public annotation files and of our own lists, read as the product does."""

from __future__ import annotations

import json
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from svilm_fast.bench.errors import WrongResult
from svilm_fast.bench.suites.benchmark import Prepared
from svilm_fast.core.collection import collection_paused
from svilm_fast.data.formats import reader_of
from svilm_fast.data.lists import read_list

ROWS = 1_000_000
LIMIT_S = 2.0
"""CPU seconds that reading ROWS may take."""
_EACH = 20  # captions, segments or questions of a video
_CLASSES = 400

Write = Callable[[Path], None]


@dataclass(frozen=True)
class ReaderCase:
    """Files of a format by name, what the reader is given, and the rows that it yields."""

    format: str
    files: dict[str, Write]
    options: dict[str, str] = field(default_factory=dict)
    rows: int = ROWS


def _caption(n: int) -> str:
    return f"a man in shirt {n} walks a dog"


def _youtube(n: int) -> str:
    return f"-a_{n:08d}"


def _lines(head: str, line: Callable[[int], str], count: int = ROWS) -> Write:
    def write(path: Path) -> None:
        with path.open("w") as file:
            file.write(head)
            file.writelines(line(n) for n in range(count))

    return write


def _json(items: Callable[[int], Any], before: str = "[", after: str = "]", count: int = ROWS):
    """An array, or with `before` and `after` another document, around the JSON of every item."""

    def line(n: int) -> str:
        found = items(n)
        text = found if isinstance(found, str) else json.dumps(found)
        return text + (after if n == count - 1 else ", ")

    return _lines(before, line, count)


def _entry(key: str, value: Any) -> str:
    return f"{json.dumps(key)}: {json.dumps(value)}"


def _pickle(path: Path) -> None:
    """Write a dictionary of lists of lists of words by the instructions of pickle's protocol 2."""
    with path.open("wb") as file:
        file.write(b"\x80\x02}")  # protocol 2, an empty dictionary
        for video in range(ROWS // _EACH):
            file.write(b"(" + _pickled_text(f"vid{video}") + b"](")
            for n in range(_EACH):
                words = _caption(video * _EACH + n).split()
                file.write(b"](" + b"".join(map(_pickled_text, words)) + b"e")
            file.write(b"eu")  # the list of captions ends, and one item of the dictionary
        file.write(b".")


def _pickled_text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _sentence(n: int) -> dict[str, Any]:
    return {"sen_id": n, "video_id": f"video{n // _EACH}", "caption": _caption(n)}


def _segments(v: int) -> str:
    found = [{"segment": [n, n + 1.5], "label": f"class {n}"} for n in range(_EACH)]
    return _entry(_youtube(v), {"subset": "training", "duration": 120.5, "annotations": found})


def _paragraph(v: int) -> str:
    times = [[n, n + 1.5] for n in range(_EACH)]
    sentences = [_caption(n) for n in range(_EACH)]
    return _entry(
        f"v_{_youtube(v)}", {"duration": 120.5, "timestamps": times, "sentences": sentences}
    )


def _vatex(v: int) -> dict[str, Any]:
    return {
        "videoID": f"{_youtube(v)}_000000_000010",
        "enCap": [_caption(n) for n in range(_EACH)],
    }


def _question(n: int) -> dict[str, Any]:
    kind = {"video_id": f"video{n // _EACH}", "answer_type": "what"}
    return {"question": f"what does man {n} walk?", "answer": "dog", **kind}


def _hmdb51(path: Path) -> None:
    path.mkdir()
    for label in range(50):
        rows = partial(_hmdb51_line, label)
        _lines("", rows, ROWS // 50)(path / f"class{label}_test_split1.txt")


def _hmdb51_line(label: int, n: int) -> str:
    return f"clip_{label}_{n}.avi 1\n"


def _thumos(n: int) -> str:
    return f"video_test_{n // _EACH:07d}  {n % _EACH}.1 {n % _EACH}.9\n"


_VIDEOS = ROWS // _EACH
_MSRVTT_HEAD = json.dumps({"videos": [{"video_id": f"video{n}"} for n in range(_VIDEOS)]})[:-1]
_LABELS = json.dumps({f"class {n}": str(n) for n in range(_CLASSES)})
_ANSWERS = json.dumps({f"class {n}": n for n in range(_CLASSES)})
_MAPPING = _lines("", lambda v: f"{_youtube(v)} vid{v}\n", _VIDEOS)
_QUESTIONS = _lines("", lambda n: json.dumps(_question(n)) + "\n")

CASES: dict[str, ReaderCase] = {
    "activitynet": ReaderCase(
        "activitynet",
        {"a.json": _json(_segments, '{"database": {', "}}", _VIDEOS)},
    ),
    "activitynet_captions": ReaderCase(
        "activitynet-captions",
        {"val_1.json": _json(_paragraph, "{", "}", _VIDEOS)},
        {"captions": "segments"},
    ),
    "didemo": ReaderCase(
        "didemo",
        {
            "test_data.json": _json(
                lambda n: {
                    "video": f"{n // 5}@N00_1.mov",
                    "description": _caption(n),
                    "times": [[0, 1]],
                }
            )
        },
        rows=ROWS // 5,
    ),
    "hmdb51": ReaderCase("hmdb51", {"splits": _hmdb51}),
    "internvid": ReaderCase(
        "internvid",
        {
            "internvid.jsonl": _lines(
                "",
                lambda n: (
                    json.dumps(
                        {
                            "YoutubeID": _youtube(n // _EACH),
                            "Start_timestamp": f"00:{n % 60:02d}:07.250",
                            "End_timestamp": f"00:{n % 60:02d}:11.500",
                            "Caption": _caption(n),
                            "UMT_Score": 0.4,
                        }
                    )
                    + "\n"
                ),
            )
        },
    ),
    "kinetics": ReaderCase(
        "kinetics",
        {
            "train.csv": _lines(
                "label,youtube_id,time_start,time_end,split\n",
                lambda n: f"class {n % _CLASSES},{_youtube(n)},{n % 300},{n % 300 + 10},train\n",
            )
        },
    ),
    "kinetics_index": ReaderCase(
        "kinetics-index",
        {"list.csv": _lines("", lambda n: f"train/video_{n}.mp4 {n % _CLASSES}\n")},
    ),
    "lsmdc": ReaderCase(
        "lsmdc",
        {"list.csv": _lines("", lambda n: f"clip{n}\t0\t1\t0\t1\t{_caption(n)}\n")},
    ),
    "msrvtt_list": ReaderCase(
        "msrvtt",
        {
            "test.csv": _lines(
                "key,vid_key,video_id,sentence\n",
                lambda n: f"ret{n},msr{n},video{n},{_caption(n)}\n",
            )
        },
    ),
    "msrvtt_json": ReaderCase(
        "msrvtt",
        {"MSRVTT_data.json": _json(_sentence, _MSRVTT_HEAD + ', "sentences": [', "]}")},
        rows=_VIDEOS,
    ),
    "msvd": ReaderCase("msvd", {"raw-captions.pkl": _pickle}, rows=_VIDEOS),
    "qa_alpro_msvd": ReaderCase(
        "qa-alpro-msvd",
        {
            "train.jsonl": _lines(
                "",
                lambda n: json.dumps(_question(n) | {"video_id": f"vid{n // _EACH}"}) + "\n",
            ),
            "youtube_mapping.txt": _MAPPING,
        },
        rows=_VIDEOS,
    ),
    "qa_clipbert": ReaderCase("qa-clipbert", {"train.jsonl": _QUESTIONS}, rows=_VIDEOS),
    "qa_just_ask": ReaderCase(
        "qa-just-ask",
        {
            "train.csv": _lines(
                "video_id,question,answer,type\n",
                lambda n: f"{n // _EACH},what does man {n} walk?,dog,what\n",
            )
        },
        rows=_VIDEOS,
    ),
    "qa_original": ReaderCase(
        "qa-original",
        {"train_qa.json": _json(lambda n: _question(n) | {"video_id": n // _EACH, "id": n})},
        rows=_VIDEOS,
    ),
    "qa_violet": ReaderCase(
        "qa-violet",
        {
            "qa.json": _json(
                lambda n: {
                    "video": f"video{n // _EACH}",
                    "question": f"what does man {n} walk?",
                    "answer": n % _CLASSES,
                },
                '{"train": [',
                "]}",
            ),
            "labels.json": _lines(_ANSWERS, str, 0),
        },
        {"split": "train", "labels": "labels.json"},
        rows=_VIDEOS,
    ),
    "ssv2": ReaderCase(
        "ssv2",
        {
            "labels.json": _lines(_LABELS, str, 0),
            "train.json": _json(
                lambda n: {
                    "id": str(n),
                    "label": f"class of {n}",
                    "template": f"[class] {n % _CLASSES}",
                    "placeholders": ["class"],
                }
            ),
        },
    ),
    "thumos": ReaderCase("thumos", {"Run_test.txt": _lines("", _thumos)}),
    "ucf101": ReaderCase(
        "ucf101",
        {
            "classInd.txt": _lines("", lambda n: f"{n + 1} Class{n}\n", _CLASSES),
            "trainlist01.txt": _lines(
                "", lambda n: f"Class{n % _CLASSES}/v_{n}.avi {n % _CLASSES + 1}\n"
            ),
        },
    ),
    "vatex": ReaderCase("vatex", {"vatex.json": _json(_vatex, count=_VIDEOS)}, rows=_VIDEOS),
    "list_csv": ReaderCase(
        "",
        {"list.csv": _lines("video,caption\n", lambda n: f"video{n}.mp4,{_caption(n)}\n")},
    ),
    "list_tsv": ReaderCase(
        "",
        {"list.tsv": _lines("video\tcaption\n", lambda n: f"video{n}.mp4\t{_caption(n)}\n")},
    ),
    "list_jsonl": ReaderCase(
        "",
        {
            "list.jsonl": _lines(
                "", lambda n: json.dumps({"video": f"v{n}.mp4", "caption": _caption(n)}) + "\n"
            )
        },
    ),
}


def prepare(case: str) -> Prepared:
    """Write the files of a case to a temporary folder; a call reads them."""
    chosen = CASES[case]
    folder = tempfile.TemporaryDirectory()
    paths = {name: str(Path(folder.name) / name) for name in chosen.files}
    for name, write in chosen.files.items():
        write(Path(paths[name]))
    options = {name: paths.get(value, value) for name, value in chosen.options.items()}
    given = [path for path in paths.values() if path not in options.values()]

    def call() -> int:
        # The folder is removed with this function.
        assert folder.name
        rows: Iterable[Any]
        with collection_paused():  # as `svilm data convert` reads
            if chosen.format:
                rows = reader_of(chosen.format)(given, Counter(), **options)
            else:
                rows = read_list(*given)
            return sum(1 for _ in rows)

    def verify() -> float:
        found = call()
        if found != chosen.rows:
            raise WrongResult(
                f"{found} of {chosen.rows} rows were read", abs(found - chosen.rows) / chosen.rows
            )
        return 0.0

    started = time.process_time()
    call()
    facts = {"cpu_seconds": round(time.process_time() - started, 2), "limit_s": LIMIT_S}
    return Prepared(call=call, verify=verify, units={"rows": float(ROWS)}, facts=facts)
