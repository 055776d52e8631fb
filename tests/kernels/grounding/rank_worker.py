"""One gloo rank: runs every distributed check and returns what it found."""

from functools import partial

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
    other = torch.float32 if place else torch.float64
    uneven = {"groups": groups[:short], "nouns": nouns[:short], "noun_mask": mask[:short]}
    return {
        "uneven": refused(group, **uneven),
        "one_bad_rank": refused(group, **({"noun_mask": mask[:2]} if place == 1 else {})),
        "no_tensor": refused(group, **({"groups": None} if place == 1 else {})),
        "huge": refused(group, scale=10**400 if place == 1 else 1.0),
        "groups_dtype": refused(group, groups=groups.to(other)),
        "nouns_dtype": refused(group, nouns=nouns.to(other)),
        "beta_dtype": refused(group, beta=torch.ones((), dtype=other)),
        "beta": refused(group, beta=1.0 + place),
        "scale_dtype": refused(group, scale=torch.ones((), dtype=other)),
        "scale": refused(group, scale=5.0 + place),
        "workspace": refused(group, workspace_bytes=100 + place),
        "no_path": refused(group, backend="fused" if place else None),
        "gradients": refused(group, **({"nouns": nouns.detach()} if place == 1 else {})),
    }


def results(folder, backend):
    pair = dist.new_group([0, 1])
    found = {}
    for name, group in (("all", None), ("pair", pair)):
        if name == "pair" and dist.get_rank() >= 2:
            continue
        losses = {counts: loss_results(group, counts) for counts in COUNTS}
        losses["maxsim"] = loss_results(
            group, "uneven", scores=partial(similarity_scores, "maxsim")
        )
        losses["small_workspace"] = loss_results(group, "uneven", workspace_bytes=64)
        if backend == "fused":
            losses["fused"] = loss_results(group, "uneven", dtype=torch.float32, backend="fused")
        found[name] = {"losses": losses, "errors": error_results(group)}
    return found
