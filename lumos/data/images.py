"""Still and animated images through Pillow: upright, in sRGB, opaque.

Orientation tags are applied; colours are converted with the embedded ICC profile (littleCMS); 16 bits become 8; what is
transparent is laid on white, so that the colours hidden under it do not appear.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageCms, ImageOps

from lumos.data import media
from lumos.data.media import Media
from lumos.data.timeline import Frame
from lumos.errors import UserError

# Pillow would run Ghostscript for PostScript: only these are read, whatever the file is called.
_FORMATS = ("PNG", "JPEG", "WEBP")
_ANIMATED = (
    "PNG",
    "WEBP",
)  # a JPEG of several pictures (MPO) holds previews and depth maps: its first one is the image
_ROUNDING = 3  # levels by which an sRGB profile may move colours, as its tables are rounded
_DEFAULT_DURATION = 0.1  # seconds of an animation's frame that gives none, as in browsers

# What Pillow raises on files that are no images, are cut short, or unpack to an absurd size.
_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def is_image(path: Media) -> bool:
    """Return whether the file begins like a PNG, JPEG or WebP; its name does not matter."""
    try:
        with media.open_binary(path) as file:
            head = file.read(12)
    except (OSError, ValueError):
        return False
    return head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def read_frames(path: Media, max_pixels: int = 0) -> Iterator[Frame]:
    """Yield the frames of an image: one of a still (it lasts 0 s), all of an animation.

    Raises:
      UserError: the file is damaged, or larger than `max_pixels` (0 = any).
    """
    with _open(path) as image:
        check_size(path, *image.size, max_pixels)
        if image.format not in _ANIMATED or getattr(image, "n_frames", 1) == 1:
            yield Frame(0.0, 0.0, _upright(image))
            return
        time = 0.0
        # The default image of an APNG may be one for programs that show no animations.
        for i in range(int(getattr(image, "default_image", False)), image.n_frames):
            image.seek(i)
            image.load()
            duration = float(image.info.get("duration") or 0) / 1000 or _DEFAULT_DURATION
            yield Frame(time, duration, _upright(image))
            time += duration


def image_format(path: Media) -> str:
    """Return "png", "jpeg", "mpo" or "webp"."""
    with _open(path) as image:
        return image.format.lower()


def check_size(path: Media, width: int, height: int, max_pixels: int) -> None:
    if max_pixels and width * height > max_pixels:
        raise UserError(f"{path}: {width}x{height} is more than {max_pixels} pixels")


def fit(image: Image.Image, height: int, width: int) -> np.ndarray:
    """Scale an image until it covers height x width, cut the centre; uint8 [height, width, 3]."""
    return np.asarray(ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS))


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an L, RGB or CMYK image from its ICC profile to sRGB. A profile of another kind of image is ignored."""
    transform = _transform(profile, image.mode) if profile else None
    return image.convert("RGB") if transform is None else ImageCms.applyTransform(image, transform)


@functools.lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the way from a profile to sRGB; None where there is none, or nothing to do but rounding."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
    # Not by the name of the profile, which may say sRGB of anything.
    levels = np.arange(0, 256, 51, dtype=np.uint8)
    if mode == "RGB":
        colours = Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3))
    elif mode == "L":
        colours = Image.fromarray(levels[None])
    else:
        return transform
    moved = np.asarray(ImageCms.applyTransform(colours, transform)).astype(int) - np.asarray(colours.convert("RGB"))
    return None if np.abs(moved).max() <= _ROUNDING else transform


@contextlib.contextmanager
def _open(path: Media) -> Iterator[Image.Image]:
    try:
        with media.open_binary(path) as file, Image.open(file, formats=_FORMATS) as image:
            yield image
    except _ERRORS as error:
        raise UserError(f"{path}: damaged or not an image") from error


def _upright(image: Image.Image) -> Image.Image:
    """Return the picture as it is meant to be seen, in sRGB."""
    image = ImageOps.exif_transpose(image)
    profile, transparent = image.info.get("icc_profile"), image.info.get("transparency")
    alpha = None
    if image.mode.startswith("I"):  # 16 bits of grey
        levels = np.asarray(image).astype(np.int64)
        if isinstance(transparent, int):
            alpha = Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8))
        image = Image.fromarray(((levels * 255 + 32767) // 65535).clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        image = image.convert("RGBA").convert("RGB") if image.mode != "LA" else image.convert("L")
    elif image.mode not in ("L", "CMYK"):
        image = image.convert("RGB")
    image = to_srgb(image, profile)
    return image if alpha is None else Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
