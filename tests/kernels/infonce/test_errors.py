"""Invalid input raises an error of one clear line."""

import pytest
import torch

from svilm_fast.kernels.infonce import infonce, infonce_partials

VIDEOS, TEXTS, IDS = torch.eye(4), torch.eye(4), torch.arange(4)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"texts": torch.eye(4)[:, :3]}, ValueError, r"videos \[m, D\] and texts \[n, D\]"),
        ({"videos": torch.ones(4)}, ValueError, r"got \[4\] and \[4, 4\]"),
        ({"texts": torch.eye(4).double()}, TypeError, "share one of fp16, bf16, fp32, fp64"),
        ({"videos": IDS.expand(4, 4), "texts": IDS.expand(4, 4)}, TypeError, "torch.int64"),
        ({"scale": torch.ones(1)}, ValueError, "scale must be a number or a 0-dim float tensor"),
        ({"scale": torch.tensor(1)}, ValueError, "scale must be a number or a 0-dim float tensor"),
        ({"videos": torch.ones(0, 4)}, ValueError, r"empty input has no loss, got \[0, 4\]"),
        ({"diagonal_offset": 4}, ValueError, "no pair lies in a"),
        ({"diagonal_offset": -4}, ValueError, "use infonce_partials"),
        ({"pair_ids": IDS.int()}, ValueError, r"int64 \[4\], got torch.int32"),
        ({"pair_ids": IDS[:3]}, ValueError, r"int64 \[4\], got torch.int64 \[3\]"),
        ({"pair_ids": IDS, "texts": torch.ones(5, 4)}, ValueError, r"\[5\], got torch.int64 \[4\]"),
        ({"pair_ids": (IDS, None)}, ValueError, "ids for videos and for texts, or neither"),
        ({"pair_mode": "drop"}, ValueError, "expected 'exclude' or 'share'"),
        (
            {"pair_mode": "share", "pair_ids": (IDS, IDS), "diagonal_offset": 1},
            ValueError,
            "needs a square block",
        ),
        ({"workspace_bytes": 0}, ValueError, "workspace_bytes must be positive"),
        ({"backend": "cuda"}, ValueError, "expected auto, fused or reference"),
        ({"scale": torch.ones((), device="meta")}, ValueError, "one device"),
    ],
)
def test_message(arguments, error, message):
    call = {"videos": VIDEOS, "texts": TEXTS, "scale": 1.0} | arguments
    with pytest.raises(error, match=message):
        infonce(**call)


def test_partials_check_their_block_too():
    with pytest.raises(ValueError, match="infonce_partials: pass ids"):
        infonce_partials(VIDEOS, TEXTS, 1.0, video_ids=IDS)


def test_a_second_backward_is_refused():
    videos = torch.eye(4, requires_grad=True)
    loss = infonce(videos, TEXTS, 1.0)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
