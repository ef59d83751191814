"""A folder of images: what is read, what is known of it, and every way it can be wrong."""

from __future__ import annotations

import json
import os
import struct
import weakref
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from nanogen.data.transforms import centre_crop
from nanogen.errors import ConfigError, DataError
from nanogen.images import files
from nanogen.images.ahead import MOST_THREADS, ahead
from nanogen.images.folder import Folder
from nanogen.images.open import open_images
from nanogen.images.order import natural


def pixels(seed, wide=8, high=8):
    return np.random.RandomState(seed).randint(0, 256, (high, wide, 3), np.uint8)


def write(path, seed=0, wide=8, high=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, wide, high)).save(path)
    return path


@pytest.fixture
def plain(tmp_path):
    for number in range(12):
        write(tmp_path / f"{number}.png", number)
    return tmp_path


def everything(images):
    return list(images.read(0, images.count()))


def stacked(images):
    return torch.cat([pixels for _, pixels in everything(images)])


def refused(match, *arguments, **fields):
    with pytest.raises(DataError, match=match) as problem:
        everything(Folder(*arguments, **fields))
    assert "\n" not in str(problem.value)


def test_every_image_in_natural_order_to_the_bit(plain):
    images = Folder(plain, batch=5)
    found = everything(images)
    assert [len(request) for request, _ in found] == [5, 5, 2]
    assert torch.cat([request.indices for request, _ in found]).tolist() == list(range(12))
    for row, image in enumerate(torch.cat([batch for _, batch in found])):
        assert image.dtype == torch.uint8
        assert (image.permute(1, 2, 0).numpy() == pixels(row)).all()
    assert images.count() == 12 and not images.skipped
    assert images.facts == {"layout": "plain", "sizes": ["8x8: 12"]}
    assert images.name == plain.name and images.origin == str(plain)


def test_any_part_is_that_part_of_the_whole(plain):
    images = Folder(plain, batch=3)
    whole = stacked(images)
    for start, stop in ((0, 1), (5, 9), (10, 99)):
        found = list(images.read(start, stop))
        assert torch.equal(torch.cat([batch for _, batch in found]), whole[start:stop])
        indices = torch.cat([request.indices for request, _ in found])
        assert torch.equal(indices, images.request(start, stop).indices)
    assert list(images.read(4, 4)) == []


def test_natural_order():
    names = ["a9.png", "a10.png", "a.png", "b/2.png", "b/010.png", "b/10.png", "b/" + "9" * 5000]
    assert sorted(reversed(names), key=natural) == names
    assert sorted(["2", "10", "x", "1x"], key=natural) == ["1x", "2", "10", "x"]


def test_a_broken_file_is_left_out_and_reported(plain):
    whole = (plain / "3.png").read_bytes()
    (plain / "3.png").write_bytes(whole[:60])
    (plain / "7.png").write_bytes(b"no image")
    (plain / "9.png").unlink()
    (plain / "9.png").symlink_to(plain / "nowhere")
    images = Folder(plain, batch=4)
    found = everything(images)
    indices = torch.cat([request.indices for request, _ in found]).tolist()
    assert indices == [0, 1, 2, 4, 5, 6, 8, 10, 11]
    for index, image in zip(indices, torch.cat([batch for _, batch in found]), strict=True):
        assert (image.permute(1, 2, 0).numpy() == pixels(index)).all()
    assert list(images.skipped) == ["3.png", "7.png", "9.png"]
    assert "cannot be decoded" in images.skipped["3.png"]
    assert "not a readable image" in images.skipped["7.png"]
    assert "No such file" in images.skipped["9.png"]
    assert "3.png: cannot be decoded" in images.report()
    assert images.facts["images_unreadable"] == 2, "the third has a sound head"
    assert images.count() == 12


