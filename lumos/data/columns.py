"""What the columns of a list, and the fields of a JSON object, may be called."""

from __future__ import annotations

import functools
from typing import Any

from lumos.data import kinetics

# The first name of each is its own; lists in circulation use the others.
NAMES = {
    "path": ("path", "file", "file_name", "filename", "file_path", "filepath", "video", "video_path", "image", "image_path"),
    "caption": ("caption", "text", "prompt", "captions"),
    "id": ("id",),
    "split": ("split",),
    "start": ("start", "start_time"),
    "end": ("end", "end_time"),
    "times": ("timestamp", "timestamps"),
    "folder": ("page_dir",),
}  # fmt: skip
# Where there is no column of these names; the files of Panda-70M and WebVid are called by the number of the video.
_ELSE = {"path": ("videoid", "video_id", "youtube_id"), "caption": ("name",)}


@functools.lru_cache(maxsize=1024)  # the rows of a JSONL file mostly have the same fields
def find_columns(names: tuple[str, ...]) -> dict[str, int]:
    """Return which of these columns are those of NAMES, as far as they are there.

    Capitals and blanks around a name do not count. A field's own name goes before its others.

    Raises:
      ValueError: two columns may be the same field.
    """
    plain = [name.strip().lower().replace(" ", "_").replace("-", "_") for name in names]
    found = {}
    for field, allowed in NAMES.items():
        places = [i for i, name in enumerate(plain) if name in allowed]
        if not places and ("page_dir" in plain or field == "path"):
            places = [i for i, name in enumerate(plain) if name in _ELSE.get(field, ())]
        own = [i for i in places if plain[i] == field]
        chosen = own or places
        if len(chosen) > 1:
            both = " and ".join(repr(names[i]) for i in chosen)
            raise ValueError(f"{both} may both be the {field}; call one of them {field!r}, and it alone")
        if chosen:
            found[field] = chosen[0]
    return found | kinetics.find_columns(plain, found)


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object (an `object_pairs_hook`). Raises ValueError if a name is there twice, of which one would be lost."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return fields


def expected() -> str:
    """Return the end of a message about missing columns."""
    return f"expected a path ({', '.join(NAMES['path'])}), and perhaps a caption ({', '.join(NAMES['caption'])}), id, split"
