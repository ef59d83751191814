"""A folder of images as a data set: classes, captions, splits, and every way it can be wrong."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from nanogen import config, registry
from nanogen.data.folder import Folder
from nanogen.errors import ConfigError, DataError


def write_image(path, level=0, side=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (level,) * 3).save(path)


@pytest.fixture
def classes(tmp_path):
    for label, name in enumerate(["ape", "bee", "cow"]):
        for number in range(40):
            write_image(tmp_path / name / f"{number}.png", 80 * label)
    return tmp_path


@pytest.fixture
def captioned(tmp_path):
    for number in range(60):
        write_image(tmp_path / f"{number:02}.png", number)
        (tmp_path / f"{number:02}.txt").write_text(f" grey number {number}\n", encoding="utf-8")
    return tmp_path


def opened(path, **fields):
    return Folder(path=str(path), size=8, **fields).build()


def refused(path, match, **fields):
    with pytest.raises(DataError, match=match) as problem:
        opened(path, **fields)
    assert "\n" not in str(problem.value)


def everything(source):
    return [
        source.read(split, index, 0)
        for split in ("train", "validation", "held-out")
        for index in range(source.count(split))
    ]


def test_classes_are_the_subfolders(classes):
    source = opened(classes)
    assert source.classes == ("ape", "bee", "cow")
    assert not source.captioned and source.prompts() == ()
    samples = everything(source)
    assert len(samples) == 120
    for sample in samples:
        assert (sample.image == 80 * sample.label).all()
        assert sample.text is None


def test_deeper_folders_belong_to_the_class_above(tmp_path):
    write_image(tmp_path / "ape" / "old" / "1.png")
    write_image(tmp_path / "bee" / "2.png")
    assert opened(tmp_path, held_out=0, validation=0).classes == ("ape", "bee")


def test_captions_beside_the_images(captioned):
    source = opened(captioned, held_out=0.2, validation=0.1)
    assert source.captioned and source.classes == ()
    for sample in everything(source):
        assert sample.text == f"grey number {int(sample.image[0, 0, 0])}"
        assert sample.label is None
    held_out = {source.read("held-out", i, 0).text for i in range(source.count("held-out"))}
    assert source.prompts() == tuple(sorted(held_out))
    assert not opened(captioned, captions=False).captioned


@pytest.mark.parametrize("names", [("file_name", "text"), ("file", "caption")])
def test_captions_in_a_table(tmp_path, names):
    rows = []
    for number in range(9):
        write_image(tmp_path / "deep" / "er" / f"{number}.png", number)
        rows.append(dict(zip(names, (f"er/{number}.png", f"number {number}"), strict=True)))
    lines = "\n\n".join(map(json.dumps, rows))
    (tmp_path / "deep" / "captions.jsonl").write_text(lines, encoding="utf-8-sig")
    for sample in everything(opened(tmp_path)):
        assert sample.text == f"number {int(sample.image[0, 0, 0])}"


def test_splits_are_disjoint_complete_and_stable(classes):
    def names(source, split):
        return {source.name(int(number)) for number in source._numbers[split]}

    before = opened(classes, held_out=0.3, validation=0.2)
    parts = [names(before, split) for split in ("train", "validation", "held-out")]
    assert sum(map(len, parts)) == 120 == len(set.union(*parts))
    assert 15 < len(parts[2]) < 57 and 8 < len(parts[1]) < 43
    assert before.count("test") == 0
    for number in range(30):
        write_image(classes / "ant" / f"{number}.png")
    after = opened(classes, held_out=0.3, validation=0.2)
    for split, old in zip(("train", "validation", "held-out"), parts, strict=True):
        assert old == {name for name in names(after, split) if "/ant/" not in name}


def test_only_training_images_are_mirrored(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = 255
    for number in range(40):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")

    def sides(source, split):
        return {int(source.read(split, 0, draw).image[0, 0, 0]) for draw in range(20)}

    source = opened(tmp_path, held_out=0.3)
    assert sides(source, "train") == {0, 255}
    assert sides(source, "held-out") == {255}
    assert sides(opened(tmp_path, flip=False), "train") == {255}


def test_fingerprint_follows_content_and_options_but_not_place(captioned, tmp_path_factory):
    first = opened(captioned).fingerprint
    assert first == opened(captioned).fingerprint
    assert first != opened(captioned, held_out=0.1).fingerprint
    moved = tmp_path_factory.mktemp("other") / "moved"
    os.rename(captioned, moved)
    assert opened(moved).fingerprint == first
    (moved / "00.txt").write_text("a caption of another length", encoding="utf-8")
    assert opened(moved).fingerprint != first


def test_hidden_files_and_other_files_are_passed_over(classes):
    write_image(classes / "ape" / "._1.png")
    write_image(classes / ".cache" / "1.png")
    (classes / "README.txt").write_text("about")
    assert len(everything(opened(classes))) == 120


def test_links_are_not_followed(classes, tmp_path_factory):
    secret = tmp_path_factory.mktemp("secret")
    write_image(secret / "1.png")
    (classes / "ape" / "link.png").symlink_to(secret / "1.png")
    (classes / "zoo").symlink_to(secret)
    (classes / "ape" / "loop").symlink_to(classes)
    with pytest.warns(UserWarning, match="3 links in .* are not followed"):
        source = opened(classes)
    assert source.classes == ("ape", "bee", "cow") and len(everything(source)) == 120


def test_missing_and_empty_folders(tmp_path):
    refused(tmp_path / "none", "cannot list .*none.*No such file or directory; set the data's path")
    refused(tmp_path, "no images in .*looked for .jpg")
    (tmp_path / "file.txt").write_text("")
    refused(tmp_path / "file.txt", "Not a directory")


def test_folders_that_hold_splits_or_a_mixture(tmp_path):
    write_image(tmp_path / "train" / "ape" / "1.png")
    write_image(tmp_path / "val" / "ape" / "1.png")
    refused(tmp_path, r"parts of a data set \(train, val\), not classes; .*/train")
    write_image(tmp_path / "loose.png")
    refused(tmp_path, "'loose.png' lies beside the class folders")


def test_nothing_left_to_train_on(tmp_path):
    write_image(tmp_path / "1.png")
    refused(tmp_path, "none of the 1 images is left to train on", held_out=0.99, validation=0.0099)


def test_missing_captions_are_counted(captioned):
    (captioned / "07.txt").unlink()
    refused(captioned, "1 of 60 images have no caption .first: '07.png'")


def test_a_caption_in_another_encoding_is_named(captioned):
    for path in captioned.glob("*.txt"):
        path.write_bytes("café".encode("latin-1"))
    source = opened(captioned)
    with pytest.raises(DataError, match=r"\.txt' is not UTF-8 text .*save it as UTF-8"):
        source.read("train", 0, 0)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (b'{"file": "a.png"', r"captions.jsonl:2: not a line of JSON"),
        (b"[1]", r"captions.jsonl:2: not a JSON object"),
        (b"[" * 100_000, r"captions.jsonl:2: not a line of JSON"),
        (b'{"file": "a.png"}', r"captions.jsonl:2: has neither 'text' nor 'caption'"),
        (b'{"text": "a"}', r"captions.jsonl:2: has neither 'file_name' nor 'file'"),
        (b'{"file": "../x.png", "text": "a"}', r"captions.jsonl:2: there is no image '../x.png'"),
        (b'{"file": "a.png", "text": 5}', r"captions.jsonl:2: the caption is 5, not a text"),
        (b'{"file": "a.png", "text": "\\ud800"}', r"captions.jsonl:2: .*not valid Unicode"),
        (b'{"file": "b.png", "text": "b"}', r"captions.jsonl:2: a second caption for 'b.png'"),
        (b'{"file": "a.png", "text": "caf\xe9"}', r"captions.jsonl:2 is not UTF-8 text"),
    ],
)
def test_broken_tables_name_the_line(tmp_path, line, match):
    for name in "ab":
        write_image(tmp_path / f"{name}.png")
    (tmp_path / "captions.jsonl").write_bytes(b'{"file": "b.png", "text": "b"}\n' + line)
    refused(tmp_path, match)


def test_a_broken_image_is_named(classes):
    for path in classes.glob("*/*.png"):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"\.png' cannot be decoded: .*; remove it or replace it"):
        opened(classes).read("train", 0, 0)


def test_a_file_that_vanishes_is_named(captioned):
    source = opened(captioned)
    for path in captioned.iterdir():
        path.unlink()
    with pytest.raises(DataError, match="cannot read .*No such file"):
        source.read("train", 0, 0)


def test_options_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="set its path"):
        Folder()
    with pytest.raises(ConfigError, match="size=0 of the data"):
        Folder(path="x", size=0)
    with pytest.raises(ConfigError, match="held_out=0.995 of the data must be shares"):
        Folder(path="x", held_out=0.995)


def test_config_survives_a_dump():
    folder = Folder(path="photos", held_out=0.1)
    assert config.make(Folder, config.flatten(folder)) == folder
    assert registry.get("data", "folder") is Folder
