"""The store: whole and checked or not at all, cheap to ask, and one clear line when it fails."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nanogen import download, manifest, store
from nanogen.errors import ConfigError, DataError, UserError
from nanogen.store import Asset, find, prepare

BYTES = bytes(range(256)) * 40_000  # 10 MB: more than is read at once
SHA = hashlib.sha256(BYTES).hexdigest()
FOLDER = Asset(
    "tiny-model", "a model", "MIT", hub="me/tiny", files=("config.json", "*.safetensors")
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "PAUSE", 0.0)
    return tmp_path / "cache" / "nanogen" / "store"


class Server(http.server.ThreadingHTTPServer):
    """Serves BYTES with ranges; `cuts` are byte counts after which answers break off."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts: list[int] = []
        self.tag, self.body = '"one"', BYTES
        self.asked: list[str | None] = []
        self.pause = 0.0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.path != "/weights.bin":
            return self.send_error(404)
        asked = self.headers["Range"]
        self.server.asked.append(asked)
        time.sleep(self.server.pause)
        start = 0
        if asked and self.headers["If-Range"] == self.server.tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        rest = self.server.body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        if self.server.tag:
            self.send_header("ETag", self.server.tag)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # who asked may have left
            self.wfile.write(rest[: self.server.cuts.pop(0) if self.server.cuts else None])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as one:
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def weights(server: Server, sha256: str = SHA) -> Asset:
    return Asset(
        "tiny-weights", "weights", "MIT", url=f"{server.address}/weights.bin", sha256=sha256
    )


def model(folder: Path) -> Path:
    """A folder of the hub's layout with more in it than is wanted."""
    (folder / "parts").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "x.safetensors").write_text("not mine")
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("not wanted")
    (folder / "a.safetensors").write_bytes(b"a" * (2 << 20))
    (folder / "parts" / "b.safetensors").write_bytes(b"b")
    return folder


def contents(folder: Path) -> set[str]:
    """What is in a folder, but for locks, which are empty."""
    return {p.name for p in folder.iterdir() if p.suffix != ".lock" or p.stat().st_size}


