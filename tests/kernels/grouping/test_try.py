import pytest, torch
from tests.kernels.grouping.conftest import *
from tests.kernels.grouping.gluon_calls import CALLS, MAIN, WHOLE
def test_main(check_gluon_backward):
    check_gluon_backward(MAIN)
@pytest.mark.parametrize("name", CALLS)
def test_c(check_gluon_backward,name):
    check_gluon_backward({"dtype": torch.float16, "plan": WHOLE} | CALLS[name])
def test_soft(check_gluon_backward):
    check_gluon_backward(MAIN|{"mode":"soft","temperature":3.0})
