"""Compression of clips to palettes, off line: clustering, shards, and a report of what it costs."""
