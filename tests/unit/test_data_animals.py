"""The embedded silhouettes, and the data set `animals`."""

import json
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

from nanogen.data import silhouettes
from nanogen.data.animals import Animals
from nanogen.data.base import SPLITS
from nanogen.data.draws import generator
from nanogen.errors import ConfigError, DataError

COUNTS = {"train": 7216, "validation": 500, "held-out": 2000}


def images() -> dict[str, np.ndarray]:
    return {split: silhouettes.load(split).opacity for split in SPLITS}


def test_splits_have_the_documented_sizes():
    for split, count in COUNTS.items():
        opacity, labels = silhouettes.load(split)
        assert opacity.shape == (count, 28, 28) and opacity.dtype == np.uint8
        assert labels.shape == (count,) and labels.dtype == np.int64
    held_out = np.bincount(silhouettes.load("held-out").labels)
    assert held_out.tolist() == [200] * 10


def test_no_image_or_mirror_image_stands_twice():
    everything = np.concatenate(list(images().values()))
    seen = {image.tobytes() for image in everything}
    assert len(seen) == 9716
    symmetric = sum(np.array_equal(image, image[:, ::-1]) for image in everything)
    mirrored = sum(image[:, ::-1].tobytes() in seen for image in everything)
    assert mirrored == symmetric


def test_labels_fit_the_pictures():
    """Facts of anatomy, not of the file: zebras are by far the greyest, and giraffes are narrow."""
    opacity, labels = silhouettes.load("train")
    grey = ((opacity > 64) & (opacity < 192)).mean(axis=(1, 2)) / (opacity > 64).mean(axis=(1, 2))
    width = (opacity > 64).any(1).sum(1)
    names = np.array(silhouettes.ANIMALS)
    mean_grey = [grey[labels == k].mean() for k in range(10)]
    assert names[np.argmax(mean_grey)] == "zebra"
    assert sorted(mean_grey)[-1] > 1.5 * sorted(mean_grey)[-2]
    median_width = [np.median(width[labels == k]) for k in range(10)]
    assert names[np.argmin(median_width)] == "giraffe"


def test_classes_are_those_of_the_description():
    description = json.loads(files("nanogen").joinpath("assets/animals/animals.json").read_text())
    assert tuple(description["classes"]) == silhouettes.ANIMALS
    assert {name: sum(n) for name, n in description["counts"].items()} == COUNTS


def test_arrays_cannot_be_changed_by_accident():
    opacity, labels = silhouettes.load("validation")
    with pytest.raises(ValueError, match="read-only"):
        opacity[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        labels[0] = 1


def test_a_broken_sheet_is_refused(monkeypatch):
    whole = silhouettes._read

    def broken(name: str) -> bytes:
        return whole(name) if name.endswith("json") else whole(name)[:-1] + b"x"

    silhouettes._everything.cache_clear()
    monkeypatch.setattr(silhouettes, "_read", broken)
    with pytest.raises(DataError, match=r"silhouettes\.png is broken .* install nanogen again"):
        silhouettes.load("train")
    silhouettes._everything.cache_clear()


def test_unknown_split_is_named_with_the_nearest():
    with pytest.raises(DataError, match="no split 'heldout'; did you mean held-out"):
        silhouettes.load("heldout")


def test_images_are_ink_on_white():
    source = Animals(flip=False).build()
    opacity, labels = silhouettes.load("train")
    for index in (0, 4000, 7215):
        sample = source.read("train", index, draw=3)
        assert sample.image.shape == (3, 28, 28) and sample.image.dtype == torch.uint8
        assert sample.label == labels[index] and sample.text is None
        for channel in sample.image:
            assert np.array_equal(channel.numpy(), 255 - opacity[index])
    assert source.classes[int(labels[7215])] == "zebra"


def test_flip_depends_on_the_draw_alone_and_is_fair():
    source = Animals().build()
    plain = Animals(flip=False).build().read("train", 7, 0).image
    flipped = [
        torch.equal(source.read("train", 7, draw).image, plain.flip(-1)) for draw in range(400)
    ]
    again = [torch.equal(source.read("train", 7, d).image, plain.flip(-1)) for d in range(400)]
    assert flipped == again
    assert 160 < sum(flipped) < 240  # four standard deviations
    either = [source.read("train", 7, draw).image for draw in range(20)]
    assert all(torch.equal(i, plain) or torch.equal(i, plain.flip(-1)) for i in either)


def test_validation_and_held_out_are_never_flipped():
    source, plain = Animals().build(), Animals(flip=False).build()
    for split in ("validation", "held-out"):
        for draw in range(20):
            image = source.read(split, 5, draw).image
            assert torch.equal(image, plain.read(split, 5, 0).image)


def test_other_sizes_keep_the_mean_and_the_shape():
    small, large = Animals(flip=False).build(), Animals(size=56, flip=False).build()
    for index in range(0, 500, 100):
        a = small.read("validation", index, 0).image.float()
        b = large.read("validation", index, 0).image.float()
        assert b.shape == (3, 56, 56)
        assert abs(a.mean() - b.mean()) < 2.5
        back = Image.fromarray(b[0].byte().numpy()).resize((28, 28), Image.Resampling.BOX)
        assert np.abs(np.asarray(back, float) - a[0].numpy()).mean() < 6


@pytest.mark.parametrize("size", [27, 65])
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(ConfigError, match=f"size={size} is out of range; choose 28 to 64"):
        Animals(size=size).build()


def test_fingerprint_tells_every_setting():
    configs = [Animals(), Animals(size=32), Animals(flip=False)]
    assert len({config.build().fingerprint for config in configs}) == 3
    assert Animals().build().fingerprint == Animals().build().fingerprint


def test_generators_are_independent_streams():
    keys = [("train", 1, 2), ("train", 2, 1), ("held-out", 1, 2), ("train", 1, 3), ("train", 0, 2)]
    streams = {key: generator(*key).random(50).tolist() for key in keys}
    numbers = [number for stream in streams.values() for number in stream]
    assert len(set(numbers)) == len(numbers)
    assert generator("train", 1, 2).random(50).tolist() == streams["train", 1, 2]
    # Far positions of the stream of a long run are as good as near ones.
    assert generator("train", 7215, 2**40).random() != generator("train", 7215, 2**40 + 1).random()
