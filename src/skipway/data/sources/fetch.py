"""Files from the web into the cache, each whole or not at all: what was fetched once is there without a network."""

import contextlib
import hashlib
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from skipway.cache import cache_folder, sweep, written_beside
from skipway.errors import InputError

TIMEOUT_S = 30
SPARE = 1 << 30  # bytes that stay free on the disk
CHUNK = 1 << 20


def local_path(url: str) -> Path:
    """Where the file behind a URL lies, or will lie: its own place for file:, else one in the cache.

    Raises:
        InputError: a scheme that is not read, or a URL that ends in no file name.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(urllib.request.url2pathname(parts.path))
    if parts.scheme not in ("http", "https"):
        raise InputError(f"{url}: {parts.scheme}:// is not read; http://, https:// and file:// are")
    name = re.sub(r"[^\w.+=-]", "_", unquote(parts.path.rsplit("/", 1)[-1]))
    if not name.strip("."):
        raise InputError(f"{url} names no file: shards are named such as {url.rstrip('/')}/train-{{000..012}}.tar")
    home = f"{parts.scheme}://{parts.netloc}{parts.path.rsplit('/', 1)[0]}?{parts.query}"
    return cache_folder() / "fetched" / hashlib.sha256(home.encode()).hexdigest()[:16] / name


def fetch(urls: Sequence[str]) -> list[Path]:
    """Fetch what the cache lacks, with a bar on a terminal.

    Args:
        urls: http, https or file.

    Returns:
        Their places, in order.

    Raises:
        InputError: one cannot be fetched; those before it are kept, and the next call goes on from there.
    """
    paths = [local_path(url) for url in urls]
    missing = [(url, path) for url, path in zip(urls, paths, strict=True) if not path.exists()]
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        for number, (url, path) in enumerate(missing):
            bar = bars.add_task(f"{path.name} ({number + 1} of {len(missing)})", total=None)
            try:
                _fetch(url, path, lambda done, total, bar=bar: bars.update(bar, completed=done, total=total))
            except (OSError, HTTPException, ValueError) as error:
                have = f"{len(paths) - len(missing) + number} of {len(paths)} files are in the cache"
                raise InputError(
                    f"{url} could not be fetched: {_reason(error)}. {have}; the same command goes on from there"
                ) from error
            bars.remove_task(bar)
    return paths


def fetch_beside(url: str, name: str) -> Path | None:
    """A small file in the same folder as a URL's, where there is one and it can be had."""
    parts = urlsplit(url)
    beside = parts._replace(path=f"{parts.path.rsplit('/', 1)[0]}/{name}").geturl()
    path = local_path(beside)
    if not path.exists() and parts.scheme != "file":
        with contextlib.suppress(OSError, HTTPException, ValueError):
            _fetch(beside, path, lambda done, total: None)
    return path if path.is_file() else None


def _fetch(url: str, path: Path, said: Callable[[int, int | None], None]) -> None:
    """One file, moved to its place when it is whole."""
    if urlsplit(url).scheme == "file":
        raise FileNotFoundError("no such file")
    sweep(path.parent)
    with (
        written_beside(path) as beside,
        urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer,
        open(beside, "wb") as file,
    ):
        length = answer.headers.get("Content-Length")
        total = int(length) if length is not None else None
        free = shutil.disk_usage(path.parent).free
        if total is not None and total + SPARE > free:
            raise OSError(f"it needs {total / 1e9:.1f} GB and {path.parent} has {free / 1e9:.1f} GB free")
        done = 0
        while data := answer.read(CHUNK):
            file.write(data)
            done += len(data)
            said(done, total)
        if total is not None and done != total:
            raise OSError(f"the connection ended after {done:,} of {total:,} bytes")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server says {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
