"""Paths of users: local files, and objects of buckets (gs://, s3://). Nothing else in lumos knows what a URL is.

A path is a `pathlib.Path`, or an `epath.Path` with the same methods for what lies in a bucket. What differs there has a function here:
nothing is appended, a file appears when it is whole, a folder is what begins with its name, and readers that want a file
get a copy. Credentials are those that gcsfs and s3fs find by themselves.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lumos.errors import UserError, printable

SCHEMES = {"gs": "gcsfs", "s3": "s3fs"}
_DEADLINE = 30.0  # seconds of the first request to a bucket, which may not be there
_RETRY = 120.0  # seconds in which an answer of "too many requests" or "unavailable" is asked for again


def scheme_of(path: str | os.PathLike) -> str:
    """Return "gs", "s3" or another scheme of a URL; "" for a local path."""
    head, separator, _ = os.fspath(path).partition("://")
    return head if separator and head.isalnum() else ""


def is_remote(path: str | os.PathLike) -> bool:
    return bool(scheme_of(path))


def check_scheme(path: str, flag: str) -> None:
    """Raise UserError if a path is a URL that cannot be read: taken for a file name it would become a folder."""
    scheme = scheme_of(path)
    if scheme and scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise UserError(f"{flag}={printable(path)}: {scheme}:// is not read; give a local path or one of {known}")
    if scheme and not path.partition("://")[2].strip("/"):
        raise UserError(f"{flag}={printable(path)} names no bucket; write {scheme}://bucket/folder")
    if not scheme and path.split("/")[0].removesuffix(":") in SCHEMES and path.split("/")[0].endswith(":"):
        raise UserError(f"{flag}={printable(path)}: a URL has two slashes: {path.split(':')[0]}://bucket/folder")


def path(value: str | os.PathLike) -> Path:
    """Return the path that a user's text names. Raises UserError for a URL that cannot be read."""
    text = os.fspath(value)
    check_scheme(text, "path")
    if not is_remote(text):
        return Path(text)
    _file_system(scheme_of(text))
    from etils import epath

    return epath.Path(text)


@functools.cache
def _file_system(scheme: str) -> Any:
    # Its cache of listings would hide what other processes write, and the TensorFlow of epath is not what we test.
    os.environ["EPATH_USE_TF"] = "false"
    package = SCHEMES[scheme]
    try:
        import fsspec.config

        __import__(package)
    except ImportError as error:
        extra = {"gs": "gcs", "s3": "s3"}[scheme]
        raise UserError(f"{scheme}:// needs {package}; pip install 'lumos-video[{extra}]'") from error
    for name in {"gs": ("gs", "gcs"), "s3": ("s3", "s3a")}[scheme]:
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
    return fsspec.filesystem(scheme)


def file_system(path: str | os.PathLike) -> Any:
    """Return the fsspec file system of a remote path."""
    return _file_system(scheme_of(path))


def s3_server() -> tuple[str, str]:
    """Return the address and region of the server of s3:// that is not Amazon's; two empty texts where it is."""
    fs = _file_system("s3")
    fs.connect()
    facts = fs.s3.meta
    ours = not (facts.endpoint_url.rstrip("/") + "/").endswith(("amazonaws.com/", "amazonaws.com.cn/"))
    return (facts.endpoint_url, facts.region_name or "us-east-1") if ours else ("", "")


def absolute(path: Path) -> Path:
    return path if is_remote(path) else path.absolute()


def join(folder: Path, name: str) -> Path:
    """Return what a list in a folder names: relative to the folder, absolute, or a URL."""
    return path(name) if is_remote(name) else folder / name


def probe(folder: Path, flag: str) -> None:
    """Write and delete one object. Raises UserError, within half a minute, where that is not possible."""
    url = f"{os.fspath(folder).rstrip('/')}/.lumos-{os.getpid()}-{threading.get_ident()}"
    fs = file_system(folder)

    def write() -> None:
        fs.pipe_file(url, b"")
        fs.rm_file(url)

    answer: list[BaseException | None] = []
    thread = threading.Thread(target=lambda: answer.append(_error_of(write)), daemon=True)
    thread.start()
    thread.join(_DEADLINE)
    reason = f"no answer in {_DEADLINE:g} s" if not answer else answer[0] and reason_of(answer[0])
    if reason:
        raise UserError(f"{flag}={printable(os.fspath(folder))}: cannot write there ({reason})")


