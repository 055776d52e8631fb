"""Fills the towers of a new run with the weights that the block `weights` names."""

from __future__ import annotations

from torch import Tensor, nn

from svilm_fast.core.errors import UserError
from svilm_fast.core.terminal import print
from svilm_fast.models.dual_encoder import DualEncoder
from svilm_fast.models.pretrained.config import WeightsConfig
from svilm_fast.models.pretrained.load import load_pretrained_towers
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.ranks.process_group import Ranks


def load_towers(model: nn.Module, config: RunConfig, ranks: Ranks) -> dict[str, Tensor]:
    """Load the block `weights` and print the report on rank 0.

    Returns copies of what was loaded, by parameter name, if the engine will round the parameters
    (bf16); otherwise nothing. Raises CheckpointError for weights that do not fit.
    """
    if config.weights == WeightsConfig():
        return {}
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, DualEncoder):
        raise UserError(f"weights: {type(model).__name__} has no video and text tower to fill")
    loaded = set()
    for report in load_pretrained_towers(encoder, config.weights):
        loaded |= {f"encoder.{report.tower}.{name}" for name in report.taken}
        if ranks.is_first:
            print("\n".join(report.lines()), flush=True)
    if config.training.precision != "bf16":
        return {}
    return {name: value.clone() for name, value in model.state_dict().items() if name in loaded}
