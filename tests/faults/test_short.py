"""The short form of `make faults`: every row with few tries."""

from __future__ import annotations

import pytest

from tests.faults import ALL_ROWS
from tests.faults.__main__ import main, run_rows
from tests.faults.registry import Row, Tries, need


def test_the_table_has_its_twenty_rows() -> None:
    assert sorted(ALL_ROWS) == list(range(1, 21))


def test_a_missed_try_is_counted_and_fails_the_command(monkeypatch, capsys) -> None:
    def half(rig, tries: int, seen: Tries) -> None:
        for number in range(tries):
            with seen.one(f"try {number}"):
                need(number % 2 == 0, "not even")

    monkeypatch.setitem(ALL_ROWS, 21, Row(21, "half", "all", 4, 4, half))
    assert main(["--rows", "21"]) == 1
    assert "0 of 1 rows meet their target" in capsys.readouterr().out


def test_fewer_tries_than_asked_for_is_a_miss(monkeypatch) -> None:
    monkeypatch.setitem(ALL_ROWS, 21, Row(21, "none", "all", 4, 4, lambda rig, tries, seen: None))
    (record,) = run_rows([21], short=True)
    assert not record["met"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_row_meets_its_target_with_few_tries() -> None:
    records = run_rows(sorted(ALL_ROWS), short=True)
    assert [record["missed"] for record in records if not record["met"]] == []
