"""One gloo rank of a worker beside the tests: saves what its `results` returns."""

import importlib
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


def main(worker: Path, folder: Path, *words: str) -> None:
    sys.path.insert(0, str(worker.parent))
    results = importlib.import_module(worker.stem).results
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    try:
        torch.save(results(folder, *words), folder / f"{dist.get_rank()}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
