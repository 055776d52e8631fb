"""DiDeMo: the descriptions of a video's moments, joined to a paragraph."""

from __future__ import annotations

from collections.abc import Sequence

from svilm_fast.data.formats import Notes, Rows
from svilm_fast.data.formats.common import (
    captioned,
    checked,
    choice,
    field,
    one_file,
    paragraph,
    read_ids,
    read_json,
    without_extension,
)


def read(paths: Sequence[str], notes: Notes, *, extension: str = "keep") -> Rows:
    """Read `test_data.json` (video, description) and, if given, the ids in `test_list.txt`.

    A video's caption is the paragraph of all its descriptions, in the order of the file.

    extension: ids hold the extension of the original file (`....mov`). `keep` leaves it, `drop`
    removes it, for videos that were stored under another.
    """
    choice(extension, ("keep", "drop"), "extension")
    document = one_file(paths, (".json",), "test_data.json")
    name_of = without_extension if extension == "drop" else str
    sentences: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for place, moment in enumerate(checked(read_json(document), list, document)):
        label = f"{document}, [{place}]"
        video = field(checked(moment, dict, label), "video", str, label).strip()
        shared = names.setdefault(name_of(video), video)
        if shared != video:
            notes[f"videos whose names differ only in their extension ({video}, {shared})"] += 1
        sentences.setdefault(name_of(video), []).append(field(moment, "description", str, label))
    texts = {video: paragraph(parts) for video, parts in sentences.items()}
    wanted = None
    if len(paths) > 1:
        listing = one_file(paths, (".txt",), "test_list.txt")
        # A list and the annotations may disagree about the extension.
        by_stem = {without_extension(name): name for name in texts}
        wanted = {
            by_stem.get(without_extension(video), video): f"{listing}, line {line}"
            for video, line in read_ids(listing).items()
        }
    return captioned(texts, wanted, notes, document)
