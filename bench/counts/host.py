"""The host code whose instructions are counted; run as a module under Callgrind."""

from __future__ import annotations

import gc
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
import triton

from svilm_fast.bench.counts.peak import both_directions
from svilm_fast.bench.counts.requests import Requests
from svilm_fast.kernels.device import H200, assume_traits
from svilm_fast.kernels.launch import record_launches
from svilm_fast.kernels.registry import Variant, ops

Call = Callable[[], object]
# Calls until the interpreter has specialised the bytecode.
WARM_UP = 12
ROUNDS, CALLS = 4, 5
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "grey")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")


def cases() -> Iterator[tuple[str, Call]]:
    """(name, call) of every counted case; each is built when the iterator reaches it."""
    for name, op in ops().items():
        for variant in op.variants:
            if variant.counted:
                yield f"fused host | {name} | {variant.label}", partial(_launches, variant)
    for name, op in ops().items():
        provider = partial(op.api, backend="reference")
        yield f"reference api | {name} | both", both_directions(op, provider, op.sizes.small)
    yield "tokenizer | encode_batch of 64 captions", _tokenizing()


def facts() -> dict[str, str]:
    """The facts that these counts depend on; read inside Valgrind, which hides AVX-512."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "libc": "-".join(platform.libc_ver()),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _launches(variant: Variant) -> None:
    with assume_traits(H200), record_launches():
        variant.run()


def _tokenizing() -> Call:
    from svilm_fast.data.tokenizer import Tokenizer

    captions = [
        f"a {COLOURS[n % 8]} {SHAPES[n % 6]} moves to the {COLOURS[n // 8]} {SHAPES[n % 5]}"
        for n in range(64)
    ]
    tokenizer = Tokenizer.train(captions, 300)
    return lambda: tokenizer.encode_batch(captions, 24)


def main(arguments: Sequence[str] | None = None) -> int:
    """Count the cases whose names match the pattern; print facts as one line of JSON."""
    pattern = (list(arguments) if arguments is not None else sys.argv[1:])[0]
    requests = Requests()
    torch.set_num_threads(1)
    names: list[str] = []
    for name, call in cases():
        if fnmatchcase(name, pattern):
            names.append(name)
            _count(requests, name, call)
    report: dict[str, Any] = {"facts": facts(), "names": names, "calls": CALLS}
    print(json.dumps(report | {"valgrind": requests.under_valgrind()}))
    return 0


def _count(requests: Requests, name: str, call: Call) -> None:
    for _ in range(WARM_UP):
        call()
    gc.collect()
    gc.disable()
    try:
        for _ in range(ROUNDS):
            with requests.counting(name):
                for _ in range(CALLS):
                    call()
    finally:
        gc.enable()


if __name__ == "__main__":
    sys.exit(main())
