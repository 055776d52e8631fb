"""Two evaluators of a task never share metrics or files."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from svilm_fast.train.run.evaluate import check_names


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