def test_all_broken(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(b"nothing")
    images = Folder(tmp_path)
    assert list(images.read(0, 4)) == []
    with pytest.raises(DataError, match=r"all images in .* are broken: 0\.jpg: .* and 2 more$"):
        list(images.read(4, 5))


def converted(tmp_path, name, image, **options):
    image.save(tmp_path / name, **options)
    images = Folder(tmp_path)
    notes = {n.removeprefix("images_"): c for n, c in images.facts.items() if n[:6] == "images"}
    return stacked(images)[0].permute(1, 2, 0).numpy().astype(int), notes


def test_grey(tmp_path):
    grey = pixels(0)[..., 0]
    found, notes = converted(tmp_path, "a.png", Image.fromarray(grey))
    assert (found == grey[..., None]).all() and notes == {"grey": 1}


def test_one_bit(tmp_path):
    found, notes = converted(tmp_path, "a.bmp", Image.fromarray(pixels(0)[..., 0] > 128))
    assert set(np.unique(found)) == {0, 255} and notes["grey"] == 1


def test_sixteen_bits(tmp_path):
    deep = np.random.RandomState(1).randint(0, 2**16, (8, 8)).astype(np.uint16)
    found, notes = converted(tmp_path, "a.png", Image.fromarray(deep))
    assert (found == np.round(deep / 257.0)[..., None]).all()
    assert notes == {"grey": 1, "16_bit": 1}


def test_sixteen_bits_of_colour(tmp_path):
    deep = np.random.RandomState(1).randint(0, 2**16, (8, 5, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 5, 8, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(rows)}
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in {**chunks, b"IEND": b""}.items():
        checked = name + body
        data += struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))
    (tmp_path / "a.png").write_bytes(data)
    images = Folder(tmp_path)
    found = stacked(images)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - deep / 257.0).max() <= 1
    assert images.facts["images_16_bit"] == 1


def test_colours_as_they_are(tmp_path):
    """Nothing is noted of a bitmap with rows of 16 bytes."""
    found, notes = converted(tmp_path, "a.bmp", Image.fromarray(pixels(0, wide=5)))
    assert (found == pixels(0, wide=5)).all() and notes == {}


def test_alpha_over_white(tmp_path):
    colour, alpha = pixels(2), pixels(3)[..., :1]
    found, notes = converted(tmp_path, "a.png", Image.fromarray(np.dstack([colour, alpha])))
    share = alpha / 255
    assert np.abs(found - (colour * share + 255 * (1 - share))).max() <= 1
    assert notes == {"alpha": 1}


def test_palette(tmp_path):
    image = Image.fromarray(pixels(4)).quantize(16)
    found, notes = converted(tmp_path, "a.png", image)
    assert (found == np.asarray(image.convert("RGB"))).all() and notes == {"palette": 1}


