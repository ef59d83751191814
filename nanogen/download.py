"""Fetching foreign files: from an address, or from the Hugging Face hub.

    from_url("https://host/weights.pth", folder / "weights.pth")
    from_hub("owner/model", False, ("*.safetensors", "config.json"), folder)

What an interrupted call leaves beside the target is continued by the next, where the server says
that the file is still the same. Messages tell how to go without a network: --from PATH.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from nanogen import hub
from nanogen.errors import ConfigError, MissingExtra

ATTEMPTS = 3
PAUSE = 1.0
"""seconds before the second attempt; twice that before the third"""
PATIENCE = 30.0
"""seconds without a byte after which a connection is dead"""
CHUNK = 1 << 20
SHOWN = 20_000_000
"""bytes from which a bar is shown"""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
BUSY = (408, 429)
"""answers below 500 that are worth another attempt"""
TOO_FAR = 416
"""the answer where no more of a file is left: what is there is of another one"""


def from_url(url: str, target: Path) -> None:
    """Fetch one file, in several attempts where the connection breaks.

    ConfigError with the reason and what to do where it cannot be had; OSError without room.
    """
    reason = ""
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE * attempt)
        try:
            return _go_on(url, target)
        except urllib.error.HTTPError as problem:
            reason = f"the server answers {problem.code} {problem.reason}"
            if problem.code == TOO_FAR:
                _mark(target).unlink(missing_ok=True)
            elif problem.code < 500 and problem.code not in BUSY:
                break
        except (OSError, http.client.HTTPException) as problem:
            if isinstance(problem, OSError) and problem.errno in NO_ROOM:
                raise
            reason = str(getattr(problem, "reason", "")) or hub.reason(problem)
    kept = " (what was fetched is kept)" if _mark(target).exists() else ""
    raise ConfigError(
        f"cannot download {url}: {reason}; try again later{kept}, or get the file by other means "
        "and add --from FILE"
    )


def from_hub(name: str, dataset: bool, files: Sequence[str], folder: Path) -> str:
    """Fetch files (names or patterns; none means all) of a repository into a folder, as they are
    now; the address of that very version. The folder also gets the hub's own notes, in `.cache`.

    ConfigError with the reason and what to do where they cannot be had; OSError without room.
    """
    try:
        import huggingface_hub
        from huggingface_hub.utils import filter_repo_objects
    except ImportError as problem:
        raise MissingExtra("huggingface_hub", "pip install 'nanogen[latents]'") from problem
    kind, path = ("dataset", f"datasets/{name}") if dataset else ("model", name)
    wanted = list(files) or None
    try:
        # Every file comes from the version that is the newest now, however long it takes.
        api = huggingface_hub.HfApi()
        ask = api.dataset_info if dataset else api.model_info
        about = ask(name, timeout=hub.PATIENCE, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in about.siblings or ()}
        _check_room(
            folder, sum(sizes[n] for n in filter_repo_objects(sizes, allow_patterns=wanted))
        )
        huggingface_hub.snapshot_download(
            name, repo_type=kind, revision=about.sha, allow_patterns=wanted, local_dir=folder
        )
    except Exception as problem:  # which errors the hub gives depends on the version
        if isinstance(problem, OSError) and problem.errno in NO_ROOM:
            raise
        raise ConfigError(hub.advice(path, problem, "--from")) from problem
    return f"https://huggingface.co/{path}/tree/{about.sha}"


@contextlib.contextmanager
def progress(what: str, total: int | None, done: int = 0) -> Generator[Callable[[int], object]]:
    """A bar in the terminal for something that takes long: a function to tell it of bytes."""
    if not sys.stderr.isatty() or (total is not None and total - done < SHOWN):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda count: bar.advance(task, count)


def _go_on(url: str, target: Path) -> None:
    """Fetch what is missing of a file."""
    part, mark = target.with_name(target.name + ".part"), _mark(target)
    start = part.stat().st_size if part.exists() and mark.exists() else 0
    headers = {"User-Agent": "nanogen", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": mark.read_text()}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        if answer.status != http.client.PARTIAL_CONTENT:
            start = 0
            part.unlink(missing_ok=True)
            _remember(answer.headers, mark)
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        _check_room(target.parent, int(length or 0))
        with part.open("ab") as writer, progress(target.name, total, start) as advance:
            while chunk := answer.read(CHUNK):
                advance(writer.write(chunk))
            writer.flush()
            os.fsync(writer.fileno())
    size = part.stat().st_size
    if total is not None and size != total:
        raise ConnectionError(f"the connection ended after {size:,} of {total:,} bytes")
    part.replace(target)
    mark.unlink(missing_ok=True)


def _mark(target: Path) -> Path:
    """Holds by what the server tells whether a file is still the same."""
    return target.with_name(target.name + ".mark")


def _remember(headers: http.client.HTTPMessage, mark: Path) -> None:
    tag = headers.get("ETag", "")
    # A weak tag says only that two files mean the same: no ground to join halves of them.
    known = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")
    if known:
        mark.write_text(known)
    else:
        mark.unlink(missing_ok=True)


def _check_room(folder: Path, needed: int) -> None:
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
