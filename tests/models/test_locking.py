"""Locked towers: what is trained, that no graph is kept of the rest, and the FLOPs of both."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from svilm_fast.kernels.philox import StepSeeds
from svilm_fast.models.config import ModelConfig, TextConfig, VideoConfig
from svilm_fast.models.dual_encoder import DualEncoder
from svilm_fast.models.flops import text_flops, video_flops
from svilm_fast.models.locking import locked_levels
from svilm_fast.objectives.config import SViLMConfig
from svilm_fast.objectives.flops import step_flops

VIDEO = {
    "frames": 4,
    "image_size": 16,
    "tubelet": 2,
    "patch": 4,
    "width": 24,
    "depth": 4,
    "heads": 3,
    "num_groups": 5,
    "num_segments": 2,
    "grouping": {"layers": [2, 3]},
}
TEXT = {"vocab_size": 20, "length": 9, "width": 16, "depth": 2, "heads": 2}


def encoder_of(video: object = False, text: object = False) -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(
        ModelConfig(embed_dim=8, attention="sdpa"),
        VideoConfig(**VIDEO, lock=video),
        TextConfig(**TEXT, lock=text),
    )


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
def test_a_number_leaves_the_head_and_so_many_last_layers(lock: object, wanted: set[str]) -> None:
    encoder = encoder_of(video=lock)
    assert trained_parts(encoder, "video") == wanted
    assert all(p.requires_grad for p in encoder.text.parameters())


def test_without_a_lock_everything_is_trained_and_one_is_a_number() -> None:
    assert all(parameter.requires_grad for parameter in encoder_of().parameters())
    assert trained_parts(encoder_of(text=1), "text") == {"blocks.1", "norm", "projection"}
    assert [locked_levels(lock, 4) for lock in (False, True, 0, 4)] == [0, 6, 5, 1]


@pytest.mark.parametrize("lock", [3, -1])
def test_a_number_of_layers_that_there_is_not_is_refused(lock: int) -> None:
    with pytest.raises(ValueError, match=rf"text.lock={lock} must be .* 0 to text.depth=2"):
        TextConfig(**TEXT, lock=lock)


def test_nothing_of_a_locked_prefix_is_kept_for_backward() -> None:
    def kept(lock: object) -> int:
        encoder = encoder_of(video=lock)
        tensors: dict[int, torch.Tensor] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            tensors[tensor.data_ptr()] = tensor
            return tensor

        frames = torch.randint(0, 256, (3, 4, 16, 16, 3), dtype=torch.uint8)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            features = encoder.encode_video(frames, StepSeeds(0, 0, torch.arange(3)))
        assert features.video.requires_grad == (lock is not True)
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())

    sizes = [kept(lock) for lock in (False, 2, 0, True)]
    assert sizes[0] > 1.5 * sizes[1] > 1.5 * sizes[2] > sizes[3] == 0


def backward_flops(run) -> tuple[int, int]:
    with FlopCounterMode(display=False) as forward:
        loss = run()
    with FlopCounterMode(display=False) as backward:
        if loss.requires_grad:
            loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("lock", [False, True, 0, 1, 3, 4])
def test_video_formula_equals_torchs_counter(lock: object, monkeypatch) -> None:
    monkeypatch.setenv("SVILM_ATTENTION", "reference")
    encoder = encoder_of(video=lock)
    frames = torch.randint(0, 256, (3, 4, 16, 16, 3), dtype=torch.uint8)

    def run() -> torch.Tensor:
        features = encoder.encode_video(frames, StepSeeds(0, 0, torch.arange(3)))
        return features.video.sum() + features.segments.sum() + features.groups.sum()

    expected = video_flops(VideoConfig(**VIDEO, lock=lock), 8)
    # The reference pools segments by a product with a one-hot matrix, which is no needed work.
    pooling = 2 * 2 * 32 * 24
    forward, backward = backward_flops(run)
    assert forward == 3 * (expected.forward + pooling)
    assert backward == 3 * (expected.backward + (0 if lock is True else pooling))


@pytest.mark.parametrize("lock", [False, True, 0, 1, 2])
def test_text_formula_equals_torchs_counter(lock: object, monkeypatch) -> None:
    monkeypatch.setenv("SVILM_ATTENTION", "reference")
    encoder = encoder_of(text=lock)
    tokens, mask = torch.randint(0, 20, (3, 7)), torch.ones(3, 7, dtype=torch.bool)
    expected = text_flops(TextConfig(**TEXT, lock=lock), 8, 7)
    found = backward_flops(lambda: encoder.encode_text(tokens, mask).sum())
    assert found == (3 * expected.forward, 3 * expected.backward)


def test_similarities_have_one_product_less_in_backward() -> None:
    def pairs(**locks: object):
        config = SViLMConfig(
            model={"preset": "tiny"},
            video={"lock": locks.get("video", False)},
            text={"lock": locks.get("text", False)},
        )
        return step_flops(config, global_batch=6, num_nouns=2).objectives

    free, locked = pairs(), pairs(text=True)
    assert free.backward == 2 * free.forward
    assert locked.backward == locked.forward == free.forward