def test_cmyk(tmp_path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    found, notes = converted(tmp_path, "a.jpg", image, quality=95)
    assert (found[..., 0] > 240).all() and (found[..., 1:] < 20).all()
    assert notes == {"cmyk": 1, "jpeg": 1}


def test_turned_by_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    colour = pixels(5, wide=8, high=4)
    found, notes = converted(tmp_path, "a.png", Image.fromarray(colour), exif=exif)
    assert (found == np.rot90(colour, -1)).all() and notes == {"rotated": 1}
    assert Folder(tmp_path).facts["sizes"] == ["4x8: 1"]


def test_first_frame_of_a_film(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    found, notes = converted(
        tmp_path, "a.webp", frames[0], save_all=True, append_images=frames[1:], lossless=True
    )
    assert (found == (255, 0, 0)).all() and notes == {"animated": 1}


def test_other_sizes_are_cropped_and_counted(tmp_path):
    sizes = [(8, 8), (20, 8), (4, 6), (40, 33)]
    for number, size in enumerate(sizes):
        write(tmp_path / f"{number}.png", number, *size)
    images = Folder(tmp_path, size=8)
    ((request, found),) = everything(images)
    assert len(request) == 4
    for row, size in enumerate(sizes):
        assert torch.equal(found[row], centre_crop(Image.fromarray(pixels(row, *size)), 8))
    assert (found[0].permute(1, 2, 0).numpy() == pixels(0)).all()
    assert images.facts == {
        "layout": "plain",
        "image_size": 8,
        "sizes": ["4x6: 1", "8x8: 1", "20x8: 1", "40x33: 1"],
        "images_cropped": 3,
        "images_enlarged": 1,
    }


def test_sizes_as_they_are_keep_their_order(tmp_path):
    sizes = [8, 8, 8, 4, 8, 4, 4]
    for number, side in enumerate(sizes):
        write(tmp_path / f"{number}.png", number, side, side)
    found = everything(Folder(tmp_path, batch=2))
    assert [tuple(batch.shape) for _, batch in found] == [
        (2, 3, 8, 8),
        (1, 3, 8, 8),
        (1, 3, 4, 4),
        (1, 3, 8, 8),
        (2, 3, 4, 4),
    ]
    assert torch.cat([request.indices for request, _ in found]).tolist() == list(range(7))


def test_samples_of_our_own(plain):
    rows = [{"file": f"{n}.png", "caption": f" caption {n} ", "seed": n} for n in range(12)]
    (plain / "samples.json").write_text(json.dumps({"samples": rows}))
    write(plain / "grid.png", 99, 64, 64)
    images = Folder(plain)
    assert images.facts["layout"] == "tables" and images.count() == 12
    assert images.request(3, 5).texts == (" caption 3 ", " caption 4 "), "to the letter"
    assert images.request(0, 1).labels is None
    names = [f" caption {n} " for n in reversed(range(12))]
    labelled = Folder(plain, classes=names)
    assert labelled.request(0, 3).labels.tolist() == [11, 10, 9]
    assert labelled.request(0, 3).texts is None
    assert Folder(plain, classes=names[1:]).request(0, 1).texts is not None


def test_tables(plain):
    rows = [{"file_name": f"{n}.png", "text": f"caption {n}"} for n in range(12)]
    (plain / "metadata.jsonl").write_text("\n\n".join(map(json.dumps, reversed(rows))))
    assert Folder(plain).request(10, 12).texts == ("caption 10", "caption 11")
    rows = [{"file": f"./{n}.png", "label": 20 - n} for n in range(12)]
    (plain / "metadata.jsonl").unlink()
    (plain / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert Folder(plain).request(0, 3).labels.tolist() == [20, 19, 18]
    refused("is of class 20, but the data has 0 to 9", plain, classes=list("abcdefghij"))


def test_the_published_layout_of_geneval(tmp_path):
    for number, prompt in enumerate(["a bench ", "a photo of two clocks"]):
        folder = tmp_path / f"{number:05d}"
        for sample in range(4):
            write(folder / "samples" / f"{sample:04d}.png", 4 * number + sample)
        write(folder / "grid.png", 99, 64, 64)
        (folder / "metadata.jsonl").write_text(json.dumps({"tag": "x", "prompt": prompt}))
    images = Folder(tmp_path)
    assert images.facts["layout"] == "geneval"
    assert images.request(0, 8).texts == ("a bench ",) * 4 + ("a photo of two clocks",) * 4
    assert (stacked(images)[5].permute(1, 2, 0).numpy() == pixels(5)).all()
    (tmp_path / "00002").mkdir()
    (tmp_path / "00002" / "metadata.jsonl").write_text(json.dumps({"prompt": "a third"}))
    refused(r"00002/metadata.jsonl:1: no image in '00002/samples'", tmp_path)


def test_captions_and_classes_beside_the_images(plain):
    for number in range(12):
        (plain / f"{number}.txt").write_text(f"number {number} \n")
    (plain / "README.txt").write_text("not a caption")
    assert Folder(plain).request(0, 2).texts == ("number 0 ", "number 1 ")
    (plain / "13.txt").write_text("of nothing")
    refused("13.txt: there is no image of this name", plain)
    for file in plain.glob("*.txt"):
        file.rename(file.with_suffix(".cls"))
    (plain / "13.cls").unlink()
    (plain / "README.cls").unlink()
    refused("'number 0 .*' is not the number of a class", plain)
    for number in range(12):
        (plain / f"{number}.cls").write_text(f"{number * 2}\n")
    assert Folder(plain).request(0, 3).labels.tolist() == [0, 2, 4]


def test_subfolders_are_classes(tmp_path):
    for name in ("bee", "ape", "cow"):
        write(tmp_path / name / "deeper" / "0.png")
        write(tmp_path / name / "1.png")
    images = Folder(tmp_path)
    assert images.request(0, 6).labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert images.facts["layout"] == "subfolders"
    labelled = Folder(tmp_path, classes=("cow", "ape", "dog", "bee"))
    assert labelled.request(0, 6).labels.tolist() == [1, 1, 3, 3, 0, 0]
    unknown = Folder(tmp_path, classes=("cow", "ape"))
    assert unknown.request(0, 6).labels is None and unknown.facts["no_class"] == "bee"
    write(tmp_path / "loose.png")
    refused("'loose.png' lies beside the folder 'ape'", tmp_path)


def test_subfolders_with_numbers(tmp_path):
    for name in ("0", "7", "10"):
        write(tmp_path / "samples" / name / "0.png")
    assert Folder(tmp_path).request(0, 3).labels.tolist() == [0, 7, 10]
    assert Folder(tmp_path, classes=["x"] * 11).request(0, 3).labels.tolist() == [0, 7, 10]
    assert Folder(tmp_path, classes=["x"] * 10).facts["no_class"] == "10"


def test_one_subfolder_is_a_class_only_by_name(tmp_path):
    write(tmp_path / "ape" / "0.png")
    assert Folder(tmp_path).request(0, 1).labels is None
    assert Folder(tmp_path, classes=("bee", "ape")).request(0, 1).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"samples.json": "{"}, "samples.json is not what nanogen sample writes"),
        ({"samples.json": "[]"}, "samples.json is not what nanogen sample writes"),
        ({"samples.json": '{"samples": [3]}'}, "samples.json is not what nanogen sample writes"),
        (
            {"samples.json": '{"samples": [{"file": "no.png", "caption": "a"}]}'},
            "sample 0: there is no image 'no.png'",
        ),
        (
            {"samples.json": '{"samples": [{"file": "0.png", "caption": "a"}]}'},
            r"11 of 12 images in .* have no caption or class \(first: '1.png'\)",
        ),
        ({"samples.json": '{"samples": [{"file": "0.png"}]}'}, "has neither 'text' nor 'caption'"),
        ({"captions.jsonl": "{}"}, "has neither 'file_name' nor 'file'"),
        ({"captions.jsonl": "["}, "captions.jsonl:1: not a line of JSON"),
        ({"captions.jsonl": b"\xff"}, "captions.jsonl:1 is not UTF-8"),
        ({"captions.jsonl": '{"file": "../0.png", "text": "a"}'}, "there is no image '../0.png'"),
        ({"captions.jsonl": '{"file": "0.png", "text": 3}'}, "the caption is 3, not a text"),
        ({"captions.jsonl": '{"file": "0.png", "label": "3"}'}, "'3' is not the number of a class"),
        ({"captions.jsonl": '{"file": "0.png", "text": "a"}\n' * 2}, "a second entry for '0.png'"),
        ({"0.txt": "a", "1.cls": "2"}, "10 of 12 images"),
        ({"0.txt": b"\xe9"}, "0.txt is not UTF-8"),
    ],
)
def test_captions_that_are_wrong(plain, files, match):
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (plain / name).write_bytes(data)
    refused(match, plain)


