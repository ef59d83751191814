"""Tar shards as a data set: the same samples as the files in them, and nothing unsafe."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from nanogen.data.shards import Shards
from nanogen.errors import DataError


def png(level):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_shard(path, members, **options):
    """`members`: (name, bytes) or ready TarInfo."""
    with tarfile.open(path, "w", **options) as shard:
        for name, data in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    return path


def sample(number, caption="txt"):
    key = f"{number:04}"
    text = f"number {number}"
    captions = {"txt": text.encode(), "json": json.dumps({"caption": text}).encode()}
    members = [(f"{key}.png", png(number)), (f"{key}.cls", str(number % 3).encode())]
    return members + ([(f"{key}.{caption}", captions[caption])] if caption else [])


@pytest.fixture
def folder(tmp_path):
    for shard in range(4):
        numbers = range(20 * shard, 20 * shard + 20)
        write_shard(tmp_path / f"part-{shard:02}.tar", sum(map(sample, numbers), []))
    return tmp_path


def opened(path, **fields):
    return Shards(path=str(path), size=8, **fields).build()


def refused(path, match, **fields):
    with pytest.raises(DataError, match=match) as problem:
        opened(path, **fields)
    assert "\n" not in str(problem.value)


def levels(source):
    """The numbers of all samples, which are their grey levels; checks labels and texts."""
    found = []
    for split in ("train", "validation", "held-out"):
        for index in range(source.count(split)):
            read = source.read(split, index, 0)
            number = int(read.image[0, 0, 0])
            assert (read.image == number).all()
            assert read.label == (number % 3 if source.classes else None)
            assert read.text == (f"number {number}" if source.captioned else None)
            found.append(number)
    return sorted(found)


def test_every_sample_is_read_from_its_place(folder):
    source = opened(folder, held_out=0.2)
    assert source.classes == ("0", "1", "2") and source.captioned
    assert levels(source) == list(range(80))
    assert source.prompts() and set(source.prompts()) <= {f"number {n}" for n in range(80)}


@pytest.mark.parametrize(
    "pattern", ["part-*.tar", "part-{00..03}.tar", "part-{00,01,02,03}.tar", "part-0{0..3}.tar"]
)
def test_patterns(folder, pattern):
    assert levels(opened(folder / pattern)) == list(range(80))
    assert levels(opened(folder / "part-0{1,3}.tar")) == [*range(20, 40), *range(60, 80)]


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_dialects_and_long_names(tmp_path, layout):
    long = "a" * 90 + "/" + "b" * 90
    write_shard(tmp_path / "a.tar", [(f"{long}/{n}", d) for n, d in sample(5)], format=layout)
    assert levels(opened(tmp_path)) == [5]


def test_captions_in_json(tmp_path):
    write_shard(tmp_path / "a.tar", sum((sample(n, "json") for n in range(6)), []))
    assert levels(opened(tmp_path)) == list(range(6))
    assert not opened(tmp_path, captions=False).captioned


def test_samples_without_captions_or_classes(tmp_path):
    write_shard(tmp_path / "a.tar", sum((sample(n, None) for n in range(6)), []))
    assert not opened(tmp_path).captioned and opened(tmp_path).prompts() == ()
    write_shard(tmp_path / "a.tar", [(f"{n}.png", png(n)) for n in range(6)])
    assert opened(tmp_path).classes == () and levels(opened(tmp_path)) == list(range(6))


def test_fingerprint_follows_the_files(folder):
    first = opened(folder).fingerprint
    assert opened(folder / "part-*.tar").fingerprint == first
    write_shard(folder / "part-04.tar", sample(90))
    assert opened(folder).fingerprint != first


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


def test_pickles_are_never_opened(tmp_path):
    poison = pickle.dumps(Bomb())
    kinds = ("pyd", "pickle", "npy", "pth", "seg.png")
    write_shard(tmp_path / "a.tar", sample(1) + [(f"0001.{kind}", poison) for kind in kinds])
    assert levels(opened(tmp_path)) == [1]


@pytest.mark.parametrize("name", ["../../evil.png", "/etc/evil.png", "a/../../evil.png"])
def test_names_that_lead_outside_are_refused(tmp_path, name):
    write_shard(tmp_path / "a.tar", [*sample(1), (name, png(1))])
    refused(tmp_path, "evil.png' leads outside; do not use this shard")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices_are_refused(tmp_path, kind):
    link = tarfile.TarInfo("0002.png")
    link.type, link.linkname = kind, "/etc/passwd"
    write_shard(tmp_path / "a.tar", [*sample(1), (link, b"")])
    refused(tmp_path, "0002.png' is a link or no plain file")


def test_cut_off_shards_are_refused(folder):
    path = folder / "part-02.tar"
    whole = path.read_bytes()
    for keep in (300, 600, 5 * 512 + 100, 20_000, 30_100):
        path.write_bytes(whole[:keep])
        refused(folder, "part-02.tar")


def test_a_damaged_header_does_not_end_the_shard_silently(folder):
    path = folder / "part-02.tar"
    whole = bytearray(path.read_bytes())
    header = whole.index(b"0050.png")
    whole[header + 150] ^= 0xFF
    path.write_bytes(whole)
    refused(folder, "part-02.tar' is damaged at byte")


def test_compressed_shards_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as shard:
        shard.add(__file__, "0001.png")
    refused(tmp_path, "cannot read .*a.tar' as an uncompressed tar")


def test_missing_and_useless_shards(tmp_path):
    refused(tmp_path, "no .tar file in")
    refused(tmp_path / "x-{0..1}.tar", "there is no shard .*x-0.tar'")
    write_shard(tmp_path / "a.tar", [("0001.txt", b"hello")])
    refused(tmp_path, "no sample with an image")


def test_incomplete_samples_are_reported(tmp_path):
    write_shard(tmp_path / "a.tar", sample(1) + sample(2, None))
    refused(tmp_path, r"1 of 2 samples have no caption .first: '.*a.tar/0002.png'")
    write_shard(tmp_path / "a.tar", sample(1) + sample(1))
    refused(tmp_path, "0001.png' twice")
    write_shard(tmp_path / "a.tar", [*sample(1), ("0002.txt", b"failed download")])
    with pytest.warns(UserWarning, match="1 samples without an image are passed over"):
        assert opened(tmp_path).count("train") == 1


@pytest.mark.parametrize("label", [b"cat", b"-1", b"", b"99999999999999999999", "²".encode()])
def test_labels_must_be_class_numbers(tmp_path, label):
    write_shard(tmp_path / "a.tar", [("1.png", png(1)), ("1.cls", label)])
    refused(tmp_path, "1.cls: .* is not the number of a class")


def test_broken_captions_and_images_are_named(tmp_path):
    write_shard(tmp_path / "a.tar", [("1.png", png(1)), ("1.txt", b"caf\xe9")])
    with pytest.raises(DataError, match="caption of .*a.tar/1.png.* is not UTF-8"):
        opened(tmp_path).read("train", 0, 0)
    write_shard(tmp_path / "a.tar", [("1.png", png(1)[:50]), ("1.txt", b"a")])
    with pytest.raises(DataError, match="a.tar/1.png' cannot be decoded"):
        opened(tmp_path).read("train", 0, 0)
    write_shard(tmp_path / "a.tar", [("1.png", png(1)), ("1.json", b"{")])
    refused(tmp_path, "1.json: not JSON")
