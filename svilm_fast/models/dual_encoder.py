"""The video encoder and the text encoder, which embed into one space."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from svilm_fast.core.philox import StepSeeds
from svilm_fast.data.palettes.frames import PaletteFrames
from svilm_fast.models.config import ModelConfig, TextConfig, VideoConfig
from svilm_fast.models.features import VideoFeatures
from svilm_fast.models.initialisation import initialise
from svilm_fast.models.locking import lock_towers
from svilm_fast.models.text_encoder import TextEncoder, TextSequences
from svilm_fast.models.video_encoder import VideoEncoder, VideoOutputs


class DualEncoder(nn.Module):
    """Embeds videos and texts."""

    def __init__(
        self, model: ModelConfig, video: VideoConfig, text: TextConfig, *, groups: bool = True
    ) -> None:
        super().__init__()
        self.video = VideoEncoder(video, model.embed_dim, attention=model.attention, groups=groups)
        self.text = TextEncoder(text, model.embed_dim, attention=model.attention)
        initialise(self, model.initialisation)
        lock_towers(self, {"video": video.lock, "text": text.lock})

    def encode_video(
        self,
        frames: Tensor | PaletteFrames,
        seeds: StepSeeds | None = None,
        outputs: VideoOutputs | None = None,
        shown: VideoConfig | None = None,
    ) -> VideoFeatures:
        """Embeds uint8 frames [b, F, H, W, 3], or compressed ones; see `VideoEncoder.forward`."""
        return self.video(frames, seeds, outputs, shown=shown)

    def encode_text(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Embeds int64 tokens [n, S] with bool mask [n, S] to unit-norm [n, D]."""
        return self.text([TextSequences(tokens, mask)])[0]

    def encode_nouns(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Embeds prompted nouns as grounding sees them: like `encode_text`, see `unit_nouns`."""
        return self.text([TextSequences(tokens, mask, nouns=True)])[0]

    def encode_texts(self, sequences: Sequence[TextSequences]) -> list[Tensor]:
        """Embeds sets of sequences of different lengths in one call; see `TextEncoder.forward`."""
        return self.text(sequences)
