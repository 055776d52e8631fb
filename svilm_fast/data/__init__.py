"""Data: shards, lists, decoding, sampling, augmentation, nouns, tokenizers, loading, packing."""
