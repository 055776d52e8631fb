"""docs/api.md equals what docs/make_api.py writes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def make_api() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_api", DOCS / "make_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_api_reference_is_up_to_date(make_api: ModuleType) -> None:
    assert make_api.main(["--check"]) == 0, "run `python docs/make_api.py`, commit docs/api.md"


def test_a_page_that_differs_is_noticed_and_written(
    make_api: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = tmp_path / "api.md"
    monkeypatch.setattr(make_api, "PAGE", page)
    fix = "run `python docs/make_api.py`\n"
    assert make_api.main(["--check"]) == 1
    assert capsys.readouterr().err == f"{page} is missing: {fix}"
    assert make_api.main([]) == 0
    assert make_api.main(["--check"]) == 0
    assert capsys.readouterr().err == ""
    page.write_text(page.read_text().replace("unit-norm", "unit norm"))
    assert make_api.main(["--check"]) == 1
    assert capsys.readouterr().err == f"{page} is out of date: {fix}"


def test_signatures_are_shown_as_they_are_written(make_api: ModuleType) -> None:
    text = make_api.page()
    assert "    scale: Tensor | float,\n    *,\n    diagonal_offset: int = 0," in text
    assert "ForwardRef" not in text
    assert "'Tensor" not in text
