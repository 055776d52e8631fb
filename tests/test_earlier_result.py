"""A file named for a result is replaced only if it is an earlier result of that kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from svilm_fast.bench.compare import command as compare_command
from svilm_fast.bench.report.page import write_page
from svilm_fast.bench.run.ratios import markdown
from svilm_fast.bench.tables import markdown_row
from svilm_fast.cli import main
from svilm_fast.core.earlier_result import check_replaceable
from svilm_fast.data.pack import pack


def test_only_files_with_a_sign_are_replaceable(tmp_path: Path) -> None:
    path = tmp_path / "result"
    check_replaceable(path, "sign")
    path.touch()
    check_replaceable(path, "sign")
    path.write_text("of ours: sign")
    check_replaceable(path, "other", "sign")
    path.write_bytes(b"\xffmine")
    with pytest.raises(ValueError, match=r"exists and is not an earlier result .* another name"):
        check_replaceable(path, "sign")


def write_plan(path: Path, *form: str) -> None:
    main(["plan", "-c", "demo", "--gpu", "cpu", "--memory", "8GiB", "--out", str(path), *form])


WRITERS: dict[str, Callable[[Path], object]] = {
    "plan": write_plan,
    "plan as JSON": lambda path: write_plan(path, "--json"),
    "page": lambda path: write_page(path, "<title>x · svilm-fast benchmark</title>"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_results_replace_their_own_kind_alone(tmp_path: Path, kind: str, capsys) -> None:
    path = tmp_path / "out"
    for _ in range(2):
        try:
            WRITERS[kind](path)
        except SystemExit as ended:
            assert ended.code == 0  # noqa: PT017
    assert path.stat().st_size > 0
    path.write_text("mine")
    with pytest.raises((SystemExit, ValueError)) as refused:
        WRITERS[kind](path)
    shown = str(refused.value) + capsys.readouterr().err
    assert "is not an earlier result" in " ".join(shown.split())
    assert path.read_text() == "mine"


def test_tables_for_comments_are_known_by_their_head() -> None:
    head = markdown_row(compare_command._COLUMNS)
    assert head in compare_command.as_markdown([], "")
    assert markdown([], []).startswith("| op and case | direction |")


def test_packing_refuses_a_foreign_report_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "pack_report.json").write_text("mine")
    (tmp_path / "videos").mkdir()
    with pytest.raises(ValueError, match="is not an earlier result"):
        pack(str(tmp_path / "videos"), str(tmp_path))
    assert (tmp_path / "pack_report.json").read_text() == "mine"