def one_line(problem: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(problem.value)
    return str(problem.value)


def test_a_missing_asset_names_the_command(cache: Path) -> None:
    with pytest.raises(ConfigError, match="weights: tiny-w .5 MB. .* run: nanogen prepare tiny-w "):
        find(Asset("tiny-w", "weights", "MIT", url="https://x/w.pth", size="5 MB"))
    assert not cache.exists()


def test_a_download_is_found_with_its_hash(server: Server, cache: Path) -> None:
    for digits in (SHA, SHA[:8].upper(), ""):
        asset = replace(weights(server), name=f"w{len(digits)}", sha256=digits)
        found = prepare(asset)
        assert found == find(asset) and found.sha256 == SHA
        assert found.path == cache / asset.name / "files" / "weights.bin"
        assert found.path.read_bytes() == BYTES
        told = json.loads((cache / asset.name / "manifest.json").read_text())
        assert told["source"] == asset.url and told["files"]["weights.bin"]["size"] == len(BYTES)
    assert contents(cache) == {"w64", "w8", "w0"}
    assert prepare(asset) == found and len(server.asked) == 3  # what is there is not fetched


def test_what_nobody_publishes_is_taken_from_the_user(tmp_path: Path, cache: Path) -> None:
    asset = Asset("ours", "real images", "theirs", files=("images.npz",), size="9 GB")
    with pytest.raises(ConfigError, match="in the store; run: nanogen prepare ours --from PATH$"):
        find(asset)
    with pytest.raises(ConfigError, match="ours .9 GB. cannot be fetched; add --from PATH, which"):
        prepare(asset)
    assert contents(cache) == set()
    (tmp_path / "images.npz").write_bytes(BYTES)
    assert prepare(asset, tmp_path / "images.npz").path == find(asset).path


def test_a_wrong_hash_leaves_nothing(server: Server, cache: Path) -> None:
    with pytest.raises(DataError, match=f"sha256 is {SHA}, published is 00ff") as problem:
        prepare(weights(server, "00ff"))
    one_line(problem)
    assert contents(cache) == set()


def test_a_broken_connection_is_continued(server: Server) -> None:
    server.cuts = [3_000_000, 2_000_000]
    assert prepare(weights(server)).path.read_bytes() == BYTES
    assert server.asked == [None, "bytes=3000000-", "bytes=5000000-"]


def test_a_file_that_changed_meanwhile_is_fetched_anew(server: Server, cache: Path) -> None:
    server.cuts = [1_000_000, 1_000_000, 1_000_000]
    with pytest.raises(ConfigError, match="ended after 3,000,000 of 10,240,000 .*is kept") as line:
        prepare(weights(server))
    assert "--from FILE" in one_line(line)
    assert contents(cache) == {".tiny-weights.fetched"}
    with pytest.raises(ConfigError, match="not in the store"):
        find(weights(server))
    server.tag, server.body = '"two"', BYTES[::-1]
    found = prepare(weights(server, ""))
    assert found.path.read_bytes() == BYTES[::-1] and contents(cache) == {"tiny-weights"}


@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_without_a_sure_mark_nothing_is_joined(server: Server, tag: str) -> None:
    server.tag, server.cuts = tag, [1_000_000]
    assert prepare(weights(server)).sha256 == SHA
    assert server.asked == [None, None]


def test_what_cannot_be_fetched_is_one_line(server: Server, cache: Path) -> None:
    asset = replace(weights(server), url=f"{server.address}/none.bin")
    with pytest.raises(ConfigError, match="none.bin: the server answers 404 Not Found; ") as line:
        prepare(asset)
    one_line(line)
    with pytest.raises(
        ConfigError, match=r"cannot download http://127.0.0.1:1/w: .*refused"
    ) as line:
        prepare(Asset("w", "w", "MIT", url="http://127.0.0.1:1/w"))
    one_line(line)
    assert contents(cache) == set()


def test_a_full_disk(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for place, name in ((download, "_check_room"), (manifest, "_copy"), (download, "_remember")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            patch.setattr(manifest, "LINKED", 1 << 40)
            with pytest.raises(UserError, match="no room in .*; free some, or set XDG_") as line:
                prepare(weights(server))
        one_line(line)
        assert contents(cache) == set()


def test_a_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write to .* set XDG_CACHE_HOME"):
        prepare(FOLDER, model(tmp_path / "given"))


def test_a_folder_of_the_user(tmp_path: Path) -> None:
    given = model(tmp_path / "given")
    found = prepare(FOLDER, given)
    names = ["a.safetensors", "config.json", "parts/b.safetensors"]
    there = {p.relative_to(found.path).as_posix(): p for p in found.path.rglob("*") if p.is_file()}
    assert sorted(there) == names
    assert there["a.safetensors"].samefile(given / "a.safetensors")  # large: linked
    assert not there["config.json"].samefile(given / "config.json")  # small: copied
    lines = subprocess.run(["sha256sum", *names], cwd=given, capture_output=True, check=True).stdout
    assert found.sha256 == hashlib.sha256(lines).hexdigest()


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    given = model(tmp_path / "given")
    (given / "a.safetensors").rename(tmp_path / "blob")
    (given / "a.safetensors").symlink_to(tmp_path / "blob")
    found = prepare(FOLDER, given).path / "a.safetensors"
    assert not found.is_symlink() and found.samefile(tmp_path / "blob")
    (tmp_path / "blob").unlink()
    assert found.read_bytes() == b"a" * (2 << 20)


def test_another_file_system_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def across(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", across)
    given = model(tmp_path / "given")
    found = prepare(FOLDER, given).path / "a.safetensors"
    assert not found.samefile(given / "a.safetensors")
    assert found.read_bytes() == b"a" * (2 << 20)


def test_a_file_of_the_user_whatever_its_name(tmp_path: Path, server: Server) -> None:
    (tmp_path / "mine.pth").write_bytes(BYTES)
    assert prepare(weights(server), tmp_path / "mine.pth").path.name == "weights.bin"
    (tmp_path / "deep").mkdir()
    (tmp_path / "mine.pth").rename(tmp_path / "deep" / "weights.bin")
    assert prepare(weights(server), tmp_path / "deep").sha256 == SHA
    single = Asset("one", "one", "MIT", hub="a/b", files=("deep/weights.bin",))
    assert single.file == "deep/weights.bin"
    assert prepare(single, tmp_path).path == find(single).path
    assert find(single).path.parts[-3:] == ("files", "deep", "weights.bin")


def test_what_a_given_folder_lacks_is_named(tmp_path: Path, cache: Path) -> None:
    given = model(tmp_path / "given")
    asset = replace(FOLDER, files=(*FOLDER.files, "vocab.txt", "*.model"))
    with pytest.raises(
        DataError, match=r"lacks vocab.txt, \*.model; tiny-model is made of"
    ) as line:
        prepare(asset, given)
    one_line(line)
    for wrong, message in (
        (tmp_path / "none", "no such file or folder"),
        (given / "config.json", "is a file, but tiny-model is a folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            prepare(FOLDER, wrong)
    assert contents(cache) == set()


def test_changed_files_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = prepare(FOLDER, model(tmp_path / "given"))
    config = found.path / "config.json"
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "hash_file", lambda *_: pytest.fail("read without need"))
        store._found.clear()
        assert find(FOLDER) == found
    os.utime(config, (1, 1))  # another time, but the same content
    store._found.clear()
    assert find(FOLDER) == found
    told = json.loads((found.path.parent / "manifest.json").read_text())
    assert told["files"]["config.json"]["modified"] == 10**9
    for content in ("{ }", "[]"):
        config.write_text(content)
        store._found.clear()
        with pytest.raises(DataError, match="config.json has changed .*; run: nanogen prepare ti"):
            find(FOLDER)
    config.unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        find(FOLDER)
    (found.path.parent / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="manifest.json is broken; run: nanogen prepare tiny-model"):
        find(FOLDER)
    assert prepare(FOLDER, tmp_path / "given") == found == find(FOLDER)


def test_another_version_of_an_asset_is_noticed(tmp_path: Path) -> None:
    prepare(FOLDER, model(tmp_path / "given"))
    for other in (replace(FOLDER, files=("vocab.txt",)), replace(FOLDER, sha256="beef")):
        with pytest.raises(DataError, match="another version of tiny-model.*; run: nanogen prep"):
            find(other)


def test_what_is_found_is_kept_but_another_store_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = model(tmp_path / "given")
    first = prepare(FOLDER, given)
    assert find(FOLDER) is find(FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    with pytest.raises(ConfigError, match="not in the store"):
        find(FOLDER)
    (given / "config.json").write_text("{1}")
    second = prepare(FOLDER, given)
    assert second.sha256 != first.sha256 and find(FOLDER) == second
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard says is to be ignored
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert store.root() == tmp_path / "home" / ".cache" / "nanogen" / "store"


def test_a_failed_replacement_leaves_the_old_one(tmp_path: Path) -> None:
    given = model(tmp_path / "given")
    found = prepare(FOLDER, given)
    (given / "config.json").unlink()
    with pytest.raises(DataError, match="lacks config.json"):
        prepare(FOLDER, given)
    assert find(FOLDER) == found and (found.path / "config.json").read_text() == "{}"


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path, cache: Path) -> None:
    for name in (".tiny-model.abcdefgh.part", ".tiny-model.2.abcdefgh.part"):
        (cache / name).mkdir(parents=True)
    prepare(FOLDER, model(tmp_path / "given"))
    assert contents(cache) == {"tiny-model", ".tiny-model.2.abcdefgh.part"}


PREPARE = """
import sys
from nanogen.store import Asset, prepare
asset = Asset("tiny-weights", "weights", "MIT", url=sys.argv[1], sha256=sys.argv[2])
print(prepare(asset).sha256)
"""


def test_processes_that_prepare_the_same_asset(server: Server, cache: Path) -> None:
    server.pause = 0.5
    command = [sys.executable, "-c", PREPARE, weights(server).url, SHA]
    at_once = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [one.communicate(timeout=60)[0].strip() for one in at_once] == [SHA] * 3
    assert server.asked == [None]  # the first fetched it; the others waited, and found it
    assert contents(cache) == {"tiny-weights"}


def test_an_interrupted_download_leaves_the_store_clean(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download.os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(weights(server))
    assert contents(cache) == {".tiny-weights.fetched"}
    assert prepare(weights(server)).sha256 == SHA
    assert contents(cache) == {"tiny-weights"}


class Hub:
    """What huggingface_hub is asked, and its answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, given: Path) -> None:
        self.hub = pytest.importorskip("huggingface_hub")
        self.given, self.problem = given, None
        self.asked: list[dict[str, object]] = []
        monkeypatch.setattr(self.hub.HfApi, "model_info", self.info)
        monkeypatch.setattr(self.hub.HfApi, "dataset_info", self.info)
        monkeypatch.setattr(self.hub, "snapshot_download", self.snapshot_download)

    def info(self, name: str, **how: object) -> object:
        if self.problem:
            raise self.problem
        files = [p.relative_to(self.given).as_posix() for p in self.given.rglob("*") if p.is_file()]
        siblings = [self.hub.hf_api.RepoSibling(rfilename=n, size=1) for n in files]
        return type("Info", (), {"sha": "c0ffee", "siblings": siblings})

    def snapshot_download(self, name: str, *, local_dir: Path, **how: object) -> None:
        self.asked.append({"name": name, **how})
        assert local_dir.is_dir()
        for path in self.given.rglob("*"):
            if path.is_file() and ".git" not in path.parts:
                target = local_dir / path.relative_to(self.given)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        (local_dir / ".cache" / "huggingface").mkdir(parents=True)
        (local_dir / ".cache" / "huggingface" / "x.safetensors").touch()


def test_a_folder_of_the_hub(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, model(tmp_path / "given"))
    found = prepare(replace(FOLDER, dataset=True))
    assert hub.asked == [
        {
            "name": "me/tiny",
            "repo_type": "dataset",
            "revision": "c0ffee",
            "allow_patterns": ["config.json", "*.safetensors"],
        }
    ]
    assert found == prepare(FOLDER, tmp_path / "given")
    assert contents(cache) == {"tiny-model"}
    assert {p.name for p in found.path.iterdir()} == {"config.json", "a.safetensors", "parts"}
    hub.given = tmp_path / "none"
    whole = replace(FOLDER, name="whole", files=())
    with pytest.raises(DataError, match="lacks .*; whole is made of all files of its repository"):
        prepare(whole)


def test_a_hub_that_gives_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch, model(tmp_path / "given"))
    errors = hub.hub.errors

    class Gated(errors.GatedRepoError):
        def __init__(self) -> None:
            Exception.__init__(self, "403 Client Error.\nAccess is restricted.")

    class Unknown(errors.RepositoryNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "401 Client Error.")

    for problem, message in (
        (Gated(), "me/tiny is gated: accept its terms .* or set --from to a folder"),
        (Unknown(), "the hub has no 'me/tiny' that you may read"),
        (ConnectionError("no\nnetwork"), "cannot load 'me/tiny': no; see https"),
    ):
        hub.problem = problem
        with pytest.raises(ConfigError, match=message) as line:
            prepare(FOLDER)
        one_line(line)
    hub.problem = OSError(errno.ENOSPC, "No space left")
    with pytest.raises(UserError, match="no room in"):
        prepare(FOLDER)
    hub.problem = None
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 0}))
    with pytest.raises(UserError, match="no room in"):
        prepare(FOLDER)
    assert not hub.asked and contents(cache) == set()
