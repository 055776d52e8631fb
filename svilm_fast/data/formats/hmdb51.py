"""HMDB51: one file for each class and split, with a flag for each video."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import Notes, Rows
from svilm_fast.data.formats.common import choice, once, read_lines, shown

CLASSES = 51
_NAME = re.compile(r"(.+)_test_split([123])\.txt")
_FLAGS = {"0": "unused", "1": "train", "2": "test"}


def read(paths: Sequence[str], notes: Notes, *, split: str = "1", part: str = "train") -> Rows:
    """Read the folder of `<class>_test_split<N>.txt` files, or these files one by one.

    A line is `name.avi 0`, `1` (training) or `2` (test); 0 is in neither. The label of a row is the
    name of the class, and its video `<class>/name.avi`.

    split: `1`, `2` or `3`. part: `train` or `test`.
    """
    choice(split, ("1", "2", "3"), "split")
    choice(part, ("train", "test"), "part")
    classes = 0
    for path, name, number in _files(paths):
        if number != split:
            continue
        classes += 1
        seen: dict[str, int] = {}
        for line, text in read_lines(path):
            video, _, flag = text.rpartition(" ")
            video = video.strip()
            label = f"{path}, line {line}"
            if flag not in _FLAGS or not video:
                raise ListFormatError(
                    f"{label}, field 'flag': expected a video and 0, 1 or 2, found {shown(text)}"
                )
            once(seen, video, line, f"{label}, field 'video'")
            if _FLAGS[flag] == part:
                yield {"video": f"{name}/{video}", "label": name}
            else:
                notes[f"videos of split {split} marked {_FLAGS[flag]}"] += 1
    if not classes:
        raise ListFormatError(f"{', '.join(paths)}: no file <class>_test_split{split}.txt")
    if classes != CLASSES:
        notes[f"classes, where HMDB51 has {CLASSES}"] = classes


def _files(paths: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """(path, class, number of the split) of the files that are given or in a given folder."""
    for path in paths:
        inside = sorted(os.listdir(path)) if os.path.isdir(path) else None
        for file in [path] if inside is None else [os.path.join(path, each) for each in inside]:
            found = _NAME.fullmatch(os.path.basename(file))
            if found is not None:
                yield file, found[1], found[2]
            elif inside is None:
                raise ListFormatError(f"{file}: expected a name like kick_ball_test_split1.txt")
