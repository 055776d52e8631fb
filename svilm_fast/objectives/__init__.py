"""The losses that a model is trained with; each kind is one file and one line here."""

from svilm_fast.objectives.base import register
from svilm_fast.objectives.contrast import ContrastConfig
from svilm_fast.objectives.distill import DistillConfig
from svilm_fast.objectives.grounding import GroundingConfig
from svilm_fast.objectives.temporal import TemporalConfig
from svilm_fast.objectives.vidrop import ViDropConfig

register(ContrastConfig)
register(DistillConfig)
register(GroundingConfig)
register(TemporalConfig)
register(ViDropConfig)
