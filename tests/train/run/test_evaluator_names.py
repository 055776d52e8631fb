"""Two evaluators of a task never share metrics or files; results say what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from svilm_fast.train.config.options import Weights
from svilm_fast.train.run.evaluate import check_names, write_result


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        (("probe", "val"), ("probe", "val_probe"), "name 'probe'"),
        (("retrieval", "val"), ("probe", "val"), "file_name 'val'"),
        (("retrieval", "a/b"), ("probe", "a_b"), "file_name 'a_b'"),
    ],
)
def test_a_name_that_occurs_twice_is_refused(first, second, what: str) -> None:
    evaluators = [SimpleNamespace(name=name, file_name=file) for name, file in (first, second)]
    with pytest.raises(ValueError, match=f"have the {what}"):
        check_names(evaluators)
    check_names(evaluators[:1])


def test_the_files_of_a_result_name_step_and_weights(tmp_path) -> None:
    class Result:
        def __init__(self, content: str) -> None:
            self.content = content

        def metrics(self) -> dict[str, float]:
            return {}

        def write(self, folder: Path, name: str) -> None:
            (folder / f"{name}.json").write_text(self.content)

    for name, content, found in (
        ("a", '{"extra": {"run": "x"}}', {"run": "x", "step": 7, "weights": "ema"}),
        ("b", "{}", {"step": 7, "weights": "ema"}),
    ):
        write_result(Result(content), tmp_path, name, step=7, weights=Weights.EMA)
        assert json.loads((tmp_path / f"{name}.json").read_text())["extra"] == found
    write_result(Result("[1]"), tmp_path, "c", step=7, weights=Weights.EMA)
    assert (tmp_path / "c.json").read_text() == "[1]"
