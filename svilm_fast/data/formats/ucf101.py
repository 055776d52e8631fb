"""UCF101: lists of a class folder and a video, with classes numbered from 1."""

from __future__ import annotations

import os
from collections.abc import Sequence

from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import Notes, Rows
from svilm_fast.data.formats.common import once, read_lines, shown


def read(paths: Sequence[str], notes: Notes) -> Rows:
    """Read `classInd.txt` and one list: `trainlist01.txt` or `testlist01.txt`.

    A line of a list is `Class/v_Class_g01_c01.avi`, in training lists with the number of the class
    after it. The label of a row is the name of the class, and its video `Class/v_....avi`.
    """
    index = [path for path in paths if os.path.basename(path).lower().startswith("classind")]
    lists = [path for path in paths if path not in index]
    if len(index) != 1 or len(lists) != 1:
        raise ListFormatError(
            f"expected classInd.txt and one list, got {', '.join(paths) or 'no files'}"
        )
    names = _classes(index[0])
    numbers = {name: number for number, name in names.items()}
    seen: dict[str, int] = {}
    for line, text in read_lines(lists[0]):
        label = f"{lists[0]}, line {line}"
        video, space, number = text.rpartition(" ")
        if not space or not number.isdecimal():
            video, number = text, ""
        folder, slash, _ = video.strip().partition("/")
        if not slash or folder not in numbers:
            raise ListFormatError(
                f"{label}, field 'video': expected a folder named after a class of {index[0]}, "
                f"found {shown(video)}"
            )
        if number and int(number) != numbers[folder]:
            raise ListFormatError(
                f"{label}, field 'label': {number} is {names.get(int(number), 'no class')!r} in "
                f"{index[0]}, where {folder!r} is {numbers[folder]}; classes are numbered from 1"
            )
        once(seen, video.strip(), line, f"{label}, field 'video'")
        yield {"video": video.strip(), "label": folder}
    notes["classes in classInd.txt"] = len(names)


def _classes(path: str) -> dict[int, str]:
    """The classes by their number, from 1 without gaps."""
    names: dict[int, str] = {}
    seen: dict[str, int] = {}
    for line, text in read_lines(path):
        number, _, name = text.partition(" ")
        name = name.strip()
        if not number.isdecimal() or not name:
            raise ListFormatError(
                f"{path}, line {line}: expected a number and the name of a class, found "
                f"{shown(text)}"
            )
        if int(number) != len(names) + 1:
            raise ListFormatError(
                f"{path}, line {line}, field 'number': expected {len(names) + 1} and found "
                f"{number}; classes are numbered from 1"
            )
        once(seen, name, line, f"{path}, line {line}, field 'name'")
        names[int(number)] = name
    if not names:
        raise ListFormatError(f"{path}: no classes")
    return names
