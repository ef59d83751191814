"""The order of a stream: one-to-one, fair, different in every epoch, and free of state."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nanogen.data import order


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 5000), key=st.integers(0, 2**64 - 1))
def test_every_item_comes_once(count, key):
    values = order.permuted(np.arange(count), count, np.uint64(key))
    assert np.array_equal(np.sort(values), np.arange(count))


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 255, 256, 257, 4095, 4097, 65536, 65537])
def test_sizes_around_powers_of_two(count):
    assert len(set(order.items(np.arange(count), count, 3).tolist())) == count


@pytest.mark.parametrize("count", [1_281_167, 2**32 + 5, order.LARGEST])
def test_large_streams_stay_in_range_and_do_not_collide(count):
    positions = np.linspace(0, count - 1, 20_000).astype(np.int64)
    values = order.permuted(positions, count, order.key(0, 0))
    assert values.min() >= 0 and values.max() < count
    assert len(np.unique(values)) == len(np.unique(positions))
    # Spread over the whole range: the mean of uniform values, within five standard errors.
    assert abs(values.mean() / count - 0.5) < 5 / np.sqrt(12 * len(values))


def test_epochs_and_seeds_have_orders_of_their_own():
    first, second = order.items(np.arange(2000), 1000, seed=1).reshape(2, 1000)
    other = order.items(np.arange(1000), 1000, seed=2)
    # Two unrelated permutations agree in one place on average.
    assert np.sum(first == second) < 8
    assert np.sum(first == other) < 8


@pytest.mark.parametrize("count", [2, 3, 7, 10, 40])
@pytest.mark.parametrize("position", [0, 1, -1])
def test_each_item_is_equally_likely_at_each_position(count, position):
    trials = 4000
    index = np.full(trials, position % count)
    values = order.permuted(index, count, order.key(5, np.arange(trials)))
    expected = np.full(count, trials / count)
    assert stats.chisquare(np.bincount(values, minlength=count), expected).pvalue > 1e-4


def test_neighbours_are_independent():
    """Pairs of consecutive items are uniform over all ordered pairs."""
    count, trials = 6, 6000
    index = np.tile([0, 1], (trials, 1))
    keys = order.key(9, np.arange(trials))[:, None]
    first, second = order.permuted(index, count, keys).T
    seen = np.bincount(first * count + second, minlength=count * count).reshape(count, count)
    assert np.trace(seen) == 0
    pairs = seen[~np.eye(count, dtype=bool)]
    assert stats.chisquare(pairs).pvalue > 1e-4


def test_resumed_stream_equals_uninterrupted_one():
    whole = order.items(np.arange(1000), 137, seed=0)
    resumed = np.concatenate(
        [order.items(np.arange(613), 137, 0)]
        + [order.items(np.arange(start, start + 43), 137, 0) for start in range(613, 1000, 43)]
    )
    assert np.array_equal(whole, resumed[:1000])


def test_processes_share_an_epoch_without_overlap():
    count, world = 960, 8
    shares = [order.items(np.arange(rank, count, world), count, 4) for rank in range(world)]
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(count))


def test_the_order_is_fixed_for_ever():
    """Changing these numbers changes every run: existing checkpoints would resume on other data."""
    assert order.items(np.arange(8), 10_000, seed=0).tolist() == [
        4996,
        9474,
        320,
        9579,
        8721,
        2994,
        6889,
        8339,
    ]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="out of range"):
        order.permuted([5], 5, 0)
    with pytest.raises(ValueError, match="2\\^40"):
        order.permuted([0], 0, 0)
