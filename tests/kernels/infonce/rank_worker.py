"""One gloo rank: runs every distributed check and returns what it found."""

import torch
import torch.distributed as dist
from torch.nn.functional import normalize

from svilm_fast.kernels import collectives
from svilm_fast.kernels.infonce import distributed_infonce

LOCAL_BATCH, DIM = 4, 5
IDS = {"none": None, "exclude": (0, 1, 0, 2), "share": (0, 1, 0, 2)}


def collective_results(group):
    place = collectives.rank(group)
    generator = torch.Generator().manual_seed(place)
    local = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    leaf = local.clone().requires_grad_()
    gathered = collectives.gather(leaf, group)
    weights = torch.randn(gathered.shape, generator=generator, dtype=torch.float64)
    found = {"local": local, "gathered": gathered.detach(), "weights": weights}
    found["gather_gradient"] = torch.autograd.grad((gathered * weights).sum(), leaf)[0]
    total = collectives.all_reduce_sum(leaf, group)
    found["total"] = total.detach()
    found["total_gradient"] = torch.autograd.grad((total * weights[:2]).sum(), leaf)[0]
    found["maximum"] = collectives.all_reduce_max(leaf, group)
    lse = 1000 * leaf
    lse = torch.cat((lse.flatten(), leaf.new_full((1,), -torch.inf)))
    combined = collectives.all_reduce_logsumexp(lse, group)
    found["lse"] = combined.detach()
    found["lse_gradient"] = torch.autograd.grad(combined[:-1].sum(), leaf)[0]
    half = torch.full((2,), 1.0, dtype=torch.float16, requires_grad=True)
    found["half_gradient"] = torch.autograd.grad(collectives.gather(half, group).sum(), half)[0]
    found["ids"] = collectives.gather(torch.tensor([place + 2**40]), group)
    return found


def loss_results(group, mode, *, dtype=torch.float64, dim=DIM, **options):
    place = collectives.rank(group)
    generator = torch.Generator().manual_seed(100 + place)
    videos, texts = (
        normalize(torch.randn(LOCAL_BATCH, dim, generator=generator, dtype=torch.float64), dim=1)
        .to(dtype)
        .requires_grad_()
        for _ in range(2)
    )
    scale = torch.tensor(9.0, requires_grad=True)
    ids = IDS[mode]
    ids = None if ids is None else torch.tensor(ids) + place % 2
    loss = distributed_infonce(
        videos,
        texts,
        scale,
        group=group,
        pair_ids=ids,
        pair_mode="share" if mode == "share" else "exclude",
        **options,
    )
    # A loss weight: upstream gradients are never one.
    gradients = torch.autograd.grad(3.0 * loss, (videos, texts, scale))
    return {
        "videos": videos.detach(),
        "texts": texts.detach(),
        "ids": ids,
        "loss": loss.detach(),
        "gradients": gradients,
    }


def refused(group, **changes):
    generator = torch.Generator().manual_seed(7)
    call = {name: torch.randn(4, 5, generator=generator) for name in ("videos", "texts")}
    try:
        distributed_infonce(**(call | {"scale": 1.0, "group": group} | changes))
    except ValueError as error:
        return str(error)
    return None


def error_results(group):
    place = collectives.rank(group)
    uneven = torch.randn(4 - place % 2, 5)
    learning = torch.randn(4, 5).requires_grad_(place == 0)
    ids = torch.arange(4) if place == 0 else None
    double = torch.randn(4, 5, dtype=torch.float64 if place else torch.float32)
    found = {
        "uneven": refused(group, videos=uneven, texts=uneven),
        "one_bad_rank": refused(group, **({"texts": torch.randn(4, 6)} if place == 1 else {})),
        "no_tensor": refused(group, **({"videos": None} if place == 1 else {})),
        "two_lists": refused(group, pair_ids=(torch.arange(4),) * 2 if place == 1 else None),
        "huge": refused(group, scale=10**400 if place == 1 else 1.0),
        "gradients": refused(group, texts=learning),
        "ids": refused(group, pair_ids=ids),
        "videos_dtype": refused(group, **dict.fromkeys(("videos", "texts"), double)),
        "scale_dtype": refused(group, scale=torch.tensor(2.0, dtype=double.dtype)),
        "scale": refused(group, scale=2.0 + place),
        "pair_mode": refused(
            group, pair_ids=torch.arange(4), pair_mode="share" if place else "exclude"
        ),
        "workspace": refused(group, workspace_bytes=100 + place),
        "no_path": refused(group, backend="fused" if place else None),
    }
    try:
        collectives.check_equal_calls(
            "loader", f"a local batch of {8 + place}", device=torch.device("cpu"), group=group
        )
    except ValueError as error:
        found["local_batch"] = str(error)
    collectives.check_equal_calls(
        "loader", "a local batch of 8", device=torch.device("cpu"), group=group
    )
    return found


def results(folder):
    pair = dist.new_group([0, 1])
    fused = {"dtype": torch.float32, "dim": 16, "backend": "fused", "check_ranks": False}
    return {
        name: {
            "collectives": collective_results(group),
            "losses": {mode: loss_results(group, mode) for mode in IDS},
            "errors": error_results(group),
            "fused": {mode: loss_results(group, mode, **fused) for mode in IDS},
        }
        for name, group in (("all", None), ("pair", pair))
        if name == "all" or dist.get_rank() < 2
    }
