"""PixNerd against its paper and released configs: sizes, start, and an evaluation in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy_adaln import NumpyAdaln, cut, joined, silu
from tiny_adaln import ALL, LABELS, LATENT, PIXNERD, TEXT, TIMES, awake, build, given, inputs, told
from torch.utils.flop_counter import FlopCounterMode

from nanogen.backbones.pixnerd import (
    FieldLayer,
    Pixnerd,
    PixnerdConfig,
    patched,
    pixel_waves,
    unit_columns,
)
from nanogen.errors import ConfigError
from nanogen.model import parameter_count
from nanogen.types import ConditionSpec, LabelCondition, LatentSpec, Wiring

LARGE = {"depth": 22, "width": 1024, "field_depth": 2}


def published(**fields: int) -> Pixnerd:
    with torch.device("meta"):
        latent, labels = LatentSpec(3, 256, 256, 16), ConditionSpec(classes=1000)
        return PixnerdConfig(**fields).build(latent, labels, Wiring())


def by_hand(width: int, depth: int, layers: int) -> int:
    """Parameters of the released code, counted from its description."""
    hidden, head = int(2 * int(4 * width) / 3), width // 16
    block = 3 * width**2 + width**2 + width + 2 * head  # attention
    block += 3 * width * hidden + 2 * width  # SwiGLU without biases, and two norms
    block += 6 * width**2 + 6 * width
    embeddings = 1001 * width + (256 * width + width) + (width**2 + width) + (768 * width + width)
    field = (3 + 64) * 64 + 64 + layers * ((width + 1) * 2 * 64 * 128 + 64) + 64 + 64 * 3 + 3
    return depth * block + embeddings + field


def test_parameters() -> None:
    """700M as printed for XL. The released config of L has 452M, where the paper prints 458M."""
    extra, large = parameter_count(published()), parameter_count(published(**LARGE))
    assert extra == by_hand(1152, 26, 4) == 700_589_219
    assert large == by_hand(1024, 22, 2) == 452_113_795


def test_computation() -> None:
    """134 Gflops (multiplications) for XL, as measured in arXiv 2511.13720, Table 7."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        condition = LabelCondition(torch.empty(1, dtype=torch.int64))
        published()({"image": torch.empty(1, 3, 256, 256)}, torch.empty(1), condition)
    assert round(counter.get_total_flops() / 2e9) == 134


class TestInNumpy:
    """Float64, one sample, one patch and one pixel at a time."""

    def places(self) -> np.ndarray:
        """[6, 8]: as in the released code, columns and rows alternate; 0 to 16 along each side."""
        out = []
        for row in (0.0, 16.0):
            for column in (0.0, 8.0, 16.0):
                out.append([p * 10_000 ** (-j / 4) for j in range(4) for p in (column, row)])
        return np.array(out)

    def alternating(self, weights: dict) -> dict:
        """The same network with the channels of queries and keys in the order of that code."""
        pairs = [pair for j in range(4) for pair in (4 + j, j)]
        order = np.array([2 * pair + part for pair in pairs for part in (0, 1)])
        both = np.concatenate([order, 16 + order])
        moved = dict(weights)
        for name, value in weights.items():
            if name.endswith(("attn.q.weight", "attn.k.weight")):
                moved[name] = value[both]
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                moved[name] = value[order]
        return moved

    def pixel(self, network: NumpyAdaln, s: np.ndarray, noisy: np.ndarray, y: int, x: int):
        """What the field of a patch with vector s [D] gives at its pixel (y, x), [C]."""
        waves = [
            math.cos(math.pi * (x / 3) * (8 * k / 7))
            * math.cos(math.pi * (y / 3) * (8 * m / 7))
            / (1 + (8 * k / 7) * (8 * m / 7))
            for k in range(8)
            for m in range(8)
        ]
        v = network.linear(np.concatenate([noisy, waves]), "field.embed")
        for layer in range(2):
            numbers = network.linear(s, f"field.layers.{layer}.generator")
            first, second = numbers[: 8 * 16].reshape(8, 16), numbers[8 * 16 :].reshape(16, 8)
            hidden = network.norm(v, f"field.layers.{layer}.norm")
            hidden = [hidden @ column / np.linalg.norm(column) for column in first.T]
            hidden = silu(np.array(hidden))
            v = v + [hidden @ column / np.linalg.norm(column) for column in second.T]
        return network.linear(network.norm(v, "field.norm"), "field.head")

    @pytest.mark.parametrize("condition", [LABELS, TEXT], ids=["labels", "text"])
    def test_agrees(self, condition: ConditionSpec) -> None:
        model, state, c = awake(build("pixnerd", condition, ALL)), inputs(ALL), given(condition)
        with torch.no_grad():
            found = model(state, TIMES.double(), c, **told(ALL)).state
        weights = {name: value.numpy() for name, value in model.state_dict().items()}
        network = NumpyAdaln(self.alternating(weights), 2, 10.0, self.places())
        for row in range(3):
            numbers = {
                "interval": told(ALL)["interval"][row].item(),
                "scalars.scale": told(ALL)["scalars"]["scale"][row].item(),
            }
            moment = network.moment(1 - TIMES.double()[row].item(), numbers)
            if isinstance(c, LabelCondition):
                vector, tokens = network.label(int(c.ids[row]))
            else:
                vector, tokens = network.text(c.features[row][c.mask[row]].numpy())
            patches = cut(state["image"][row].numpy(), 4)
            kernel = network.weights["embed.proj.weight"]
            embedded = np.array([(kernel * patch).sum((1, 2, 3)) for patch in patches])
            embedded = embedded + network.weights["embed.proj.bias"]
            leaf = network.leaf(state["cls"][row].numpy(), "cls")
            modulation = silu(moment + vector)
            states = network.blocks(embedded, leaf, tokens, modulation, start=0)
            s = silu(moment + states[1:])

            def pixel(n: int, y: int, x: int, s=s, patches=patches) -> np.ndarray:
                return self.pixel(network, s[n], patches[n][:, y, x], y, x)

            expected = joined(pixel, (8, 12), 4)
            assert np.abs(found["image"][row].numpy() - expected).max() < 1e-6
            normed = network.final_norm(states[:1], modulation, "leaf_norm")
            expected = network.linear(normed[0], "leaves.heads.cls")
            assert np.abs(found["cls"][row].numpy() - expected).max() < 1e-6


