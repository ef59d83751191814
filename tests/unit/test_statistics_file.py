"""Reference statistics in files: both layouts of others, our own, and what is wrong with a file."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nanogen.data.animals import Animals
from nanogen.encoders.animals_cnn import AnimalsCnn
from nanogen.errors import ConfigError, DataError, MetricError
from nanogen.metrics import statistics_file
from nanogen.metrics.statistics_file import Statistics, load_statistics, located, statistics_of

CPU = torch.device("cpu")
MEAN = np.arange(3, dtype=np.float32)
COVARIANCE = np.diag([1.0, 2.0, 3.0]).astype(np.float32)


def written(tmp_path, **arrays):
    np.savez(tmp_path / "some.npz", **arrays)
    return tmp_path / "some.npz"


@pytest.mark.parametrize("names", [("mu", "sigma"), ("ref_mu", "ref_sigma")])
def test_both_layouts_are_read_as_float64(tmp_path, names):
    path = written(tmp_path, **{names[0]: MEAN, names[1]: COVARIANCE})
    found = Statistics.load(path)
    gaussian = found.gaussian("pool")
    assert gaussian.mean.dtype == gaussian.covariance.dtype == torch.float64
    assert gaussian.mean.tolist() == [0, 1, 2] and gaussian.covariance.diagonal().sum() == 6
    assert (found.n, found.network) == (0, "")
    with pytest.raises(DataError, match=r"not of spatial \(mu_s and sigma_s\)"):
        found.gaussian("spatial")


def test_the_reference_batch_of_adm_has_both_kinds_of_moments(tmp_path):
    arrays = {"mu": MEAN, "sigma": COVARIANCE, "mu_s": MEAN[:2], "sigma_s": COVARIANCE[:2, :2]}
    path = written(tmp_path, arr_0=np.zeros((2, 4, 4, 3), np.uint8), **arrays)
    assert load_statistics(path).mean.tolist() == [0, 1, 2]
    assert load_statistics(path, "spatial").mean.tolist() == [0, 1]


def test_another_layout_is_refused_with_the_names_that_it_has(tmp_path):
    path = written(tmp_path, mean=MEAN, cov=COVARIANCE)
    with pytest.raises(DataError, match=r"holds mean, cov, but no moments \(mu, sigma or ref_mu"):
        Statistics.load(path)
    with pytest.raises(DataError, match="holds mu, arr_0"):
        Statistics.load(written(tmp_path, mu=MEAN, arr_0=MEAN))


def test_broken_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"must be \[d\] and \[d, d\]"):
        Statistics.load(written(tmp_path, mu=MEAN, sigma=COVARIANCE[:2]))
    with pytest.raises(DataError, match="not finite"):
        Statistics.load(written(tmp_path, mu=MEAN * np.nan, sigma=COVARIANCE))
    with pytest.raises(DataError, match="no readable .npz"):
        Statistics.load(written(tmp_path, mu=np.array([{}]), sigma=COVARIANCE))
    for wrong in ({"n": np.array([1, 2])}, {"mu": MEAN + 1j}, {"mu": MEAN.astype("datetime64[D]")}):
        with pytest.raises(DataError, match="no readable .npz"):
            Statistics.load(written(tmp_path, **({"mu": MEAN, "sigma": COVARIANCE} | wrong)))
    for factor in (np.triu(np.ones((3, 3))), -COVARIANCE):
        with pytest.raises(DataError, match="no covariance"):
            Statistics.load(written(tmp_path, mu=MEAN, sigma=factor))
    (tmp_path / "some.npz").write_bytes(b"<html>404</html>")
    with pytest.raises(DataError, match="no readable .npz"):
        Statistics.load(tmp_path / "some.npz")
    np.save(tmp_path / "one.npz.npy", MEAN)
    (tmp_path / "one.npz.npy").rename(tmp_path / "one.npz")
    with pytest.raises(DataError, match="no readable .npz"):
        Statistics.load(tmp_path / "one.npz")


def test_statistics_of_images_are_numpys_moments_and_survive_a_file(tmp_path):
    source = Animals().build()
    images = torch.stack([source.read("held-out", i, 0).image for i in range(50)])
    found = statistics_of(iter(images.split([7, 20, 23])), "animals-cnn", CPU)
    features = AnimalsCnn()(images)["pool"].double().numpy()
    gaussian = found.gaussian("pool")
    np.testing.assert_allclose(gaussian.mean.numpy(), features.mean(0), rtol=1e-5)
    expected = np.cov(features, rowvar=False)
    np.testing.assert_allclose(gaussian.covariance.numpy(), expected, atol=1e-5)

    found.save(tmp_path / "new" / "mine.npz")
    again = Statistics.load(tmp_path / "new" / "mine.npz")
    assert torch.equal(again.gaussian("pool").covariance, gaussian.covariance)
    assert (again.n, again.network) == (50, "animals-cnn")
    assert again.network_hash == AnimalsCnn().fingerprint


def test_no_images_have_no_statistics():
    with pytest.raises(MetricError, match="no images"):
        statistics_of(iter(()), "animals-cnn", CPU)
    one = torch.zeros(1, 3, 28, 28, dtype=torch.uint8)
    with pytest.raises(MetricError, match="at least 2 samples"):
        statistics_of([one], "animals-cnn", CPU)


def test_a_reference_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="nanogen prepare jit-in256"):
        located("jit-in256")
    with pytest.raises(
        ConfigError, match="no reference 'jit-in265' of inception-2015; did you mean jit"
    ):
        located("jit-in265")
    with pytest.raises(ConfigError, match="the name of another reference"):
        statistics_file.place("data")
    path = statistics_file.place("mine")
    path.parent.mkdir(parents=True)
    np.savez(path, mu=MEAN, sigma=COVARIANCE)
    assert located("mine").path == path and len(located("mine").sha256) == 64
    with pytest.raises(ConfigError, match="did you mean mine"):
        located("minee")
