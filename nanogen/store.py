"""The store: weights, prompts and statistics of others that metrics need, each checked by its hash.

    FID_WEIGHTS = Asset("inception-2015", "Inception weights of FID", "Apache-2.0", url="https://...")
    find(FID_WEIGHTS).path        # or: ConfigError, "... run: nanogen prepare inception-2015"

Nothing is fetched behind the user's back: `nanogen prepare NAME` fetches an asset, `nanogen prepare
NAME --from PATH` takes a file or folder that is there. The store lies in the user's cache folder,
`nanogen/store` in XDG_CACHE_HOME or ~/.cache, a folder for each asset:

    inception-2015/manifest.json      where it came from and when; hash, size and time of each file
    inception-2015/files/...          the file, or the files of the folder
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import logging
import os
import shutil
from collections.abc import Collection, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from nanogen import download
from nanogen.errors import ConfigError, DataError, UserError
from nanogen.files import whole_folder, writable_folder, write_text
from nanogen.manifest import Manifest, now, take, tree_hash

FILES, MANIFEST = "files", "manifest.json"
FROM = "--from PATH"
ELSEWHERE = "set XDG_CACHE_HOME to a folder with room that can be written"


@dataclass(frozen=True)
class Asset:
    """A file, or a folder of files, that somebody else publishes.

    Either `url` (one file), or `hub` with `files` (names or patterns in a repository of the Hugging
    Face hub; one plain name gives a file, anything else a folder), or `files` alone for what may
    not be published: each user has to get it.
    """

    name: str
    """unique among all assets: lower case, digits, hyphens, dots"""
    what: str
    """in a few words, for tables and messages"""
    licence: str
    url: str = ""
    hub: str = ""
    dataset: bool = False
    """whether `hub` is a data set and not a model"""
    files: tuple[str, ...] = ()
    sha256: str = ""
    """of a single file, or its first digits; empty where none is published: the hash found when it
    is prepared is kept, and stands in every record
    """
    size: str = ""
    """such as "95 MB\""""

    @property
    def file(self) -> str:
        """The name of an asset that is one file; "" of one that is a folder."""
        if self.url:
            return PurePosixPath(unquote(urlsplit(self.url).path)).name
        plain = len(self.files) == 1 and not self.files[0].endswith("/")
        return self.files[0] if plain and not set("*?[") & set(self.files[0]) else ""

    @property
    def labelled(self) -> str:
        """Name and size, for messages."""
        return f"{self.name} ({self.size})" if self.size else self.name


@dataclass(frozen=True)
class Prepared:
    """An asset in the store."""

    path: Path
    """the file, or the folder"""
    sha256: str
    """of the file; of a folder, of its files' names and hashes"""


_found: dict[tuple[Path, Asset, tuple[int, int]], Prepared] = {}


def root() -> Path:
    """The folder of the store; it need not exist."""
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (chosen if chosen.is_absolute() else Path.home() / ".cache") / "nanogen" / "store"


def present(asset: Asset) -> bool:
    """Whether the store holds something of that name; `find` says whether it is sound."""
    return (root() / asset.name / MANIFEST).exists()


def find(asset: Asset) -> Prepared:
    """The asset in the store.

    ConfigError, with the command that prepares it, where it is not there; DataError where its files
    are not those that were prepared, or not those that are wanted now. A file whose size and time
    are as they were is not read.
    """
    place = root() / asset.name
    try:
        stat = (place / MANIFEST).stat()
    except OSError:
        fetched = asset.url or asset.hub
        raise ConfigError(
            f"{asset.what}: {asset.labelled} is not in the store; run: nanogen prepare "
            f"{asset.name} {'(or, where you have it, with --from PATH)' if fetched else FROM}"
        ) from None
    key = (place, asset, (stat.st_ino, stat.st_mtime_ns))
    if key not in _found:
        _found[key] = _verified(asset, place)
    return _found[key]


def prepare(asset: Asset, source: Path | None = None) -> Prepared:
    """Fetch an asset into the store, or take it from `source`; whole and checked, or not at all.

    Without `source`, an asset that is there and whole is left as it is. Large files of a `source`
    on the same file system are linked, others copied. What an interrupted download fetched is kept
    aside, and the next call goes on from there. UserError with the reason where it comes to
    nothing.
    """
    store = writable_folder(root(), ELSEWHERE)
    try:
        with _alone(store, asset):
            if source is None:
                with contextlib.suppress(ConfigError, DataError):
                    return find(asset)
            try:
                _put(asset, source, store)
            finally:
                with contextlib.suppress(OSError):  # what holds something to go on from stays
                    _aside(store, asset).rmdir()
            return find(asset)
    except OSError as problem:
        if problem.errno in download.NO_ROOM:
            shutil.rmtree(_aside(store, asset), ignore_errors=True)
            raise UserError(
                f"no room in {store} for {asset.labelled}; free some, or {ELSEWHERE}"
            ) from problem
        raise UserError(
            f"cannot prepare {asset.name}: {problem.strerror or problem} "
            f"({problem.filename or store}); correct that, or {ELSEWHERE}"
        ) from problem


