"""Before any test module is imported: without a GPU, Triton kernels run interpreted."""

import atexit
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# Triton reads this when a kernel is decorated, so it must be set before the first import of triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Tests run side by side and on small tensors: more threads would only wait for each other. The
# variable is for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# A shell ignores SIGINT for what it starts in the background, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What torch.compile builds goes with the tests. Who finds the variable set is a child of theirs.
if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="svilm-tests-inductor-")
    atexit.register(shutil.rmtree, os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def read_records() -> Callable[[Path], list[dict[str, Any]]]:
    """The records of a run's metrics.jsonl."""
    return lambda path: [json.loads(line) for line in path.read_text().splitlines()]
