"""Colours: what CLIP is shown, what it is asked, and the same answer by transformers."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_geneval import CLIP_SIDE, clip

from nanogen.encoders.contrastive import open_contrastive
from nanogen.encoders.fit_square import crop_square
from nanogen.metrics.colour_clip import COLOURS, ColourClip, Cut, cut_out
from nanogen.metrics.instances import Instance

CPU = torch.device("cpu")
IMAGE = torch.arange(3 * 20 * 30, dtype=torch.int64).mul(37).remainder(256).to(torch.uint8)
IMAGE = IMAGE.reshape(3, 20, 30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return clip(tmp_path_factory.mktemp("clip") / "model")


def reader(folder: Path, cut: Cut | None = None) -> ColourClip:
    opened = open_contrastive(folder, folder / "tokenizer.json", crop_square, CPU)
    return ColourClip(opened, cut or Cut())


def disc(x: int, y: int, radius: int, beyond: int = 1) -> Instance:
    rows, columns = torch.meshgrid(torch.arange(20), torch.arange(30), indexing="ij")
    mask = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    box = (x - radius, y - radius, x + radius + beyond, y + radius + beyond)
    return Instance("cow", 0.9, box, mask)


def test_outside_the_mask_is_exactly_grey():
    one = disc(12, 9, 6)
    shown = cut_out(IMAGE, one.mask, one.box, Cut())
    assert shown.shape == (3, 13, 13)
    inside = one.mask[3:16, 6:19]
    assert (shown[:, ~inside] == 0x99).all() and (~inside).sum() > 20
    assert torch.equal(shown[:, inside], IMAGE[:, 3:16, 6:19][:, inside])


def test_options_of_the_published_code():
    one = disc(12, 9, 6)
    whole = cut_out(IMAGE, one.mask, one.box, Cut(crop=False))
    assert whole.shape == IMAGE.shape and (whole[:, ~one.mask] == 0x99).all()
    original = cut_out(IMAGE, one.mask, one.box, Cut("original"))
    assert torch.equal(original, IMAGE[:, 3:16, 6:19])
    assert torch.equal(cut_out(IMAGE, one.mask, one.box, Cut("original", crop=False)), IMAGE)


@pytest.mark.parametrize("background", ["grey", "original"])
def test_equal_to_pillow(background):
    """The published code: composite over a canvas, then crop; here of a box without its end."""
    one = disc(12, 9, 6, beyond=0)
    picture = Image.fromarray(IMAGE.permute(1, 2, 0).numpy())
    canvas = picture if background == "original" else Image.new("RGB", picture.size, "#999")
    mask = Image.fromarray(one.mask.numpy().astype(np.uint8) * 255)
    expected = np.array(Image.composite(picture, canvas, mask).crop(one.box))
    shown = cut_out(IMAGE, one.mask, one.box, Cut(background))
    assert np.array_equal(shown.permute(1, 2, 0).numpy(), expected)
    assert shown.shape == (3, 12, 12)


def test_a_box_of_one_pixel_keeps_it():
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[4, 5] = True
    assert torch.equal(cut_out(IMAGE, mask, (5, 4, 5, 4), Cut()), IMAGE[:, 4:5, 5:6])


def test_the_image_itself_is_not_changed():
    before, one = IMAGE.clone(), disc(12, 9, 6)
    cut_out(IMAGE, one.mask, one.box, Cut(crop=False))
    assert torch.equal(IMAGE, before)


def by_transformers(folder: Path, name: str) -> torch.Tensor:
    """[10, D]: normalise, mean over the three templates, normalise."""
    network = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    found = []
    for colour in COLOURS:
        texts = [
            f"a photo of a {colour} {name}",
            f"a photo of a {colour}-colored {name}",
            f"a photo of a {colour} object",
        ]
        with torch.no_grad():
            features = network.get_text_features(
                **tokenizer(texts, padding=True, return_tensors="pt")
            ).pooler_output
        mean = (features / features.norm(dim=-1, keepdim=True)).mean(0)
        found.append(mean / mean.norm())
    return torch.stack(found)


def test_directions_are_means_over_templates(folder):
    found = reader(folder).directions("wine glass")
    torch.testing.assert_close(found, by_transformers(folder, "wine glass"), atol=1e-5, rtol=0)
    assert (found @ found.T).fill_diagonal_(0).max() < 0.999


def test_the_whole_way_agrees_with_transformers(folder):
    network = transformers.CLIPModel.from_pretrained(folder).eval()
    side = {"height": CLIP_SIDE, "width": CLIP_SIDE}
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": CLIP_SIDE}, crop_size=side
    )
    directions = by_transformers(folder, "cow")
    own, seen = reader(folder), set()
    generator = torch.Generator().manual_seed(0)
    for place in range(12):
        image = torch.randint(0, 256, (3, 20, 30), generator=generator, dtype=torch.uint8)
        image = image // (1 + place % 4) + 20 * (place % 5)
        one = disc(5 + place, 4 + place // 2, 2 + place % 3)
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        mask = Image.fromarray(one.mask.numpy())
        canvas = Image.new("RGB", picture.size, color="#999")
        shown = Image.composite(picture, canvas, mask).crop(one.box)
        with torch.no_grad():
            features = network.get_image_features(
                **processor(shown, return_tensors="pt")
            ).pooler_output
        expected = COLOURS[int((features @ directions.T).argmax())]
        assert own.colour(image, one) == expected
        seen.add(expected)
    assert len(seen) > 1


def test_captions_are_read_once_for_each_class(folder, monkeypatch):
    own, calls = reader(folder), []
    texts = own.clip.texts
    monkeypatch.setattr(own.clip, "texts", lambda tokens: calls.append(1) or texts(tokens))
    for one in (disc(9, 9, 3), disc(15, 9, 4), disc(10, 8, 5)):
        own.colour(IMAGE, one)
    assert len(calls) == 1
    own.directions("dog")
    assert len(calls) == 2


def test_elongated_objects_are_seen_in_their_middle(folder):
    """A box of 2 x 30 pixels: only the middle square of its enlargement is computed."""
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[4:6] = True
    one = Instance("cow", 0.9, (0, 4, 30, 6), mask)
    middle = functools.partial(crop_square, side=CLIP_SIDE)
    assert middle(IMAGE[None, :, 4:6]).shape == (1, 3, CLIP_SIDE, CLIP_SIDE)
    assert reader(folder).colour(IMAGE, one) in COLOURS
