"""One rank of test_ranks.py: gradients of its part of the batch, averaged over the ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from svilm_fast.objectives.config import SViLMConfig
from svilm_fast.objectives.svilm import build_model


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    told = {}
    for name, (values, parts) in torch.load(folder / "cases.pt", weights_only=False).items():
        torch.manual_seed(0)
        model = build_model(SViLMConfig(**values)).double()
        output = model(parts[rank])
        output.loss.backward()
        gradients = {}
        for key, parameter in model.named_parameters():
            total = parameter.grad.clone()
            dist.all_reduce(total)
            gradients[key] = total / world
        told[name] = {"loss": output.loss.detach(), "gradients": gradients}
    torch.save(told, folder / f"rank_{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
