"""MSR-VTT: the 1k-A test list, the 9k and 7k training lists, and all captions in one JSON."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import Notes, Rows
from svilm_fast.data.formats.common import (
    Texts,
    all_new,
    blocks_of,
    captioned,
    checked,
    field,
    once,
    one_file,
    read_columns,
    read_json,
    read_rows,
)


def read(paths: Sequence[str], notes: Notes, *, captions: str = "several") -> Rows:
    """Read a CSV list of videos, and MSRVTT_data.json where the list has no captions.

    The test list (`MSRVTT_JSFUSION_test.csv`: key, vid_key, video_id, sentence) gives one row and
    one caption a line. The training lists (`MSRVTT_train.9k.csv`, `MSRVTT_train.7k.csv`: video_id)
    take their captions from the JSON file; without a list, all of its videos are read.

    captions: `several` writes one row for each video with all captions, one of which is drawn in
    every epoch; `expanded` writes one row for each caption (180,000 in the 9k list).
    """
    lists = [path for path in paths if path.lower().endswith((".csv", ".tsv"))]
    if len(lists) > 1:
        raise ListFormatError(f"expected one CSV list, got {len(lists)}: {', '.join(lists)}")
    documents = [path for path in paths if path not in lists]
    if lists and not documents:
        return _test_rows(lists[0])
    document = one_file(documents, (".json",), "MSRVTT_data.json")
    wanted = _listed(lists[0], document) if lists else None
    return captioned(_captions(document), wanted, notes, document, captions)


def _test_rows(path: str) -> Rows:
    needed = ("video_id", "sentence")
    header, rows = read_columns(path, needed)
    columns = [*(name for name in header if name not in needed), *needed]
    cells_of = operator.itemgetter(*map(header.index, columns))
    names = [*columns[: -len(needed)], "video", "caption"]
    seen: dict[str, int] = {}
    for lines, cells in blocks_of(rows):
        *others, videos, texts = zip(*map(cells_of, cells))
        videos, texts = tuple(map(str.strip, videos)), tuple(map(str.strip, texts))
        if not (all(videos) and all(texts) and all_new(seen, videos, lines)):
            for line, video, text in zip(lines, videos, texts):
                label = f"{path}, line {line}"
                for name, value in zip(needed, (video, text)):
                    field({name: value}, name, str, label)
                once(seen, video, line, f"{label}, field 'video_id'")
        for row in zip(*others, videos, texts):
            yield dict(zip(names, row))


def _listed(path: str, document: str) -> dict[str, str]:
    seen: dict[str, int] = {}
    for line, row in read_rows(path, ("video_id",)):
        if "sentence" in row:
            raise ListFormatError(
                f"{path}, line 1: the list has captions of its own (column 'sentence'), which "
                f"those of {document} would replace: give the list alone"
            )
        label = f"{path}, line {line}"
        once(seen, field(row, "video_id", str, label).strip(), line, f"{label}, field 'video_id'")
    return {video: f"{path}, line {line}, field 'video_id'" for video, line in seen.items()}


def _captions(path: str) -> dict[str, list[str]]:
    """The captions of every video of MSRVTT_data.json, in file order."""
    document = checked(read_json(path), dict, path)
    known: dict[str, int] = {}
    for place, video in enumerate(field(document, "videos", list, path)):
        label = f"{path}, videos[{place}]"
        name = field(checked(video, dict, label), "video_id", str, label)
        once(known, name, place, f"{label}, field 'video_id'")
    texts: dict[str, list[str]] = {video: [] for video in known}
    texts_of = Texts(path, "video_id", "caption", place="sentences[{}]")
    sentences = texts_of.every(field(document, "sentences", list, path))
    for place, (video, text) in enumerate(zip(*sentences)):
        if video not in texts:
            raise ListFormatError(
                f"{path}, sentences[{place}], field 'video_id': {video!r} is not among the videos"
            )
        texts[video].append(text)
    return {video: found for video, found in texts.items() if found}
