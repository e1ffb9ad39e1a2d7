"""Releases on the Hugging Face Hub: hf://organisation/name[@revision] is downloaded when it is loaded, `lumos upload` puts one there.

huggingface_hub does the work (extra `hub`): downloads are kept in its cache, HF_TOKEN is its key, and HF_HUB_OFFLINE=1 takes what is in
the cache alone.
"""

from __future__ import annotations

import re
from pathlib import Path

from lumos.errors import UserError
from lumos.weights import release

SCHEME = "hf://"
_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def local(path: str) -> str:
    """Return the local folder of a path: itself, or where the Hub's files are once they have been downloaded.

    Raises UserError: no such release, no connection, or a download that is not complete, naming the file.
    """
    if not path.startswith(SCHEME):
        return path
    name, revision = _parse(path)
    hub = _huggingface_hub()
    try:
        folder = hub.snapshot_download(name, revision=revision)
    except hub.errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{path} is not in the cache of the Hub, and cannot be downloaded: there is no connection, or HF_HUB_OFFLINE is set"
        ) from error
    except (hub.errors.HfHubHTTPError, OSError) as error:
        raise UserError(f"{path} cannot be downloaded: {' '.join(str(error).split())[:200]}") from error
    if not release.is_release(folder):
        raise UserError(
            f"{path} holds no release of lumos: there is no {release.NAME}; lumos convert reads released Lumos-1 weights"
        )
    release.check(folder)
    return folder


def upload(folder: str | Path, path: str, *, private: bool = False) -> str:
    """Put a release on the Hub, into a new repository or over what is there; return its address. Raises UserError."""
    name, revision = _parse(path)
    if revision:
        raise UserError(f"{path}: a release is uploaded to the main branch; leave out @{revision}")
    if not release.is_release(folder):
        raise UserError(f"{folder} is no release: there is no {release.NAME}; make one with lumos export")
    own = [*release.check(folder)["files"], release.NAME]  # and not what else lies there, such as compiled programs
    hub = _huggingface_hub()
    try:
        api = hub.HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        message = f"Release of {Path(folder).name}"
        api.upload_folder(repo_id=name, folder_path=str(folder), allow_patterns=own, commit_message=message)
    except (hub.errors.HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(f"{path}: uploading failed: {' '.join(str(error).split())[:200]}") from error
    return f"https://huggingface.co/{name}"


def _parse(path: str) -> tuple[str, str | None]:
    found = _NAME.fullmatch(path.removeprefix(SCHEME)) if path.startswith(SCHEME) else None
    if not found:
        raise UserError(f"{path!r} must be {SCHEME}organisation/name, perhaps with @revision")
    return found[1], found[2]


def _huggingface_hub():
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"{SCHEME} needs huggingface_hub; pip install 'lumos-video[hub]'") from error
    return huggingface_hub