def _error_of(function: Callable[[], Any]) -> BaseException | None:
    try:
        function()
    except BaseException as error:
        return error
    return None


def reason_of(error: BaseException) -> str:
    """Return an error of a bucket in a few words, without what a request carried."""
    if isinstance(error, FileNotFoundError) or _code(error) == 404:
        return "no such bucket or object"
    if isinstance(error, PermissionError) or _code(error) in (401, 403):
        return "permission denied"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _code(error: BaseException) -> int | None:
    """Return the status of HTTP behind an error, as far as it is known."""
    if str(error).startswith("Forbidden"):  # all that gcsfs says
        return 403
    code = getattr(error, "code", None) or getattr(error, "status", None)
    return code if isinstance(code, int) else None


def is_of_a_bucket(error: BaseException) -> bool:
    """Return whether an error comes from a client of buckets."""
    of_a_client = type(error).__module__.split(".")[0] in (
        "gcsfs",
        "s3fs",
        "aiohttp",
        "botocore",
        "aiobotocore",
        "google",
    )
    return of_a_client or _code(error) in (401, 403)


def retried(function: Callable[[], Any], seconds: float = _RETRY) -> Any:
    """Call a function again while its errors are those of a busy or broken connection."""
    until, pause = time.monotonic() + seconds, 0.5
    while True:
        try:
            return function()
        except (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError, ValueError):
            raise
        except Exception as error:
            if _code(error) in (400, 401, 403, 404, 412) or time.monotonic() + pause > until:
                raise
            time.sleep(pause)
            pause = min(2 * pause, 10.0)


# Whole files ---------------------------------------------------------------------------------------------------------


def read_bytes(path: Path) -> bytes:
    return retried(lambda: file_system(path).cat_file(os.fspath(path))) if is_remote(path) else path.read_bytes()


def read_range(path: str | Path, offset: int, size: int) -> bytes:
    """Return a part of an object in a bucket. Raises UserError."""
    try:
        url = os.fspath(path)
        return retried(lambda: file_system(path).cat_file(url, start=offset, end=offset + size))
    except Exception as error:
        raise _unreadable(path, error) from error


