"""Named shapes of grouping, their inputs, and the variants that the static table compiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..backend import use_backend
from ..launch import power_of_two
from ..registry import RoleWork, Sizes, TileWork, Variant

_KEYS = ("batch", "tokens", "width", "groups")
CASES: dict[str, dict[str, Any]] = {
    "target": {"batch": 256, "tokens": 3136, "width": 768, "groups": 32},
    "large": {"batch": 256, "tokens": 1568, "width": 1024, "groups": 32},
    "small": {"batch": 64, "tokens": 1568, "width": 384, "groups": 32},
    "few_clips": {"batch": 8, "tokens": 3136, "width": 768, "groups": 32},
    "ragged": {"batch": 3, "tokens": 517, "width": 192, "groups": 20},
}
SIZES = Sizes(
    tiny={"batch": 1, "tokens": 4, "width": 8, "groups": 2},
    small={"batch": 3, "tokens": 37, "width": 32, "groups": 5},
    large={"batch": 16, "tokens": 512, "width": 64, "groups": 8},
    cpu={"clips_4": {"batch": 4, "tokens": 784, "width": 192, "groups": 8}},
    compared=("target",),
)


def make_inputs(
    case: Mapping[str, Any], dtype: torch.dtype, device: torch.device | str, seed: int
) -> dict[str, Any]:
    """Keyword arguments of `grouping`; logits have a standard deviation near 1."""
    batch, length, width, groups = (case[key] for key in _KEYS)
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    return {
        "queries": (normal(batch, groups, width) * width**-0.5).to(dtype).requires_grad_(),
        "tokens": normal(batch, length, width).to(dtype).requires_grad_(),
        "group_bias": (0.1 * normal(batch, groups)).requires_grad_(),
        "seeds": torch.arange(batch, device=device) * 7919 + seed,
        "mode": "gumbel",
    }


def _variant(
    case: str, dtype: torch.dtype, backward: bool, masked: bool = False, gluon: bool = False
) -> Variant:
    """Forward or backward of a case, for the targets on which the op takes the fused path.

    `masked` tokens are a variant for sm_90 only, where backward then takes another kernel; so are
    the Gluon kernels.
    """

    def run() -> None:
        from .fused import function

        batch, length, width, groups = (CASES[case][key] for key in _KEYS)

        def meta(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=kind, device="meta")

        rows, counts = meta(batch, groups, width), meta(batch, groups, kind=torch.float32)
        seeds = meta(batch, kind=torch.int64)
        # With token ids, so that the path of token dropping is compiled as well.
        dropped = meta(batch, length, kind=torch.int64) if case == "few_clips" else None
        mask = meta(batch, length, kind=torch.bool) if masked else None
        inputs = (rows, meta(batch, length, width), counts, seeds, dropped, mask)
        settings = ("gumbel", 1.0, 1.0)
        if backward:
            index = meta(batch, length, kind=torch.int32)
            output = (rows, counts, index)
            function.backward(rows, counts, *inputs, *settings, *output, True, True)
        else:
            function.forward(*inputs, *settings)

    def run_gluon() -> None:
        with use_backend("gluon"):
            run()

    way = ("masked " if masked else "") + ("backward" if backward else "forward")
    label = f"{case} {str(dtype).removeprefix('torch.')} {way}"
    if gluon:
        label += " gluon"
    targets: tuple[str, ...] = ("sm_80", "sm_90", "sm_100")
    if dtype == torch.float32:
        targets = ("sm_80", "sm_90")
    if masked or gluon:
        targets = ("sm_90",)
    counted = case == "target" and not masked and not gluon
    return Variant("grouping", label, run_gluon if gluon else run, targets, counted=counted)


VARIANTS = (
    *(
        _variant(case, dtype, backward)
        for case, dtype in (
            ("target", torch.bfloat16),
            ("large", torch.bfloat16),
            ("few_clips", torch.float16),
            ("few_clips", torch.float32),
        )
        for backward in (False, True)
    ),
    _variant("target", torch.bfloat16, backward=True, masked=True),
    *(
        _variant(case, dtype, backward, gluon=True)
        for case, dtype in (("target", torch.bfloat16), ("few_clips", torch.float16))
        for backward in (False, True)
    ),
)


def _forward_tile(options: Mapping[str, Any]) -> TileWork:
    """BLOCK_L tokens of the first slab, which computes all logits and pools its own columns."""
    own = options["OWN_BLOCKS"] * options["BLOCK_C"]
    others = options["OWN_BLOCKS"] * (options["SLABS"] - 1)
    flops = 2.0 * options["BLOCK_L"] * options["BLOCK_G"] * (options["WIDTH"] + own)
    # With several slabs, a loop before and one after the own blocks add the logits of the others.
    trips = (0, others) if options["SLABS"] > 1 else ()
    return TileWork(flops, 2.0 * options["BLOCK_L"] * own, trips=trips)


def _backward_tile(options: Mapping[str, Any]) -> TileWork:
    """BLOCK_L tokens: logits and dA of all columns; query and token gradients of its own."""
    own = options["OWN_BLOCKS"] * options["BLOCK_C"]
    flops = 2.0 * options["BLOCK_L"] * options["BLOCK_G"] * (2 * options["WIDTH"] + 3 * own)
    # Half blocks of the token gradient: see the kernel.
    trips = (options["OWN_BLOCKS"] * options["SLABS"], 2 * options["OWN_BLOCKS"])
    return TileWork(flops, 4.0 * options["BLOCK_L"] * own, trips=trips)


def _stream_tile(options: Mapping[str, Any]) -> TileWork:
    """BLOCK_L tokens in the flattened loop over their blocks; two tiles are under way."""
    width = options["NUM_BLOCKS"] * options["BLOCK_C"]
    flops = 2.0 * options["BLOCK_L"] * options["BLOCK_G"] * 5 * width
    return TileWork(flops, 4.0 * options["BLOCK_L"] * width, steps=options["NUM_BLOCKS"])


def _gluon_tile(options: Mapping[str, Any]) -> TileWork:
    """64 tokens: logits and assignment by one group, pooling by the other, one warp copies."""
    from .fused.gluon_forward import SLICE

    slices = -(-options["WIDTH"] // SLICE)
    group = RoleWork(4)
    copying = RoleWork(1, copies=slices, stages=options["STAGES"])
    tokens, depth = 64, slices * SLICE
    return TileWork(
        4.0 * tokens * depth * options["BLOCK_G"],
        2.0 * tokens * depth,
        roles=(group, copying, group),
        program_tiles=49,
    )


def _gluon_backward_tile(options: Mapping[str, Any]) -> TileWork:
    """64 tokens: two warps copy them; one group each for the factors, dx and the query gradient."""
    from .fused.gluon_backward import BLOCK_L, SLICE

    slices = -(-options["WIDTH"] // SLICE)
    block_groups = power_of_two(options["GROUPS"], 16)
    looped = RoleWork(4, trips=(slices,))
    copying = RoleWork(1, copies=slices, stages=options["STAGES"])
    again = RoleWork(1, copies=slices, stages=options["AGAIN_STAGES"])
    depth = slices * SLICE
    return TileWork(
        10.0 * BLOCK_L * depth * block_groups,
        4.0 * BLOCK_L * depth,
        roles=(looped, again, looped, copying, RoleWork(4)),
        program_tiles=49,
    )


TILES: dict[str, Callable[[Mapping[str, Any]], TileWork]] = {
    "grouping_forward_kernel": _forward_tile,
    "gluon_grouping_forward_kernel": _gluon_tile,
    "grouping_backward_kernel": _backward_tile,
    "grouping_backward_stream_kernel": _stream_tile,
    "gluon_grouping_backward_kernel": _gluon_backward_tile,
}
