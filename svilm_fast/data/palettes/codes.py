"""Codes of 1 to 8 bits, packed in groups of eight: any window of them is read without the rest."""

from __future__ import annotations

import numpy as np

GROUP = 8  # codes that fill `bits` whole bytes


def groups_of(width: int) -> int:
    """Groups of a row of `width` codes; the last one is filled up with zeros."""
    return -(-width // GROUP)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack uint8 [..., w] below 2**bits to uint8 [..., groups_of(w), bits].

    Code i of a group takes the bits from i * bits on, of a little-endian number.
    """
    width = codes.shape[-1]
    padded = np.zeros((*codes.shape[:-1], groups_of(width) * GROUP), np.uint8)
    padded[..., :width] = codes
    grouped = padded.reshape(*codes.shape[:-1], -1, GROUP).astype("<u8")
    words = np.zeros(grouped.shape[:-1], "<u8")
    for place in range(GROUP):
        words |= grouped[..., place] << np.uint64(place * bits)
    octets = words[..., None].view(np.uint8)
    return np.ascontiguousarray(octets[..., :bits])


def unpack(packed: np.ndarray, first: int, width: int) -> np.ndarray:
    """The codes `first` to `first + width` of each row: uint8 [..., width].

    packed: uint8 [..., groups, bits]; groups outside the window are not touched.
    """
    bits = packed.shape[-1]
    start = first // GROUP
    window = packed[..., start : -(-(first + width) // GROUP), :]
    if bits == GROUP:
        codes = np.ascontiguousarray(window)
    else:
        words = np.zeros((*window.shape[:-1], 8), np.uint8)
        words[..., :bits] = window
        numbers = words.view("<u8")  # [..., groups, 1]
        shifts = np.arange(GROUP, dtype=np.uint64) * np.uint64(bits)
        codes = ((numbers >> shifts) & np.uint64((1 << bits) - 1)).astype(np.uint8)
    flat = codes.reshape(*codes.shape[:-2], -1)
    return flat[..., first - start * GROUP :][..., :width]
