"""DiDeMo: the descriptions of a video's moments, joined to a paragraph."""

from __future__ import annotations

from collections.abc import Sequence

from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import Notes, Rows
from svilm_fast.data.formats.common import (
    Texts,
    captioned,
    checked,
    choice,
    once,
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
    texts_of = Texts(document, "video", "description")
    moments = texts_of.every(checked(read_json(document), list, document))
    for place, (given, sentence) in enumerate(zip(*moments)):
        video = given.strip()
        found = sentences.get(video)
        if found is not None:
            found.append(sentence)
            continue
        sentences[video] = [sentence]
        shared = names.setdefault(name_of(video), video)
        if shared != video:
            raise ListFormatError(
                f"{document}, [{place}], field 'video': {video!r} and {shared!r} differ only in "
                "their extension, which extension=drop removes: use keep"
            )
    texts = {name_of(video): paragraph(parts) for video, parts in sentences.items()}
    wanted = None
    if len(paths) > 1:
        listing = one_file(paths, (".txt",), "test_list.txt")
        # A list and the annotations may disagree about the extension.
        by_stem: dict[str, str] = {}
        for name in texts:
            stem = without_extension(name)
            by_stem[stem] = "" if stem in by_stem else name  # of two, neither is meant
        wanted = {}
        lines: dict[str, int] = {}
        for given, line in read_ids(listing).items():
            video = given if given in texts else by_stem.get(without_extension(given)) or given
            once(lines, video, line, f"{listing}, line {line}")
            wanted[video] = f"{listing}, line {line}"
    return captioned(texts, wanted, notes, document)
