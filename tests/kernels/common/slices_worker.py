"""One gloo rank: both distributed losses, whole and in slices, right and with planted bugs."""

import inspect
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
import torch.distributed as dist
from torch.nn.functional import normalize

from svilm_fast.kernels import collectives, slices
from svilm_fast.kernels.backend import interpreted
from svilm_fast.kernels.grounding import distributed as grounding
from svilm_fast.kernels.grounding import similarity_scores
from svilm_fast.kernels.infonce import distributed as infonce

BATCH = 5
COUNTS = ((2, 0, 1, 0, 2), (0, 0, 0, 1, 0), (1, 2, 2, 2, 0), (0, 0, 0, 0, 0))
CASES = ("plain", "exclude", "share", "grounding", "maxsim")
FUSED = ("plain", "exclude", "share", "grounding")

# module, {text: a plausible mistake}. A sleep stands for a slow network or kernel.
BUGS = {
    "only slow": (
        "slices",
        {
            "            sent = tensor": "            time.sleep(0.02 * exchange.plan.rank)\n"
            "            sent = tensor",
            "        work = dist.reduce": "        time.sleep(0.02 * plan.rank)\n"
            "        work = dist.reduce",
        },
    ),
    "slice starts at its own rows": (
        "slices",
        {"[0, *self.part_sizes[1:]]": "[0, *(-rows.start for rows in self.rows)]"},
    ),
    "own rows taken from the first rank": (
        "slices",
        {"by_rank[self.rank], *": "by_rank[0], *"},
    ),
    "slices side by side": (
        "slices",
        {"torch.cat(pieces, 1).flatten()": "torch.cat([piece.flatten() for piece in pieces])"},
    ),
    "gradient to the next rank": (
        "slices",
        {
            "summands[:own] = gradient[:own]": "summands[:-size] = gradient",
            "summands[own : own + size] = 0": "summands[-size:] = 0",
            "summands[own + size :] = gradient[own:]": "",
        },
    ),
    "own rows not cleared": (
        "slices",
        {"summands[own : own + size] = 0": "summands.nan_to_num_(1)"},
    ),
    "every slice scattered to the first rows": (
        "slices",
        {"total[rows] += received": "total[: len(received)] += received"},
    ),
    "slice read before it arrived": (
        "slices",
        {
            "        work.wait()\n        exchange": "        exchange",
            "            sent = tensor": "            time.sleep(0.02 * exchange.plan.rank)\n"
            "            sent = tensor",
        },
    ),
    "gradient read before it arrived": (
        "slices",
        {
            "            work.wait()\n            total": "            total",
            "        work = dist.reduce": "        time.sleep(0.02 * plan.rank)\n"
            "        work = dist.reduce",
        },
    ),
    "gradient sent before it is complete": (
        "slices",
        {
            "        summands[own + size :] = gradient[own:]\n": "",
            "        ctx.exchange.leaving[ctx.number]": "        time.sleep(0.02)\n"
            "        summands[own + size :] = gradient[own:]\n"
            "        ctx.exchange.leaving[ctx.number]",
        },
    ),
    "last slice wins the videos' gradient": ("slices", {"total += gradient": "total = gradient"}),
    "slices' sums under the largest": (
        "infonce",
        {
            "torch.logsumexp(torch.stack([block.row_lse for block in blocks]), 0)": (
                "torch.stack([block.row_lse for block in blocks]).amax(0)"
            )
        },
    ),
    "shares of a slice taken for the whole": (
        "infonce",
        {"torch.where(own > 0, weights[0] / own, 0.0)": "torch.where(own > 0, 1.0, 0.0)"},
    ),
    "columns not in the order of ranks": (
        "grounding",
        {"plan.in_rank_order(columns.split(plan.part_sizes))": "columns"},
    ),
}

IMPORTS = {"infonce": "from ..slices import", "grounding": "from svilm_fast.kernels.slices import"}


def copy_of(module: ModuleType, replacements: dict[str, str], name: str) -> ModuleType:
    text = inspect.getsource(module).replace(
        "import annotations\n", "import annotations\nimport time\n"
    )
    for old, new in replacements.items():
        assert old in text, f"planted bug: {old!r} is not in {module.__name__}; update the test"
        text = text.replace(old, new)
    package = module.__name__.rpartition(".")[0]
    copy = ModuleType(f"{package}.{name}")
    copy.__package__ = package
    sys.modules[copy.__name__] = copy
    exec(compile(text, copy.__name__, "exec"), copy.__dict__)
    return copy


def planted(number: int, where: str, replacements: dict[str, str]) -> dict[str, ModuleType]:
    """The modules of the two losses with one bug in them or in the slices."""
    modules, name = {"infonce": infonce, "grounding": grounding}, f"planted_{number}"
    if where != "slices":
        return modules | {where: copy_of(modules[where], replacements, name)}
    copy = copy_of(slices, replacements, name)
    copy.SLICE_BYTES, copy.MAX_SLICES = slices.SLICE_BYTES, slices.MAX_SLICES
    return {
        op: copy_of(module, {IMPORTS[op]: f"from svilm_fast.kernels.{name} import"}, name)
        for op, module in modules.items()
    }


