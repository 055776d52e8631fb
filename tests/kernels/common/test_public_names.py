"""`kernels.NAME` is the op's function, and its folder is importable, in every order of imports."""

import importlib
import subprocess
import sys
from types import FunctionType

import pytest

from svilm_fast import kernels
from svilm_fast.kernels.registry import ops

PROGRAM = """
import os, sys
import torch, triton

KERNELS = "svilm_fast.kernels"
FIRST = ("", ".registry", ".infonce", ".infonce.api", ".grounding.fused.function", ".self_check")

def check(first):
    __import__(KERNELS + first)
    import svilm_fast.kernels.infonce.api
    from svilm_fast.kernels import grounding, grouping, infonce, temporal
    from svilm_fast.kernels.infonce import api, infonce as same
    import svilm_fast.kernels.grounding.fused.function
    from svilm_fast.kernels import grounding as again
    kinds = {type(each) for each in (grounding, grouping, infonce, temporal)}
    assert kinds == {type(check)}, kinds
    assert infonce is same is api.infonce and again is grounding
    assert svilm_fast.kernels.infonce.api is api
    assert svilm_fast.kernels.grounding.fused.function.__name__.endswith("grounding.fused.function")

for first in FIRST:
    child = os.fork()
    if not child:
        status = 1
        try:
            check(first)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"wrong where {KERNELS + first} is imported first")
"""


@pytest.mark.parametrize("name", sorted(ops()))
def test_a_name_is_the_function_of_its_op(name):
    assert getattr(kernels, name) is ops()[name].api
    assert type(getattr(kernels, name)) is FunctionType


@pytest.mark.parametrize("name", ["grounding", "grouping", "infonce", "temporal"])
def test_a_folder_stays_importable(name):
    folder = importlib.import_module(f"svilm_fast.kernels.{name}")
    api = importlib.import_module(f"svilm_fast.kernels.{name}.api")
    assert folder.api is api is getattr(kernels, name).api
    assert callable(vars(api)[getattr(kernels, name).__name__])


def test_names_do_not_depend_on_the_order_of_imports():
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
