"""Facts about the machine and its software."""

import os

from svilm_fast.core.machine import package_version, usable_cores


def test_the_version_of_what_is_not_installed_is_none():
    assert package_version("numpy")
    assert package_version("svilm-fast-no-such-package") is None


def test_usable_cores_are_those_of_the_process():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