def test_captions_and_classes_do_not_mix(tmp_path):
    for number in range(2):
        write(tmp_path / f"{number}.png")
    (tmp_path / "0.txt").write_text("a")
    (tmp_path / "1.cls").write_text("1")
    refused("some images in .* have a caption and others a class", tmp_path)


def test_no_folder_of_images(tmp_path):
    refused("gone does not exist; name a folder", tmp_path / "gone")
    refused(r"no images in .*found no file\)", tmp_path)
    (tmp_path / "a.tiff").touch()
    refused(r"no images in .*found 1 \.tiff\)", tmp_path)
    refused("a.tiff is not a folder", tmp_path / "a.tiff")
    for name in ("train", "val"):
        write(tmp_path / name / "0.png")
    refused(r"parts of a data set \(train, val\)", tmp_path)
    for fields in ({"size": 0}, {"batch": 0}):
        with pytest.raises(ConfigError, match="must be at least 1"):
            Folder(tmp_path / "train", **fields)
    with pytest.raises(ConfigError, match="size=100000 of images: must be at most 8944"):
        Folder(tmp_path / "train", size=100_000)


def test_a_path_says_what_it_is(plain):
    assert isinstance(open_images(plain), Folder)
    for name, match in (("gone", "does not exist"), ("0.png", "is no folder and no .npz")):
        with pytest.raises(DataError, match=match):
            open_images(plain / name)


