"""The store: weights, prompts and statistics of others that metrics need, each checked by its hash.

    FID_WEIGHTS = Asset("inception-2015", "Inception weights of FID", "Apache-2.0", url="https://...")
    find(FID_WEIGHTS).path        # or: ConfigError, "... run: nanogen prepare inception-2015"

Nothing is fetched behind the user's back: `nanogen prepare NAME` fetches an asset, `nanogen prepare
NAME --from PATH` takes a file or folder that is there. The store lies in the user's cache folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Asset:
    """A file, or a folder of files, that somebody else publishes.

    Either `url` (one file), or `hub` with `files` (names or patterns in a repository of the Hugging
    Face hub; one plain name gives a file, anything else a folder).
    """

    name: str
    """unique among all assets: lower case, digits, hyphens"""
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


@dataclass(frozen=True)
class Prepared:
    """An asset in the store."""

    path: Path
    """the file, or the folder"""
    sha256: str
    """of the file; of a folder, of its files' names and hashes"""


def find(asset: Asset) -> Prepared:
    """The asset in the store. ConfigError, with the command that prepares it, where it is not."""
    raise NotImplementedError


def prepare(asset: Asset, source: Path | None = None) -> Prepared:
    """Fetch an asset into the store, or take it from `source`; whole and checked, or not at all."""
    raise NotImplementedError
