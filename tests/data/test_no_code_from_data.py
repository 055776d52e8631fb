"""No file of a user can run code: the data side never unpickles, evaluates or extracts."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import svilm_fast.data.shards as shards

FOLDER = Path(shards.__file__).parent
FORBIDDEN_IMPORTS = {"pickle", "marshal", "shelve", "dill", "joblib", "subprocess"}
FORBIDDEN_CALLS = {
    "eval", "exec", "extractall", "extract_all", "unsafe_load", "np.load", "numpy.load",
    "torch.load", "yaml.load", "os.system", "os.popen",
}  # fmt: skip


def _name(node):
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _is_plain(call):
    """Whether a call of np.load refuses objects, which are pickles, in so many words."""
    return any(
        word.arg == "allow_pickle" and getattr(word.value, "value", True) is False
        for word in call.keywords
    )


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.stem)
def test_no_loading_of_objects(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
            assert not names & FORBIDDEN_IMPORTS
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN_IMPORTS
        elif isinstance(node, ast.Call):
            name = _name(node.func)
            if name == "np.load" and _is_plain(node):
                continue
            assert not {name, name.rpartition(".")[2]} & FORBIDDEN_CALLS
