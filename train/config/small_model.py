"""A model of about ten thousand parameters, for runs that only test the machinery."""

# Dotted overrides of a recipe; the clips may be as small as 4 frames of 32 x 32 pixels.
SMALL_MODEL = (
    "video.frames=4",
    "video.image_size=32",
    "video.num_segments=2",
    "video.width=24",
    "video.depth=2",
    "video.num_groups=4",
    "text.width=24",
    "text.depth=1",
    "text.vocab_size=300",
)