def test_links_are_followed_but_not_in_circles(plain, tmp_path_factory):
    root = tmp_path_factory.mktemp("links")
    (root / "linked").symlink_to(plain)
    (plain / "back").symlink_to(root)
    (root / ".hidden").mkdir()
    write(root / ".hidden" / "0.png")
    images = Folder(root)
    assert images.names == [f"linked/{n}.png" for n in range(12)]
    assert not images.skipped and len(stacked(images)) == 12


def test_links_that_lead_nowhere_are_left_out(plain):
    (plain / "itself.png").symlink_to("itself.png")
    (plain / "gone.png").symlink_to("nowhere.png")
    images = Folder(plain)
    assert images.count() == 14 and len(stacked(images)) == 12
    assert set(images.skipped) == {"itself.png", "gone.png"}


def test_the_fingerprint_changes_with_images_captions_and_size(plain):
    seen = {Folder(plain).fingerprint}
    assert Folder(plain).fingerprint in seen

    def new(**fields):
        found = Folder(plain, **fields).fingerprint
        assert found not in seen
        seen.add(found)

    new(size=8)
    os.utime(plain / "3.png", ns=(1, 1))
    new()
    for number in range(12):
        (plain / f"{number}.txt").write_text("a")
    new()
    (plain / "3.txt").write_text("b")
    new()
    (plain / "0.png").rename(plain / "00.png")
    (plain / "0.txt").rename(plain / "00.txt")
    new()


def test_few_images_are_held_however_many_there_are(plain, monkeypatch):
    for number in range(12, 150):
        os.link(plain / "0.png", plain / f"{number}.png")
    held = [0, 0]
    decode = files.rgb

    def released():
        held[0] -= 1

    def watched(data, name, size):
        image = decode(data, name, size)
        weakref.finalize(image, released)
        held[0] += 1
        held[1] = max(held)
        return image

    monkeypatch.setattr(files, "rgb", watched)
    for _ in Folder(plain, batch=4).read(0, 150):
        pass
    assert held[1] <= 4 + 2 * MOST_THREADS + 2


def test_ahead_keeps_the_order_and_stays_near():
    begun = []
    results = ahead(lambda n: begun.append(n) or n * n, range(1000))
    assert next(results) == 0
    assert len(begun) < 40
    assert list(results) == [n * n for n in range(1, 1000)]

    def fails(number):
        if number == 3:
            raise DataError("three")
        return number

    results = ahead(fails, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="three"):
        next(results)