class TestField:
    def test_columns_have_length_one(self) -> None:
        matrices = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
        unit = unit_columns(matrices)
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(3, 4))
        torch.testing.assert_close(unit * matrices.norm(dim=1, keepdim=True), matrices)
        assert not unit_columns(torch.zeros(1, 2, 2)).any()

    def test_size_of_a_generated_weight_does_not_matter(self) -> None:
        layer = FieldLayer(PIXNERD).double()
        v, s = torch.randn(2, 16, 8).double(), torch.randn(2, 32).double()
        before = layer(v, s)
        for p in layer.generator.parameters():
            p.data *= 7.0
        torch.testing.assert_close(layer(v, s), before)

    def test_patches(self) -> None:
        image = torch.arange(2 * 3 * 8 * 12).view(2, 3, 8, 12)
        found = patched(image, 4)
        assert found.shape == (2, 6, 16, 3)
        assert torch.equal(found[1, 4, 4 * 2 + 3], image[1, :, 4 + 2, 4 + 3])

    def test_patches_see_no_other_through_the_field(self) -> None:
        """Pixels of one patch reach another only through the transformer."""
        model = awake(build("pixnerd"))
        pixels = torch.randn(6, 16, 3).double()
        s = torch.randn(6, 32).double()
        changed = pixels.clone()
        changed[2] += 1.0
        differs = (model.field(pixels, s) - model.field(changed, s)).abs().flatten(1).max(1)[0] > 0
        assert differs.tolist() == [False, False, True, False, False, False]

    def test_constant_wave_comes_first(self) -> None:
        waves = pixel_waves(16)
        assert waves.shape == (256, 64) and torch.equal(waves[:, 0], torch.ones(256))
        torch.testing.assert_close(waves[0, 63], torch.tensor(1 / 65))


def test_initial_weights() -> None:
    model = build("pixnerd", LABELS, ALL)
    p = dict(model.named_parameters())
    zero = {name for name, value in p.items() if not value.any()}
    assert zero == {
        f"{part}.{kind}"
        for part in ("field.head", "base_head.1", "leaves.heads.cls", "leaf_norm.adaln_modulation")
        for kind in ("weight", "bias")
    } | {"embed.proj.bias"}
    assert p["blocks.0.adaln_modulation.weight"].abs().max() <= 32**-0.5
    without = {name for name in p if name.startswith("blocks.0") and name.endswith("bias")}
    assert without == {"blocks.0.attn.proj.bias", "blocks.0.adaln_modulation.bias"}


@pytest.mark.parametrize("field", ["field_depth", "field_width", "field_ratio"])
def test_refusals(field: str) -> None:
    config = PixnerdConfig(**{"depth": 2, "width": 32, "heads": 2, field: 0})
    with pytest.raises(ConfigError, match=f"backbone.{field}=0"):
        config.build(LATENT, LABELS, Wiring())


def test_patch_of_one_pixel() -> None:
    with pytest.raises(ConfigError, match="patch 1 has a single one"):
        PIXNERD.build(LatentSpec(768, 16, 16, 1), LABELS, Wiring())
