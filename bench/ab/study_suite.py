"""What the study of the gate times: twenty kinds of work, a hundred equal units in each call.

A library that carries `ab_study_extra.json` (id -> extra units) does that many units more: real
work, in a version that the gate is to find slower. No released version carries the file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch

import svilm_fast
from svilm_fast.bench.suites.benchmark import Benchmark, Prepared, WrongResult, benchmark_id

UNITS = 100
EXTRA_FILE = "ab_study_extra.json"
Unit = Callable[[], object]


def benchmarks(
    suites: Sequence[str] | None, device: torch.device, only: str | None = None
) -> dict[str, Benchmark]:
    """The study's benchmarks by id; `suites` is the protocol's argument and means nothing here."""
    path = Path(svilm_fast.__file__).parent / EXTRA_FILE
    extra = json.loads(path.read_text()) if path.is_file() else {}
    made = [_benchmark(name, extra) for name in _KINDS]
    return {one.id: one for one in made if only is None or fnmatchcase(one.id, only)}


def _benchmark(name: str, extra: dict[str, int]) -> Benchmark:
    id = benchmark_id("host", f"study-{name}", f"units{UNITS}", "-", "-", "-")
    count = UNITS + extra.get(id, 0)

    def prepare(device: torch.device) -> Prepared:
        unit = _KINDS[name]()

        def call() -> None:
            for _ in range(count):
                unit()

        def verify() -> None:
            if repr(unit()) != repr(unit()):
                raise WrongResult(f"{name}: two equal units differ", float("inf"))

        return Prepared(call, verify, facts={"units": count})

    return Benchmark(id, "host", prepare)


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _matmul() -> Unit:
    a, b = _normal(96, 96), _normal(96, 96)
    return lambda: a @ b


def _logsumexp() -> Unit:
    a, b = _normal(48, 64), _normal(64, 48)
    return lambda: torch.logsumexp(a @ b, dim=1)


def _softmax() -> Unit:
    a = _normal(64, 128)
    return lambda: a.softmax(dim=-1)


def _layer_norm() -> Unit:
    a = _normal(128, 96)
    return lambda: torch.nn.functional.layer_norm(a, (96,))


def _gelu() -> Unit:
    a = _normal(16384)
    return lambda: torch.nn.functional.gelu(a)


def _gather() -> Unit:
    a = _normal(4096, 64)
    rows = torch.randint(0, 4096, (256,), generator=torch.Generator().manual_seed(1))
    return lambda: a[rows]


def _sort() -> Unit:
    a = _normal(512)
    return lambda: a.sort()[0]


def _cumsum() -> Unit:
    a = _normal(8192)
    return lambda: a.cumsum(0)


def _bmm() -> Unit:
    a, b = _normal(8, 24, 24), _normal(8, 24, 24)
    return lambda: torch.bmm(a, b)


def _top_k() -> Unit:
    a = _normal(2048)
    return lambda: a.topk(16)[0]


def _embedding() -> Unit:
    table = _normal(512, 48)
    tokens = torch.randint(0, 512, (4, 32), generator=torch.Generator().manual_seed(1))
    return lambda: torch.nn.functional.embedding(tokens, table)


def _copy() -> Unit:
    a = _normal(65536)
    b = torch.empty_like(a)
    return lambda: b.copy_(a)


def _reduce() -> Unit:
    a = _normal(262144)
    return lambda: a.sum()


def _backward() -> Unit:
    a, weight = _normal(16, 32), _normal(32, 32).requires_grad_()
    return lambda: torch.autograd.grad((a @ weight).square().mean(), weight)


def _sorted() -> Unit:
    words = [f"{(i * 7919) % 1009:04d}" for i in range(60)]
    return lambda: sorted(words, key=lambda word: word[::-1])


def _dictionary() -> Unit:
    words = [f"word{i % 37}" for i in range(250)]

    def unit() -> dict[str, int]:
        counts: dict[str, int] = {}
        for word in words:
            counts[word] = counts.get(word, 0) + 1
        return counts

    return unit


def _json() -> Unit:
    record = {f"key{i}": [i, float(i), str(i)] for i in range(12)}
    return lambda: json.loads(json.dumps(record))


def _regex() -> Unit:
    pattern = re.compile(r"\w+|[^\w\s]")
    text = "a red square moves left behind two blue circles, then it blinks. " * 3
    return lambda: pattern.findall(text)


def _sha256() -> Unit:
    data = bytes(range(256)) * 64
    return lambda: hashlib.sha256(data).hexdigest()


def _numpy() -> Unit:
    a = np.random.default_rng(0).standard_normal(2048)
    return lambda: np.fft.rfft(a)


_KINDS: dict[str, Callable[[], Unit]] = {
    "matmul": _matmul,
    "logsumexp": _logsumexp,
    "softmax": _softmax,
    "layer-norm": _layer_norm,
    "gelu": _gelu,
    "gather": _gather,
    "sort": _sort,
    "cumsum": _cumsum,
    "bmm": _bmm,
    "top-k": _top_k,
    "embedding": _embedding,
    "copy": _copy,
    "reduce": _reduce,
    "backward": _backward,
    "sorted": _sorted,
    "dictionary": _dictionary,
    "json": _json,
    "regex": _regex,
    "sha256": _sha256,
    "numpy": _numpy,
}
