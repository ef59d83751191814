"""Images in a tar or zip: the same as in a folder, and every way an archive can be wrong."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from nanogen.errors import DataError
from nanogen.images.archive import Archive
from nanogen.images.folder import Folder
from nanogen.images.open import open_images


def png(seed):
    colour = np.random.RandomState(seed).randint(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(colour).save(file, format="PNG")
    return file.getvalue()


def captions(count):
    rows = [{"file": f"{n}.png", "caption": f"number {n}"} for n in range(count)]
    return json.dumps({"samples": rows}).encode()


@pytest.fixture
def files():
    return {f"run/{n}.png": png(n) for n in range(11)} | {"run/samples.json": captions(11)}


def write(path, files):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def everything(images):
    found = list(images.read(0, images.count()))
    return torch.cat([batch for _, batch in found])


def refused(match, path):
    with pytest.raises(DataError, match=match) as problem:
        everything(open_images(path))
    assert "\n" not in str(problem.value)


KINDS = pytest.mark.parametrize("kind", [".tar", ".zip"])


@KINDS
def test_the_same_as_in_a_folder(tmp_path, files, kind):
    for name, data in files.items():
        target = tmp_path / "folder" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    folder, archive = Folder(tmp_path / "folder"), open_images(write(tmp_path / f"a{kind}", files))
    assert isinstance(archive, Archive)
    assert torch.equal(everything(archive), everything(folder))
    assert archive.request(0, 11).texts == folder.request(0, 11).texts
    assert archive.request(9, 11).texts == ("number 9", "number 10")
    assert archive.facts == folder.facts
    ((request, part),) = archive.read(4, 6)
    assert request.texts == ("number 4", "number 5")
    assert torch.equal(part, everything(folder)[4:6])
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"a{kind}", "folder"], "not extracted"


@KINDS
def test_broken_members_are_left_out(tmp_path, files, kind):
    files["run/3.png"] = files["run/3.png"][:50]
    files["run/.hidden.png"] = files["__MACOSX/run/x.png"] = b""
    images = open_images(write(tmp_path / f"a{kind}", files))
    assert images.count() == 11 and len(everything(images)) == 10
    assert list(images.skipped) == ["run/3.png"]


def test_a_tar_of_webdataset(tmp_path):
    files = {}
    for number in range(3):
        files |= {f"./{number:04d}.png": png(number), f"./{number:04d}.cls": b"%d" % (number + 5)}
    assert open_images(write(tmp_path / "a.tar", files)).request(0, 3).labels.tolist() == [5, 6, 7]


def test_damage_within_a_zip(tmp_path, files):
    path = write(tmp_path / "a.zip", files)
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("run/5.png").header_offset
    data = bytearray(path.read_bytes())
    data[place + 80 : place + 90] = bytes(10)
    path.write_bytes(data)
    images = open_images(path)
    assert len(everything(images)) == 10
    assert "cannot be read" in images.skipped["run/5.png"]


def test_what_is_no_archive(tmp_path, files):
    refused("gone.tar does not exist", tmp_path / "gone.tar")
    (tmp_path / "no.tar").write_bytes(b"nothing" * 200)
    refused("cannot read .*no.tar.* as an uncompressed tar", tmp_path / "no.tar")
    (tmp_path / "no.zip").write_bytes(b"PK")
    refused("no.zip is no zip", tmp_path / "no.zip")
    (tmp_path / "empty.tar").touch()
    refused("cannot read .*empty.tar|no images in .*empty.tar", tmp_path / "empty.tar")
    refused("no images in .*found 1 .txt", write(tmp_path / "b.tar", {"a.txt": b"a"}))
    refused("no images in .*found no file", write(tmp_path / "b.zip", {}))
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    refused("c.tar.gz is compressed, .*: gunzip .*c.tar.gz", tmp_path / "c.tar.gz")
    whole = write(tmp_path / "d.tar", files).read_bytes()
    (tmp_path / "d.tar").write_bytes(whole[:3000])
    refused("d.tar", tmp_path / "d.tar")


def test_members_that_lead_outside(tmp_path):
    refused("leads outside", write(tmp_path / "a.tar", {"../a.png": png(0)}))
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    refused("is a link", tmp_path / "b.tar")


def test_captions_of_missing_members(tmp_path, files):
    del files["run/4.png"]
    refused("there is no image 'run/4.png'", write(tmp_path / "a.tar", files))


@KINDS
def test_the_fingerprint_changes_with_the_content(tmp_path, files, kind):
    path = write(tmp_path / f"a{kind}", files)
    first = open_images(path).fingerprint
    assert open_images(path).fingerprint == first
    swapped = {**files, "run/0.png": files["run/1.png"], "run/1.png": files["run/0.png"]}
    os.utime(write(path, swapped), ns=(1, 1))
    assert open_images(path).fingerprint != first
