"""What Triton 3.6 does not compile, and 3.7 does."""

import ast
from pathlib import Path

import svilm_fast.kernels

SOURCES = sorted(Path(svilm_fast.kernels.__file__).parent.rglob("*.py"))


def _string_defaults(text: str) -> list[str]:
    """Parameters whose default is a bare string in functions that Triton compiles."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef):
            continue
        if not any(ast.unparse(one).startswith("triton.jit") for one in node.decorator_list):
            continue
        arguments = node.args
        named = arguments.posonlyargs + arguments.args
        pairs = [
            *zip(named[len(named) - len(arguments.defaults) :], arguments.defaults, strict=True),
            *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
        ]
        found += [
            f"{node.name}({name.arg})"
            for name, default in pairs
            if isinstance(default, ast.Constant) and isinstance(default.value, str)
        ]
    return found


def test_a_bare_string_default_is_found():
    text = '@triton.jit\ndef dot(a, HOW: tl.constexpr = "x", N: tl.constexpr = 3): pass\n'
    assert _string_defaults(text) == ["dot(HOW)"]
    assert _string_defaults(text.replace('"x"', "X")) == []


def test_no_kernel_has_a_string_default_that_is_not_wrapped():
    assert any("@triton.jit" in path.read_text() for path in SOURCES)
    assert {p.name: found for p in SOURCES if (found := _string_defaults(p.read_text()))} == {}