def _put(asset: Asset, source: Path | None, store: Path) -> None:
    """Give the store's folder of an asset new content; the old one stands until that is checked."""
    aside = _aside(store, asset)
    for left in store.glob(f".{asset.name}.{'?' * 8}.part"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with whole_folder(store / asset.name, replace=True) as part:
        if source is None:
            origin = _fetch(asset, aside)
            chosen = _chosen(asset, aside)
        else:
            origin = str(source.expanduser().resolve())
            chosen = _chosen(asset, source.expanduser())
        files = take(chosen, part / FILES)
        digest = files[asset.file].sha256 if asset.file else tree_hash(files)
        manifest = Manifest(asset.name, origin, now(), digest, files)
        if not _agrees(asset, manifest):
            shutil.rmtree(aside, ignore_errors=True)
            raise DataError(
                f"{origin} is not {asset.name}: its sha256 is {manifest.sha256}, published is "
                f"{asset.sha256}; get it anew, or from another place with {FROM}"
            )
        write_text(part / MANIFEST, manifest.dump())
    shutil.rmtree(aside, ignore_errors=True)


def _fetch(asset: Asset, aside: Path) -> str:
    """Download an asset into a folder; where it came from."""
    if not (asset.url or asset.hub):
        raise ConfigError(
            f"{asset.what}: {asset.labelled} cannot be fetched; add {FROM}, which holds "
            f"{', '.join(asset.files)}"
        )
    aside.mkdir(exist_ok=True)
    if asset.url:
        download.from_url(asset.url, aside / asset.file)
        return asset.url
    return download.from_hub(asset.hub, asset.dataset, asset.files, aside)


def _chosen(asset: Asset, source: Path) -> dict[str, Path]:
    """The files of an asset in a file or folder: name in the store -> where it is."""
    if not source.exists():
        raise ConfigError(f"--from {source}: there is no such file or folder; give one that exists")
    if asset.file and source.is_file():
        return {asset.file: source}
    if source.is_file():
        raise ConfigError(
            f"--from {source} is a file, but {asset.name} is a folder; give one that holds "
            f"{', '.join(asset.files) or 'it'}"
        )
    there = {
        path.relative_to(source).as_posix(): path
        for path in sorted(source.rglob("*"))
        # What begins with a dot is git's, the hub's or the system's own.
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(source).parts)
    }
    if asset.file:
        place = there.get(asset.file) or there.get(Path(asset.file).name)
        wanted = {asset.file: place} if place else {}
    else:
        wanted = {name: p for name, p in there.items() if _matches(name, asset.files or ("*",))}
    if missing := _missing(asset, wanted):
        raise DataError(
            f"{source} lacks {', '.join(missing)}; {asset.name} is made of "
            f"{', '.join(asset.files) or asset.file or 'all files of its repository'}"
        )
    return wanted


def _verified(asset: Asset, place: Path) -> Prepared:
    """An asset in the store whose files are as they were prepared."""
    try:
        manifest = Manifest.load(place / MANIFEST)
        if _missing(asset, manifest.files) or not _agrees(asset, manifest):
            raise DataError(f"{place} holds another version of {asset.name}: {manifest.source}")
        checked = manifest.check(place / FILES)
    except DataError as problem:
        raise DataError(f"{problem}; run: nanogen prepare {asset.name}") from None
    if checked != manifest:
        with contextlib.suppress(OSError):  # a store that is only read is hashed in each process
            write_text(place / MANIFEST, checked.dump())
    return Prepared(place / FILES / asset.file, manifest.sha256)


def _agrees(asset: Asset, manifest: Manifest) -> bool:
    """Whether the hash is the published one, as far as that is given."""
    return manifest.sha256.startswith(asset.sha256.lower())


def _missing(asset: Asset, names: Collection[str]) -> list[str]:
    """What an asset is made of that is not among the names of files."""
    if asset.file:
        return [] if asset.file in names else [asset.file]
    parts = asset.files or ("*",)
    return [part for part in parts if not any(_matches(name, (part,)) for name in names)]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a path fits one of the patterns, as the hub reads them: * crosses folders."""
    return any(fnmatch.fnmatchcase(name, p + "*" if p.endswith("/") else p) for p in patterns)


def _aside(store: Path, asset: Asset) -> Path:
    """Where downloads of an asset lie until they are whole."""
    return store / f".{asset.name}.fetched"


@contextlib.contextmanager
def _alone(store: Path, asset: Asset) -> Generator[None]:
    """Let one process at a time prepare an asset; the lock of one that is killed is free again."""
    with (store / f".{asset.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.getLogger(__name__).warning("another process prepares %s; waiting", asset.name)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass  # some network file systems have no locks: of two at once, one may fail
        yield
