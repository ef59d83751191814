"""A VAE whose weights are trained: which can be, what it returns, how it is published."""

import pytest
import torch
from tiny_vae import write_vae

from nanogen.errors import ConfigError
from nanogen.stage1.tuned_vae import DiffusersVae, export
from nanogen.tokenizers.vae import VaeConfig

pytest.importorskip("diffusers")


def test_a_vae_with_batch_statistics_of_its_own_is_refused(tmp_path):
    files = VaeConfig(model=str(write_vae(tmp_path / "flux2", "flux2"))).files()
    with pytest.raises(ConfigError, match="AutoencoderKLFlux2 normalises by batch statistics"):
        DiffusersVae(files.network(), files.kind)


def test_a_vae_of_video_networks(tmp_path):
    files = VaeConfig(model=str(write_vae(tmp_path / "qwen", "qwen"))).files()
    vae = DiffusersVae(files.network(), files.kind)
    mean, log_variance = vae.moments(torch.zeros(2, 3, 16, 16))
    assert mean.shape == log_variance.shape == (2, 16, 2, 2)
    assert vae.reconstruct(mean).shape == (2, 3, 16, 16)


def test_an_export_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    files = VaeConfig(model=str(write_vae(tmp_path / "tiny", "f8d4"))).files()
    vae, target = DiffusersVae(files.network(), files.kind), tmp_path / "to" / "tuned"
    target.parent.mkdir()
    export(vae, target, torch.zeros(4), torch.ones(4))
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    whole = type(target).rename

    def full(path, to):
        if to == target and path.name.endswith(".part") and (path / "new").exists():
            raise OSError("no space left")
        return whole(path, to)

    write = vae.write
    monkeypatch.setattr(vae, "write", lambda part: (write(part), (part / "new").touch()))
    monkeypatch.setattr(type(target), "rename", full)
    with pytest.raises(OSError, match="no space"):
        export(vae, target, torch.ones(4), torch.ones(4))
    assert list(target.parent.iterdir()) == [target]
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
