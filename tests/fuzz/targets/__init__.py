"""The fuzz targets, one module each."""

from ..engine import Target
from . import (
    captions,
    config,
    data_index,
    grounding,
    grouping,
    infonce,
    manifests,
    shards,
    temporal,
    videos,
)
from . import tokenizer as tokenizers

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        shards.TAR,
        shards.INDEX,
        data_index.TARGET,
        videos.TARGET,
        tokenizers.TARGET,
        captions.LISTS,
        manifests.TARGET,
        captions.TARGET,
        temporal.BCE,
        temporal.POOL,
        infonce.TARGET,
        grounding.TARGET,
        grouping.TARGET,
        config.TARGET,
    )
}
