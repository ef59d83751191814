"""Images in npz files: to the bit, without loading them, and every way they can be wrong."""

from __future__ import annotations

import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from nanogen.data.transforms import centre_crop
from nanogen.errors import ConfigError, DataError
from nanogen.images.arrays import Arrays
from nanogen.images.open import open_images

COUNT = 23


def pixels(count=COUNT, side=8):
    return np.random.RandomState(0).randint(0, 256, (count, side, side, 3), np.uint8)


def write(path, packed=False, **arrays):
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    return path


def read(images, start=0, stop=COUNT):
    found = list(images.read(start, stop))
    indices = torch.cat([request.indices for request, _ in found])
    return indices.tolist(), torch.cat([batch for _, batch in found])


PACKED = pytest.mark.parametrize("packed", [False, True])


@PACKED
def test_every_image_and_label_to_the_bit(tmp_path, packed):
    labels = np.arange(COUNT)[::-1].astype(np.int32)
    path = write(tmp_path / "a.npz", packed, arr_0=pixels(), arr_1=labels, mu=np.zeros(3))
    images = open_images(path, batch=5)
    assert isinstance(images, Arrays) and images.count() == COUNT
    expected = torch.from_numpy(pixels()).permute(0, 3, 1, 2)
    indices, found = read(images)
    assert indices == list(range(COUNT)) and torch.equal(found, expected)
    assert [len(batch) for _, batch in images.read(0, COUNT)] == [5, 5, 5, 5, 3]
    # Onwards, back, and beyond the end.
    for start, stop in ((0, 5), (5, 9), (15, 99), (2, 4), (2, 4)):
        indices, found = read(images, start, stop)
        assert indices == list(range(COUNT))[start:stop] and torch.equal(
            found, expected[start:stop]
        )
    assert images.request(20, 99).labels.tolist() == [2, 1, 0]
    assert images.facts == {"layout": "npz", "sizes": ["8x8: 23"]}
    assert images.skipped == {}


def test_a_reader_that_stops_halfway_disturbs_no_other(tmp_path):
    images = Arrays(write(tmp_path / "a.npz", True, arr_0=pixels()), batch=4)
    first = images.read(0, COUNT)
    next(first)
    assert read(images)[0] == list(range(COUNT))
    rest = torch.cat([batch for _, batch in first])
    assert torch.equal(rest, torch.from_numpy(pixels()[4:]).permute(0, 3, 1, 2))


def test_a_plain_array(tmp_path):
    np.save(tmp_path / "a.npy", pixels())
    images = open_images(tmp_path / "a.npy")
    assert torch.equal(read(images, 3, 7)[1], torch.from_numpy(pixels()[3:7]).permute(0, 3, 1, 2))
    assert images.request(0, 2).labels is None


def test_another_size(tmp_path):
    images = Arrays(write(tmp_path / "a.npz", arr_0=pixels(3, 20)), size=8)
    found = read(images)[1]
    for row in range(3):
        assert torch.equal(found[row], centre_crop(Image.fromarray(pixels(3, 20)[row]), 8))
    assert images.facts["images_cropped"] == 3 and images.facts["image_size"] == 8
    assert Arrays(tmp_path / "a.npz", size=40).facts["images_enlarged"] == 3


WRONG = {
    "no arr_0": ({"images": pixels()}, r"has no arr_0, it holds images \(uint8 23 x 8 x 8 x 3\)"),
    "floats": ({"arr_0": pixels() / 255}, "arr_0 is float64 23 x 8 x 8 x 3, of another type"),
    "signed": ({"arr_0": pixels().astype(np.int8)}, "arr_0 is int8 .*of another type"),
    "channels first": ({"arr_0": pixels().transpose(0, 3, 1, 2).copy()}, "channels first"),
    "grey": ({"arr_0": pixels()[..., 0]}, "arr_0 is uint8 23 x 8 x 8, of another shape"),
    "alpha": ({"arr_0": np.zeros((2, 8, 8, 4), np.uint8)}, "of another shape"),
    "one": ({"arr_0": pixels()[0]}, "of another shape"),
    "flat": ({"arr_0": pixels()[:, :0]}, "of another shape"),
    "none": ({"arr_0": pixels()[:0]}, "without images"),
    "fortran": ({"arr_0": np.asfortranarray(pixels())}, "in Fortran order"),
    "labels": ({"arr_0": pixels(), "arr_1": np.arange(9)}, "arr_1 is int64 9; labels must be 23"),
    "soft labels": ({"arr_0": pixels(), "arr_1": np.ones(23)}, "arr_1 is float64 23; labels must"),
    "negative": ({"arr_0": pixels(), "arr_1": np.full(23, -1)}, "has labels -1 to -1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_of_another_layout(tmp_path, case):
    arrays, match = WRONG[case]
    with pytest.raises(DataError, match=match) as problem:
        Arrays(write(tmp_path / "a.npz", **arrays))
    assert "\n" not in str(problem.value)


def test_labels_beyond_the_classes(tmp_path):
    path = write(tmp_path / "a.npz", arr_0=pixels(), arr_1=np.arange(COUNT))
    assert Arrays(path, classes=["x"] * 23).request(0, 1).labels.tolist() == [0]
    with pytest.raises(DataError, match="labels 0 to 22, but classes are 0 to 21"):
        Arrays(path, classes=["x"] * 22)


def test_pickles_are_never_opened(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, arr_0=pixels(), arr_1=np.array([{}] * COUNT, object))
    with pytest.raises(DataError, match="arr_1 is object"):
        Arrays(path)


def test_damaged_files(tmp_path):
    path = tmp_path / "a.npz"
    for match in ("does not exist", "cannot read .* as npz or npy"):
        with pytest.raises(DataError, match=match):
            Arrays(path)
        path.write_bytes(b"nothing at all")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", b"nothing at all")
    with pytest.raises(DataError, match="cannot read .* as npz or npy"):
        Arrays(path)
    with pytest.raises(ConfigError, match="size=0"):
        Arrays(path, size=0)
    np.save(tmp_path / "b.npy", pixels())
    data = (tmp_path / "b.npy").read_bytes()
    (tmp_path / "b.npy").write_bytes(data[:-300])
    with pytest.raises(DataError, match="is damaged: it ends within image 21"):
        read(Arrays(tmp_path / "b.npy"))


def test_damage_within_a_compressed_array(tmp_path):
    path = write(tmp_path / "a.npz", True, arr_0=pixels())
    data = bytearray(path.read_bytes())
    data[2000:2100] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(DataError, match="is damaged"):
        read(Arrays(path))


@PACKED
def test_the_fingerprint_changes_with_the_content(tmp_path, packed):
    path = tmp_path / "a.npz"
    first = Arrays(write(path, packed, arr_0=pixels())).fingerprint
    assert Arrays(path).fingerprint == first != Arrays(path, size=4).fingerprint
    changed = pixels()
    changed[5, 0, 0, 0] ^= 1
    assert Arrays(write(path, packed, arr_0=changed)).fingerprint != first
    labelled = write(path, packed, arr_0=pixels(), arr_1=np.zeros(COUNT, int))
    assert Arrays(labelled).fingerprint != first


@PACKED
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, packed):
    path = write(tmp_path / "a.npz", packed, arr_0=np.zeros((600, 32, 32, 3), np.uint8))
    tracemalloc.start()
    for _ in Arrays(path, batch=10).read(0, 600):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400_000, "the array has 1.8 MB"
