"""Locked towers: what is trained, and that no graph is kept of the rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from svilm_fast.models.config import TextConfig
from svilm_fast.models.dual_encoder import DualEncoder
from svilm_fast.models.locking import locked_levels


@pytest.fixture
def encoder_of(make_encoder) -> Callable[..., DualEncoder]:
    """Four video layers, grouping after the last two, and two text layers."""

    def make(video: object = False, text: object = False) -> DualEncoder:
        return make_encoder(depth=4, grouping={"layers": [2, 3]}, lock=video, text={"lock": text})

    return make


def trained_parts(encoder: DualEncoder, tower: str) -> set[str]:
    """The first words of the names of a tower's trained parameters, numbers kept."""
    names = [name for name, p in encoder.named_parameters() if p.requires_grad]
    inner = [name.removeprefix(f"{tower}.") for name in names if name.startswith(f"{tower}.")]
    return {".".join(name.split(".")[: 2 if "blocks" in name else 1]) for name in inner}


HEAD = {"norm", "projection", "group_norm", "group_projection"}
LAST = {"blocks.3"}


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        (True, set()),
        (0, HEAD),
        (1, HEAD | LAST),
        (2, HEAD | LAST | {"blocks.2", "grouping_blocks.3"}),
        (4, HEAD | {f"blocks.{n}" for n in range(4)} | {"grouping_blocks.2", "grouping_blocks.3"}),
    ],
)
def test_a_number_leaves_the_head_and_so_many_last_layers(
    encoder_of, lock: object, wanted: set[str]
) -> None:
    encoder = encoder_of(video=lock)
    assert trained_parts(encoder, "video") == wanted
    assert all(p.requires_grad for p in encoder.text.parameters())


def test_without_a_lock_everything_is_trained_and_one_is_a_number(encoder_of) -> None:
    assert all(parameter.requires_grad for parameter in encoder_of().parameters())
    assert trained_parts(encoder_of(text=1), "text") == {"blocks.1", "norm", "projection"}
    assert [locked_levels(lock, 4) for lock in (False, True, 0, 4)] == [0, 6, 5, 1]


@pytest.mark.parametrize("lock", [3, -1])
def test_a_number_of_layers_that_there_is_not_is_refused(lock: int) -> None:
    with pytest.raises(ValueError, match=rf"text.lock={lock} must be .* 0 to text.depth=2"):
        TextConfig(depth=2, lock=lock)


def test_nothing_of_a_locked_prefix_is_kept_for_backward(encoder_of, frames, seeds) -> None:
    def kept(lock: object) -> int:
        encoder = encoder_of(video=lock)
        tensors: dict[int, torch.Tensor] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            tensors[tensor.data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            features = encoder.encode_video(frames, seeds)
        assert features.video.requires_grad == (lock is not True)
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())

    sizes = [kept(lock) for lock in (False, 2, 0, True)]
    assert sizes[0] > 1.5 * sizes[1] > 1.5 * sizes[2] > sizes[3] == 0
