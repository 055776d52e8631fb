"""Compressed clips: small palettes of colours, patches or blocks, and a code for each of them."""
