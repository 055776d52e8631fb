"""What the compiler may not fuse: a confident pair's probability is 1 exactly, or is noise."""

import os
import subprocess
import sys

PROGRAM = """
import re
from svilm_fast.kernels.aot import ARCHITECTURES, ptx_of
from svilm_fast.kernels.device import assume_traits
from svilm_fast.kernels.launch import record_launches
from svilm_fast.kernels.registry import ops

target = ARCHITECTURES["sm_90"]
kernels = {
    "loss backward G=32 K=2 D=256": "resident_gradient_kernel",
    "loss backward G=64 K=4 D=512": "dots_gradient_kernel",
    "matrix, one program": "matrix_gradient_kernel",
}
for variant in ops()["grounding"].variants:
    if variant.label not in kernels:
        continue
    with assume_traits(target.traits), record_launches() as launches:
        variant.run()
    [launch] = [one for one in launches if one.kernel.__name__ == kernels[variant.label]]
    lines = ptx_of(launch, target).splitlines()
    made = dict(re.match(r"\\s+([\\w.]+)\\s+(%\\w+),", line).group(2, 1)
                for line in lines if re.match(r"\\s+[\\w.]+\\s+%\\w+,", line))
    powers = [re.search(r"ex2\\.approx\\S*\\s+%\\w+,\\s*(%\\w+);", line) for line in lines]
    print(launch.kernel.__name__, *sorted({made[one[1]] for one in powers if one}))
"""


def test_scaled_scores_are_rounded_before_the_logarithm_is_taken_off():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    # The fused product of the pointer kernel is beta's, whose exponent needs no such rounding.
    assert sorted(done.stdout.splitlines()) == [
        "dots_gradient_kernel fma.rn.f32 sub.f32",
        "matrix_gradient_kernel sub.f32",
        "resident_gradient_kernel sub.f32",
    ]
