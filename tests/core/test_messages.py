"""Error texts fit on one line, and an unknown name gets a suggestion."""

import pytest

from svilm_fast.core.messages import check_known, single_line, suggestion


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\n  lines ", "two lines"),
        (ValueError("a\tb"), "a b"),
        (KeyError(), "KeyError"),
        ("", ""),
    ],
)
def test_a_text_stands_on_one_line(text, line):
    assert single_line(text) == line


def test_a_long_text_is_cut_unless_there_is_no_limit():
    assert single_line("x" * 400) == "x" * 299 + "…"
    assert single_line("x" * 400, None) == "x" * 400
    assert single_line("abc", 3) == "abc"


def test_an_unknown_name_is_answered_with_the_nearest_or_with_all():
    assert suggestion("traning", ["training", "data"]) == "did you mean 'training'?"
    assert suggestion("xyz", ["training", "data"]) == "known: training, data"
    assert suggestion("xyz", ["demo"], label="recipes") == "recipes: demo"


def test_unknown_names_are_refused_all_at_once():
    check_known("op", ["a"], ["a", "b"])
    with pytest.raises(ValueError, match=r"^unknown op c, d: choose among b, a$"):
        check_known("op", ["d", "a", "c"], ["b", "a"])
