"""MSR-VTT: the 1k-A test list, the 9k and 7k training lists, and all captions in one JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import Notes, Rows
from svilm_fast.data.formats.common import choice, field, one_file, read_json, read_rows


def read(paths: Sequence[str], notes: Notes, *, captions: str = "several") -> Rows:
    """Read a CSV list of videos, and MSRVTT_data.json where the list has no captions.

    The test list (`MSRVTT_JSFUSION_test.csv`: key, vid_key, video_id, sentence) gives one row and
    one caption a line. The training lists (`MSRVTT_train.9k.csv`, `MSRVTT_train.7k.csv`: video_id)
    take their captions from the JSON file; without a list, all of its videos are read.

    captions: `several` writes one row for each video with all captions, one of which is drawn in
    every epoch; `expanded` writes one row for each caption (180,000 in the 9k list).
    """
    choice(captions, ("several", "expanded"), "captions")
    lists = [path for path in paths if path.lower().endswith(".csv")]
    if len(lists) > 1:
        raise ListFormatError(f"expected one CSV list, got {len(lists)}: {', '.join(lists)}")
    documents = [path for path in paths if path not in lists]
    if lists and not documents:
        yield from _test_rows(lists[0])
        return
    document = one_file(documents, (".json",), "MSRVTT_data.json")
    known, texts = _captions(document)
    wanted = _listed(lists[0]) if lists else dict.fromkeys(known)
    for video in texts:
        if video not in wanted:
            notes["videos with captions that are not on the list"] += 1
    for video, line in wanted.items():
        if video not in texts:
            where = document if line is None else f"{lists[0]}, line {line}, field 'video_id'"
            raise ListFormatError(f"{where}: {video!r} has no caption in {document}")
        if captions == "several":
            yield {"video": video, "captions": texts[video]}
        else:
            yield from ({"video": video, "caption": text} for text in texts[video])


def _test_rows(path: str) -> Rows:
    seen: dict[str, int] = {}
    for line, row in read_rows(path, ("video_id", "sentence")):
        label = f"{path}, line {line}"
        video, text = field(row, "video_id", str, label), field(row, "sentence", str, label)
        _once(seen, video, line, path)
        rest: dict[str, Any] = {name: row[name] for name in ("key", "vid_key") if name in row}
        yield {"video": video.strip(), "caption": text, **rest}


def _listed(path: str) -> dict[str, int | None]:
    seen: dict[str, int] = {}
    for line, row in read_rows(path, ("video_id",)):
        _once(seen, field(row, "video_id", str, f"{path}, line {line}").strip(), line, path)
    return {**seen}


def _once(seen: dict[str, int], video: str, line: int, path: str) -> None:
    if seen.setdefault(video, line) != line:
        raise ListFormatError(
            f"{path}, line {line}, field 'video_id': {video!r} is in line {seen[video]} already"
        )


def _captions(path: str) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The videos of MSRVTT_data.json, and their captions in file order."""
    document = read_json(path)
    if not isinstance(document, dict):
        raise ListFormatError(f"{path}: expected an object with 'videos' and 'sentences'")
    known: dict[str, Any] = {}
    for place, video in enumerate(field(document, "videos", list, path)):
        label = f"{path}, videos[{place}]"
        name = field(video, "video_id", str, label)
        if name in known:
            raise ListFormatError(f"{label}, field 'video_id': {name!r} appears twice")
        known[name] = video
    texts: dict[str, list[str]] = {}
    for place, sentence in enumerate(field(document, "sentences", list, path)):
        try:
            video, text = sentence["video_id"], sentence["caption"]
            complete = video in known and bool(text.strip())
        except (AttributeError, KeyError, TypeError):
            complete = False
        if not complete:
            label = f"{path}, sentences[{place}]"
            video = field(sentence, "video_id", str, label)
            field(sentence, "caption", str, label)
            raise ListFormatError(f"{label}, field 'video_id': {video!r} is not among the videos")
        texts.setdefault(video, []).append(text)
    return known, texts
