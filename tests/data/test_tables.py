"""CSV and TSV as people write them: read, or refused with the line and what is wrong with it."""

from __future__ import annotations

import pytest

from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.lists import read_list


def _rows(path, text, *, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return [(row.video, row.caption, row.line) for row in read_list(str(path))]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_the_header_tells_the_delimiter(tmp_path, delimiter, suffix):
    text = f"video_id{delimiter}sentence\na{delimiter}a man: a dog\n"
    assert _rows(tmp_path / f"x.{suffix}", text) == [("a", "a man: a dog", 2)]


def test_semicolons_leave_commas_in_captions(tmp_path):
    text = "video_id;sentence\na;a man, a dog\n"
    assert _rows(tmp_path / "x.csv", text) == [("a", "a man, a dog", 2)]


def test_empty_columns_without_a_name_at_the_end_are_left_out(tmp_path):
    path = tmp_path / "x.csv"
    assert _rows(path, "video,caption,,\na,one,,\nb,two, ,\n") == [("a", "one", 2), ("b", "two", 3)]
    assert [row.extra for row in read_list(str(path))] == [{}, {}]
    with pytest.raises(ListFormatError, match=r"line 3: a cell stands in a column without a name"):
        _rows(path, "video,caption,,\na,one,,\nb,two,,more\n")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_blank_lines_and_a_byte_order_mark(tmp_path, end):
    text = end.join(["\ufeff", " Video , Caption", "", "a,one", "   ", "b,two", ""])
    assert _rows(tmp_path / "x.csv", text) == [("a", "one", 4), ("b", "two", 6)]


def test_stray_quotes_are_read_as_they_are(tmp_path):
    text = (
        'video_id\tsentence\na\t"wow" she says to the dog\nb\ta 12" ruler on a table\n'
        'c\t"open\nd\tmore"\ne\t"never closed\n'
    )
    assert _rows(tmp_path / "x.tsv", text) == [
        ("a", '"wow" she says to the dog', 2),
        ("b", 'a 12" ruler on a table', 3),
        ("c", '"open', 4),
        ("d", 'more"', 5),
        ("e", '"never closed', 6),
    ]
    text = 'video,caption\na,"wow" she says\nb,a 12" ruler\n'
    assert _rows(tmp_path / "x.csv", text) == [
        ("a", '"wow" she says', 2),
        ("b", 'a 12" ruler', 3),
    ]


def test_quoted_fields_keep_their_meaning(tmp_path):
    text = 'video,caption\na,"one, ""two"""\nb,"first\nsecond, line"\nc,last\n'
    assert _rows(tmp_path / "x.csv", text) == [
        ("a", 'one, "two"', 2),
        ("b", "first\nsecond, line", 3),
        ("c", "last", 5),
    ]
    # A line of the field has no tab, so it is no row.
    text = 'video\tcaption\na\t"first\nsecond"\n'
    assert _rows(tmp_path / "x.tsv", text) == [("a", "first\nsecond", 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('video,caption\na,b\nc,"wow" she says, to me\n', "line 3: .*after its closing quote"),
        ('video,caption\na,b\nc,"never, closed\n', "line 3: .*never closed"),
        ('video,caption\na,"never closed\n', "line 2: .*never closed"),
        ("video,caption\n\na,b,c\n", "line 3: expected 2 columns and found 3, separated by ','"),
        ("video;caption\na,b\n", "line 2: expected 2 columns and found 1, separated by ';'"),
        ("video,caption,Video\na,b,c\n", "line 1: the column 'video' appears twice"),
        ("\n\n", "no rows"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(ListFormatError, match=rf"x\.csv.*{message}"):
        _rows(tmp_path / "x.csv", text)


def test_a_list_in_another_encoding_is_refused_with_the_line(tmp_path):
    with pytest.raises(ListFormatError, match="line 2, byte 0xe9 at 19"):
        _rows(tmp_path / "x.csv", "video,caption\na,caf\u00e9\n", encoding="latin-1")


def test_many_rows_take_time_in_proportion(tmp_path):
    """A reader that copies the rest of the file for each row would need minutes."""
    count = 50_000
    text = "video\tcaption\n" + '1\t"a b\n' * count
    assert len(_rows(tmp_path / "x.tsv", text)) == count
