"""REPA-E in two processes takes the steps of one."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import ranks

from nanogen import dist
from nanogen.backbones.ddt import DdtConfig
from nanogen.objectives.repa import Projector
from nanogen.stage1.latent_norm import LatentNorm
from nanogen.stage1.repa_e import AlignedDiffusion, RepaE, Rules, Subject
from nanogen.stage1.repa_e_step import RepaEStep
from nanogen.stage1.tuned_vae import TunedVae
from nanogen.train.adamw import AdamWConfig
from nanogen.types import ConditionSpec, LabelCondition, LatentSpec, Wiring

BATCH = 5


class Halving(TunedVae):
    """Two convolutions: a VAE without a library."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Conv2d(3, 8, 2, 2)
        self.decoder = torch.nn.ConvTranspose2d(4, 3, 2, 2)

    def moments(self, images):
        return self.encoder(images).chunk(2, 1)

    def reconstruct(self, raw):
        return self.decoder(raw)

    def write(self, folder):
        raise NotImplementedError


def subject(step: int) -> Subject:
    """This process's rows of a batch: 3 and 2 where there are two of them."""
    generator = torch.Generator().manual_seed(step)
    images = 2 * torch.rand(BATCH, 3, 16, 16, generator=generator) - 1
    target, labels = torch.randn(BATCH, 16, 6, generator=generator), torch.arange(BATCH) % 3
    first, last = {1: (0, 5), 2: ((0, 3), (3, 5))[dist.rank()]}[dist.world()]
    rows = slice(first, last)
    ids = LabelCondition(labels[rows])
    return Subject(images[rows], 10 * step + torch.arange(BATCH)[rows], target[rows], ids, ids)


def trained(file) -> None:
    torch.manual_seed(0)
    sizes = {"depth": 1, "width": 16, "heads": 2, "decoder_depth": 1}
    config = DdtConfig(**sizes, decoder_width=16, decoder_heads=2)
    backbone = config.build(LatentSpec(4, 8, 8, 2), ConditionSpec(classes=3), Wiring())
    diffusion = AlignedDiffusion(LatentNorm(4), backbone, Projector(16, 8, 6), 1)
    # A discriminator's batch statistics are those of each process, which is why none is here.
    model = RepaE(Halving(), diffusion, None, None, Rules(adversarial=0.0), seed=1)
    adamw = AdamWConfig(lr=1e-3, eps=1e-4)
    step = RepaEStep(model, {"vae": adamw, "diffusion": adamw}, clip=1.0)
    values = [step(subject(number), BATCH, lambda values: True) for number in range(3)]
    tensors = dict(model.diffusion.state_dict()) | dict(model.vae.state_dict())
    for number, found in enumerate(values):
        tensors |= {f"value.{number}.{name}": torch.tensor(v) for name, v in found.items()}
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, f"{file}{dist.rank()}")


@pytest.fixture
def alone(tmp_path):
    assert ranks(1, tmp_path / "one", lambda: trained(tmp_path / "alone")) == [0]
    return load_file(tmp_path / "alone0")


def test_weights_statistics_and_losses(alone, tmp_path):
    assert ranks(2, tmp_path / "two", lambda: trained(tmp_path / "both")) == [0, 0]
    assert alone["norm.num_batches_tracked"] == 3
    for rank in range(2):
        found = load_file(tmp_path / f"both{rank}")
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