def leaves(place: int, shapes, dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + place)
    return [
        normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)
        .to(dtype)
        .requires_grad_()
        for shape in shapes
    ]


def losses(modules, case, group, dtype=torch.float64, dim=6, **options):
    """Loss, its gradients and the inputs of one case; a loss weight of 3."""
    place = collectives.rank(group)
    scalar = torch.float64 if dtype == torch.float64 else torch.float32
    scale = torch.tensor(9.0, dtype=scalar, requires_grad=True)
    if case in ("grounding", "maxsim"):
        groups, nouns = leaves(place, ((BATCH, 3, dim), (BATCH, 2, dim)), dtype)
        mask = torch.arange(2) < torch.tensor(COUNTS[place])[:, None]
        beta = torch.tensor(6.0, dtype=scalar, requires_grad=True)
        inputs = (groups, nouns, mask, beta, scale)
        if case == "maxsim":
            options["scores"] = partial(similarity_scores, "maxsim")
        loss = modules["grounding"].distributed_grounding_loss(*inputs, group=group, **options)
    else:
        inputs = (*leaves(place, ((BATCH, dim),) * 2, dtype), scale)
        if case != "plain":
            ids = torch.tensor((0, 1, 0, 2, 1)) + place % 2
            options |= {"pair_ids": ids, "pair_mode": case}
        loss = modules["infonce"].distributed_infonce(*inputs, group=group, **options)
    wanted = [leaf for leaf in inputs if leaf.requires_grad]
    gradients = torch.autograd.grad(3.0 * loss, wanted, materialize_grads=True)
    saved = [leaf.detach() for leaf in inputs]
    return {
        "inputs": saved,
        "ids": options.get("pair_ids"),
        "loss": loss.detach(),
        "gradients": [gradient.detach() for gradient in gradients],
    }


COLLECTIVES = ("all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce")


@contextmanager
def recorded_collectives(record):
    """Call `record(name, tensors)` at the start of every collective."""
    originals = {name: getattr(dist, name) for name in COLLECTIVES}

    def recorded(name, *arguments, **options):
        record(name, [value for value in arguments if isinstance(value, torch.Tensor)])
        return originals[name](*arguments, **options)

    for name in COLLECTIVES:
        setattr(dist, name, partial(recorded, name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def traffic(modules, case) -> list[tuple[str, int, int]]:
    """Name, number of elements and bytes of an element of every collective of a loss."""
    calls = []

    def record(name, tensors):
        largest = max(tensors, key=torch.Tensor.numel)
        calls.append((name, largest.numel(), largest.itemsize))

    with recorded_collectives(record):
        losses(modules, case, None)
    return calls


def order_of_work(modules) -> list[str]:
    """Names of the collectives, the scores and the scores' gradients of a loss as they start."""
    order: list[str] = []

    def scores(*inputs):
        order.append("scores")
        result = similarity_scores("softmax", *inputs)
        result.register_hook(lambda _: order.append("gradient"))
        return result

    with recorded_collectives(lambda name, _: order.append(name)):
        losses(modules, "grounding", None, scores=scores)
    return order


def in_slices(number: int) -> None:
    slices.SLICE_BYTES, slices.MAX_SLICES = 1, number


def results(folder: Path) -> dict:
    place, world = dist.get_rank(), dist.get_world_size()
    groups = {size: dist.new_group(list(range(size))) for size in range(1, world + 1)}
    modules = {"infonce": infonce, "grounding": grounding}
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    found: dict = {"losses": {}, "traffic": {}, "bugs": {}, "fused": {}}
    for size in range(place + 1, world + 1):
        for number in (1, 2, 3):
            in_slices(number)
            for case in CASES:
                found["losses"][size, number, case] = losses(modules, case, groups[size])
    for number in (1, 3):
        in_slices(number)
        for case in ("plain", "grounding"):
            found["traffic"][number, case] = traffic(modules, case)
    in_slices(2)
    found["order"] = order_of_work(modules)
    if place < 2:
        for name, case, options in (
            *((case, case, {"dtype": torch.float32}) for case in FUSED),
            ("bfloat16", "plain", {"dtype": torch.bfloat16}),
        ):
            if name != "grounding" or interpreted():
                found["fused"][name] = losses(
                    modules, case, groups[2], dim=16, backend="fused", **options
                )
    if place < 3:
        in_slices(3)
        for number, (name, (where, replacements)) in enumerate(BUGS.items()):
            wrong = planted(number, where, replacements)
            found["bugs"][name] = {
                case: losses(wrong, case, groups[3])
                for case in ("plain", "exclude", "share", "grounding")
            }
    return found
