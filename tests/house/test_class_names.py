"""One class name means one thing in the whole package."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_no_two_public_classes_share_a_name():
    places = defaultdict(list)
    for folder in ("svilm_fast", "kernels", "train", "bench"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(str(path.relative_to(ROOT)))
    # `svilm_fast/kernels`, `train` and `bench` are links to the folders beside it.
    doubled = {name: sorted(set(found)) for name, found in places.items() if len(set(found)) > 1}
    assert not doubled
