"""The fixtures that other tests trust: planted bugs arrive and leave, fresh memory is guarded."""

import pytest
import torch

from svilm_fast.core import philox

KEYS = torch.tensor([1, 2])


def test_planted_bug_reaches_callers_of_the_module(mutate):
    import svilm_fast.kernels as kernels

    before = kernels.derive_seeds(0, 1, KEYS, 2)
    mutant = mutate(philox, {"0xD2511F53": "0xD2511F55"})
    assert kernels.derive_seeds is mutant.derive_seeds
    assert not torch.equal(kernels.derive_seeds(0, 1, KEYS, 2), before)
    assert philox.derive_seeds is mutant.derive_seeds


def test_planted_bug_is_gone_afterwards():
    import svilm_fast.kernels as kernels

    assert kernels.derive_seeds is philox.derive_seeds
    assert philox.derive_seeds.__module__ == "svilm_fast.core.philox"


def test_missing_text_fails_the_test(mutate):
    with pytest.raises(pytest.fail.Exception, match="'no such text' is not in"):
        mutate(philox, {"no such text": ""})


def test_fresh_memory_is_poisoned(poisoned_memory):
    assert torch.empty(100).isnan().all()
    assert torch.empty(100, dtype=torch.float16).isnan().all()
    assert (torch.empty(100, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()


def test_fresh_memory_may_look_plausible(plausible_memory):
    assert (torch.empty(100) == 2.0**90).all()
    assert (torch.empty(100, dtype=torch.float16) == 2.0**14).all()
    plausible_memory.check()


@pytest.mark.parametrize("place", [-1, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.bool])
def test_a_write_outside_its_tensor_is_seen(poisoned_memory, place, dtype):
    made = torch.ones(10, dtype=dtype).new_empty((2, 5))
    poisoned_memory.check()
    outside = made.as_strided((1,), (1,), made.storage_offset() + place)
    outside.zero_()
    with pytest.raises(AssertionError, match=r"1 elements outside a .* tensor of 10 were written"):
        poisoned_memory.check()
    outside.copy_(made[:1, 0])