def read_text(path: Path) -> str:
    return read_bytes(path).decode("utf-8")


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears under its name when it is complete."""
    if is_remote(path):
        retried(lambda: file_system(path).pipe_file(os.fspath(path), text.encode()))
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _create(path: Path, data: bytes) -> None:
    try:
        file_system(path).pipe_file(os.fspath(path), data, mode="create")
    except OSError as error:
        if "PreconditionFailed" in str(error.__cause__):  # as s3fs says it
            raise FileExistsError(os.fspath(path)) from error
        raise


def create_text(path: Path, text: str) -> bool:
    """Write a text file where there is none, and return whether this call did: of several processes only one can."""
    if is_remote(path):
        try:
            retried(lambda: _create(path, text.encode()))
        except FileExistsError:
            return read_text(path) == text  # written, though the answer was lost and it was asked for again
        return True
    own = path.with_name(f".{path.name}.{uuid.uuid4().hex}.own")
    own.write_text(text, encoding="utf-8")
    try:
        os.link(own, path)  # with its content, and only where there is none yet
    except FileExistsError:
        return False
    except OSError:  # no hard links here
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
    finally:
        own.unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def written(path: Path, own: str = "") -> Iterator[Path]:
    """Give a local path to write; it becomes `path` at the end, and nothing does after an exception.

    own: a part of its name meanwhile, where several processes may write the same file.
    """
    if not is_remote(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}{own}.partial")
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory(prefix="lumos-") as folder:
        local = Path(folder) / path.name
        yield local
        put(local, path)


def put(local: Path, remote: Path) -> None:
    retried(lambda: file_system(remote).put_file(str(local), os.fspath(remote)))


@contextlib.contextmanager
def borrowed(path: str | Path) -> Iterator[Path]:
    """Give a local file with the contents of a path: itself, or a copy that is deleted at the end. Raises UserError."""
    if not is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="lumos-") as folder:
        local = Path(folder) / os.fspath(path).rpartition("/")[2]
        get(path, local)
        yield local


def kept(path: Path) -> Path:
    """Return a local file with the contents of a path: itself, or a copy that stays until this process ends."""
    if not is_remote(path):
        return path
    try:
        facts = retried(lambda: file_system(path).info(os.fspath(path)))
    except Exception as error:
        raise _unreadable(path, error) from error
    version = f"{os.fspath(path)} {facts.get('size')} {facts.get('generation') or facts.get('ETag')}"
    local = _cache() / f"{hashlib.sha256(version.encode()).hexdigest()[:16]}-{path.name}"
    if not local.exists():
        partial = local.with_name(f"{local.name}.{threading.get_ident()}")
        get(path, partial)
        os.replace(partial, local)
    return local


@functools.cache
def _cache() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="lumos-cache-")
    _cache.keep = folder  # deleted with the process
    return Path(folder.name)


def get(path: str | os.PathLike, local: Path) -> None:
    """Copy a file of a bucket to the local disk. Raises UserError."""
    try:
        retried(lambda: file_system(path).get_file(os.fspath(path), str(local)))
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | os.PathLike, error: Exception) -> UserError:
    return UserError(f"{printable(os.fspath(path))}: cannot be read ({reason_of(error)})")


def size_and_time(path: Path) -> tuple[int, float]:
    """Return the bytes of a file and when it was written. Raises OSError where there is none."""
    if is_remote(path):
        facts = retried(lambda: file_system(path).info(os.fspath(path)))
        return facts["size"], (facts.get("mtime") or facts["LastModified"]).timestamp()
    facts = path.stat()
    return facts.st_size, facts.st_mtime


# Folders -------------------------------------------------------------------------------------------------------------


def find(folder: Path, pattern: str) -> list[Path]:
    """Return all files below a folder whose names match, sorted."""
    if not is_remote(folder):
        return sorted(folder.rglob(pattern))
    import fnmatch

    scheme = scheme_of(folder)
    found = retried(lambda: file_system(folder).find(os.fspath(folder)))
    return [path(f"{scheme}://{name}") for name in sorted(found) if fnmatch.fnmatch(name.rpartition("/")[2], pattern)]


def sizes_below(folder: Path) -> dict[str, int]:
    """Return the bytes of all that lies in a folder of a bucket, by the first part of its name there."""
    found, prefix = (
        retried(lambda: file_system(folder).find(os.fspath(folder), detail=True)),
        len(os.fspath(folder)) + 1,
    )
    sizes: dict[str, int] = {}
    for name, facts in found.items():
        first = f"{scheme_of(folder)}://{name}"[prefix:].split("/")[0]
        sizes[first] = sizes.get(first, 0) + facts["size"]
    return sizes


def children(folder: Path) -> list[Path]:
    """Return what lies directly in a folder, sorted; nothing where there is no folder."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def put_tree(local: Path, remote: Path) -> None:
    """Upload all files below a folder."""
    for file in filter(Path.is_file, sorted(local.rglob("*"))):
        put(file, remote / file.relative_to(local).as_posix())


def get_tree(remote: Path, local: Path) -> None:
    """Copy all files below a folder of a bucket to the local disk. Raises UserError."""
    for file in find(remote, "*"):
        place = local / os.fspath(file).removeprefix(f"{os.fspath(remote)}/")
        place.parent.mkdir(parents=True, exist_ok=True)
        get(file, place)


def copy_tree(source: Path, target: Path, last: str) -> None:
    """Copy a folder of a bucket; the file of it that is called `last` comes last."""
    fs, prefix = file_system(source), os.fspath(source).partition("://")[2].rstrip("/") + "/"
    names = [name.removeprefix(prefix) for name in retried(lambda: fs.find(os.fspath(source)))]
    for name in sorted(names, key=lambda name: name == last):
        retried(lambda name=name: fs.cp_file(f"{os.fspath(source)}/{name}", f"{os.fspath(target)}/{name}"))


def remove_tree(folder: Path) -> None:
    """Delete a folder with all that is in it; one that is not there is no error."""
    if not is_remote(folder):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        return
    with contextlib.suppress(FileNotFoundError):
        retried(lambda: file_system(folder).rm(os.fspath(folder), recursive=True))
