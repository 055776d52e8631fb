"""Files of public formats, written small."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from svilm_fast.data.formats import reader_of


@pytest.fixture
def written(tmp_path):
    """Write `{name: text, bytes or JSON value}` and return the paths in that order."""

    def write(contents):
        paths = []
        for name, content in contents.items():
            path = tmp_path / name
            if not isinstance(content, str | bytes):
                content = json.dumps(content)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
            paths.append(str(path))
        return paths

    return write


@pytest.fixture
def rows_of(written):
    """Read files of a format; the notes are in `rows_of.notes`."""

    def read(name, contents, **options):
        read.notes = Counter()
        return list(reader_of(name)(written(contents), read.notes, **options))

    return read
