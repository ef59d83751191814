"""The shuffled order of a training stream, as a pure function of the position.

    position p of a data set of n samples  ->  epoch p // n, item p % n of the
    shuffled epoch: permuted(p % n, n, key(seed, epoch))

Every epoch shows every sample once, in an order of its own. Nothing is stored and nothing is
shuffled: a run that resumes at p, or a process that owns every eighth p, computes its items
directly, in O(1) memory, for any n up to 2^40.

The permutation is a keyed Feistel network (Luby and Rackoff 1988) on the smallest power of four
that holds n, with cycle walking (Black and Rogaway 2002): values that fall outside [0, n) are sent
through again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

LARGEST = 2**40
"""most samples of a stream"""

ROUNDS = 6
MIN_HALF_BITS = 4
"""smaller halves leave too few round functions for a fair order of a handful of samples"""


def items(positions: ArrayLike, count: int, seed: int) -> NDArray[np.int64]:
    """Items in [0, count) at stream positions >= 0 (int64, any shape), shuffled in every epoch."""
    positions = np.asarray(positions, np.int64)
    return permuted(positions % count, count, key(seed, positions // count))


def key(seed: int, epoch: ArrayLike) -> NDArray[np.uint64]:
    """The key of an epoch's permutation; epochs (any shape) and seeds give unrelated keys."""
    return mixed(mixed(seed) ^ np.asarray(epoch).astype(np.uint64))


def permuted(index: ArrayLike, count: int, key: ArrayLike) -> NDArray[np.int64]:
    """A keyed bijection of [0, count).

    `index` int64, any shape, in [0, count); `key` uint64, one for all or one for each index. Raises
    ValueError for an index or count out of range.
    """
    index = np.asarray(index, np.int64)
    if not 1 <= count <= LARGEST:
        raise ValueError(f"a stream holds 1 to 2^40 samples, not {count}")
    if index.size and not (index.min() >= 0 and index.max() < count):
        raise ValueError(f"index out of range [0, {count})")
    half = max(MIN_HALF_BITS, ((count - 1).bit_length() + 1) // 2)
    keys = np.broadcast_to(np.asarray(key).astype(np.uint64), index.shape).ravel()
    value = _feistel(index.ravel().astype(np.uint64), keys, half)
    # A cycle that starts inside [0, count) returns there, so the walk ends and stays one-to-one.
    while (outside := np.flatnonzero(value >= np.uint64(count))).size:
        value[outside] = _feistel(value[outside], keys[outside], half)
    return value.astype(np.int64).reshape(index.shape)


def mixed(value: ArrayLike) -> NDArray[np.uint64]:
    """A 64-bit hash of integers, any shape: the output of SplitMix64 (Steele et al. 2014)."""
    value = np.asarray(value)
    bits = np.atleast_1d(value).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (bits ^ (bits >> np.uint64(31))).reshape(value.shape)


def _feistel(value: NDArray[np.uint64], keys: NDArray[np.uint64], half: int) -> NDArray[np.uint64]:
    """One pass of the network over `2 * half` bits; one-to-one for each key."""
    width, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = value >> width, value & mask
    for number in range(ROUNDS):
        scrambled = mixed(keys + mixed((right << np.uint64(3)) | np.uint64(number)))
        left, right = right, left ^ (scrambled & mask)
    return (left << width) | right
