"""The randomness of one sample: a generator that is a function of (split, index, draw) alone."""

from __future__ import annotations

import numpy as np

from nanogen.data.base import SPLITS


def generator(split: str, index: int, draw: int) -> np.random.Generator:
    """A fresh generator for one sample; another split, index or draw gives an independent stream.

    Philox is a function of a key and a counter (Salmon et al., SC 2011): there is no state to keep.
    """
    # The two low words of the counter count the numbers that this sample draws.
    counter = index << 128 | draw << 192
    return np.random.Generator(np.random.Philox(key=SPLITS.index(split), counter=counter))
