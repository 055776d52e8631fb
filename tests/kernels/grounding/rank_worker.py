"""One gloo rank: runs every distributed check and saves what it found. Started by its test."""

import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import normalize

from svilm_fast.kernels import collectives
from svilm_fast.kernels.grounding import distributed_grounding_loss, similarity_scores

BATCH, GROUPS, NOUNS, DIM = 4, 3, 2, 5
# Nouns per caption on each rank.
COUNTS = {
    "uneven": ((2, 0, 1, 0), (0, 0, 0, 1), (1, 2, 2, 2)),
    "one_rank_without": ((0, 0, 0, 0), (2, 0, 1, 0), (1, 1, 0, 2)),
    "none": ((0, 0, 0, 0),) * 3,
}


def inputs(place, counts, dtype=torch.float64):
    generator = torch.Generator().manual_seed(100 + place)
    groups, nouns = (
        normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)
        .to(dtype)
        .requires_grad_()
        for shape in ((BATCH, GROUPS, DIM), (BATCH, NOUNS, DIM))
    )
    mask = torch.arange(NOUNS) < torch.tensor(COUNTS[counts][place])[:, None]
    beta, scale = (torch.tensor(v, dtype=dtype, requires_grad=True) for v in (6.0, 9.0))
    return groups, nouns, mask, beta, scale


def loss_results(group, counts, *, dtype=torch.float64, **options):
    leaves = inputs(collectives.rank(group), counts, dtype)
    loss = distributed_grounding_loss(*leaves, group=group, **options)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    # A loss weight: upstream gradients are never one.
    gradients = torch.autograd.grad(3.0 * loss, wanted, materialize_grads=True)
    return {
        "inputs": [leaf.detach() for leaf in leaves],
        "loss": loss.detach(),
        "gradients": gradients,
    }


def refused(group, **changes):
    names = ("groups", "nouns", "noun_mask", "beta", "scale")
    call = dict(zip(names, inputs(0, "uneven")))
    try:
        distributed_grounding_loss(**(call | changes), group=group)
    except ValueError as error:
        return str(error)
    return None


def error_results(group):
    place = collectives.rank(group)
    groups, nouns, mask, _, _ = inputs(0, "uneven")
    short = 4 - place % 2
    uneven = {"groups": groups[:short], "nouns": nouns[:short], "noun_mask": mask[:short]}
    return {
        "uneven": refused(group, **uneven),
        "one_bad_rank": refused(group, **({"noun_mask": mask[:2]} if place == 1 else {})),
        "gradients": refused(group, **({"nouns": nouns.detach()} if place == 1 else {})),
    }


def main(place, world, port, folder):
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=place,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    try:
        pair = dist.new_group([0, 1])
        results = {}
        for name, group in (("all", None), ("pair", pair)):
            if name == "pair" and place >= 2:
                continue
            losses = {counts: loss_results(group, counts) for counts in COUNTS}
            losses["maxsim"] = loss_results(
                group, "uneven", scores=partial(similarity_scores, "maxsim")
            )
            losses["small_workspace"] = loss_results(group, "uneven", workspace_bytes=64)
            if sys.argv[5] == "fused":
                losses["fused"] = loss_results(
                    group, "uneven", dtype=torch.float32, backend="fused"
                )
            results[name] = {"losses": losses, "errors": error_results(group)}
        torch.save(results, Path(folder) / f"{place}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
