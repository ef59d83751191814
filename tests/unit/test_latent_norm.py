"""The norm of REPA-E's latents, against that of torch."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nanogen.stage1.latent_norm import LatentNorm


def test_the_norm_is_that_of_torch():
    """Outputs and running statistics over three batches, and then in eval mode."""
    ours, theirs = LatentNorm(4), nn.BatchNorm2d(4, affine=False, eps=1e-4, momentum=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        z = 3 * torch.randn(2, 4, 3, 5, generator=generator) + 20
        assert_close(ours(z), theirs(z), atol=1e-5, rtol=1e-5)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert_close(ours.state_dict()[name], value)
    assert_close(ours.eval()(z), theirs.eval()(z), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="detach"):
        ours.train()(z.requires_grad_())


@pytest.mark.parametrize("scale", [0.5, torch.tensor([0.5, 1, 2, 4]), torch.full((4, 1, 1), 0.25)])
def test_the_norm_starts_where_the_tokenizer_is(scale):
    norm, z = LatentNorm(4, eps=0.0), torch.randn(2, 4, 3, 3)
    norm.start(shift=0.3, scale=scale)
    by = scale if isinstance(scale, float) else scale.view(4, 1, 1)
    assert_close(norm.eval()(z), (z - 0.3) * by)
