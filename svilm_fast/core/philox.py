"""Counter-based random numbers (Philox4x32-10), bit-equal to Triton's `tl.rand` family."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

ROUNDS = 10
_MASK = 0xFFFFFFFF
_MULTIPLIER_A, _MULTIPLIER_B = 0xD2511F53, 0xCD9E8D57
_KEY_STEP_A, _KEY_STEP_B = 0x9E3779B9, 0xBB67AE85
# The largest scale s with 2^31 s < 1 in fp32, as in triton.language.random.
_UNIFORM_SCALE = 4.6566127342e-10

Words = tuple[Tensor, Tensor, Tensor, Tensor]


class Site(IntEnum):
    """Consumers of random numbers; each site, layer and step has an independent stream."""

    GUMBEL = 0
    TOKEN_DROP = 1
    DROP_PATH = 2
    DROPOUT = 3
    CUT_PASTE = 4
    AUGMENT = 5
    FRAMES = 6
    QUESTIONS = 7
    TOKEN_MASK = 8


def _rounds(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The product of two 32-bit words overflows int64, but its bits equal those of uint64.
        product_a, product_b = c0 * _MULTIPLIER_A, c2 * _MULTIPLIER_B
        c0 = ((product_b >> 32) & _MASK) ^ c1 ^ k0
        c2 = ((product_a >> 32) & _MASK) ^ c3 ^ k1
        c1, c3 = product_b & _MASK, product_a & _MASK
        k0, k1 = (k0 + _KEY_STEP_A) & _MASK, (k1 + _KEY_STEP_B) & _MASK
    return c0, c1, c2, c3


def philox4x32(key: Tensor, counter: Tensor) -> Words:
    """Four random words per counter.

    Args:
        key: int64, all 64 bits are used; broadcasts against `counter`.
        counter: int64, all 64 bits are used (the upper two words of Philox's counter are 0).

    Returns:
        Four int64 tensors with values in [0, 2^32), the words of `tl.randint4x(key, counter)`.
    """
    key, counter = torch.broadcast_tensors(key, counter)
    zero = torch.zeros_like(counter)
    words = (counter & _MASK, (counter >> 32) & _MASK, zero, zero)
    return _rounds(words, (key & _MASK, (key >> 32) & _MASK))


def words_to_uniform(words: Tensor) -> Tensor:
    """Map int64 words in [0, 2^32) to fp32 in [0, 1), bit-equal to Triton's rule."""
    folded = torch.where(words > 0x7FFFFFFF, _MASK - words, words)
    return folded.to(torch.float32) * _UNIFORM_SCALE


def uniform(seeds: Tensor, counters: Tensor) -> Tensor:
    """Uniform numbers, bit-equal to `tl.rand(seed, counter)`.

    Args:
        seeds: int64 [b].
        counters: int64 [n], or [b, n].

    Returns:
        fp32 [b, n] in [0, 1).
    """
    return words_to_uniform(philox4x32(seeds[:, None], counters)[0])


def uniform4(seeds: Tensor, counters: Tensor) -> Tensor:
    """Four uniform numbers per counter, bit-equal to `tl.rand4x(seed, counter)`.

    Args:
        seeds: int64 [b].
        counters: int64 [n], or [b, n].

    Returns:
        fp32 [b, n, 4] in [0, 1).
    """
    words = philox4x32(seeds[:, None], counters)
    return words_to_uniform(torch.stack(words, dim=-1))


def derive_seeds(
    run_seed: int, step: int, keys: Tensor, site: Site | int, layer: int = 0
) -> Tensor:
    """One seed per sample for one site and layer of one step.

    The sample's key (two words), the step, and site and layer (one word) are the Philox counter,
    and the run's seed is its key. So every seed has its own counter.

    Args:
        run_seed: any int; taken modulo 2^64.
        step: 0 <= step < 2^32.
        keys: int64 [b], the samples' keys.
        site: 0 <= site < 2^16.
        layer: 0 <= layer < 2^16.

    Returns:
        int64 [b] on the device of `keys`.

    Raises:
        ValueError: step, site or layer out of range.
    """
    if not 0 <= step < 1 << 32:
        raise ValueError(f"step must be in [0, 2^32), got {step}")
    if not 0 <= int(site) < 1 << 16 or not 0 <= layer < 1 << 16:
        raise ValueError(f"site and layer must be in [0, 2^16), got {int(site)} and {layer}")
    place = torch.full_like(keys, int(site) | layer << 16)
    counter = (keys & _MASK, (keys >> 32) & _MASK, torch.full_like(keys, step), place)
    low = torch.full_like(keys, run_seed & _MASK)
    high = torch.full_like(keys, run_seed >> 32 & _MASK)
    first, second, _, _ = _rounds(counter, (low, high))
    return first | second << 32


@dataclass(frozen=True)
class StepSeeds:
    """The seeds of one step: run seed, step and the samples' keys (int64 [b])."""

    run_seed: int
    step: int
    keys: Tensor

    def at(self, site: Site | int, layer: int = 0) -> Tensor:
        """Seeds int64 [b] for one site and layer."""
        return derive_seeds(self.run_seed, self.step, self.keys, site, layer)
