"""From a decoded picture to RGB as a player shows it, fitted to a size.

In this order: an interlaced picture loses its comb (FFmpeg's estdif makes one progressive picture of it alone, so that it
does not matter where decoding began), a transparent one is laid on white, colours become RGB while the picture is scaled,
what the container cuts off goes, and the rest is turned and mirrored as the display matrix says.

Pictures without a colour matrix are taken for BT.709 from 1280 pixels of width or 577 of height on, else for BT.601, as
players do. HDR and whatever else would come out in wrong colours is refused.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from fractions import Fraction

import av
import av.filter
import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.reformatter import Colorspace, VideoReformatter
from PIL import Image

from lumos.data.images import to_srgb
from lumos.data.media import Media
from lumos.errors import UserError

# Numbers of ITU-T H.273, which FFmpeg shares.
_UNTAGGED = 2
_MATRICES = (0, 1, _UNTAGGED, 3, 4, 5, 6, 7, 9)  # RGB, BT.709, BT.601, BT.2020 and kin: what FFmpeg's scaler converts
_TRANSFERS = {8: "linear", 9: "logarithmic", 10: "logarithmic", 16: "PQ (HDR)", 17: "SMPTE 428", 18: "HLG (HDR)"}


@dataclasses.dataclass(frozen=True)
class Orientation:
    """One of the eight ways to show a picture: rows and columns exchanged, then mirrored."""

    transpose: bool
    flip_rows: bool  # upside down
    flip_columns: bool  # left and right exchanged

    def __call__(self, image_YX3: np.ndarray) -> np.ndarray:
        if self.transpose:
            image_YX3 = image_YX3.swapaxes(0, 1)
        return image_YX3[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a container says about how its pictures are shown."""

    aspect: float = 1.0  # width of a stored pixel over its height
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)  # left, right, top, bottom: stored pixels that are cut off
    interlaced: bool = False  # also pictures that do not say it themselves
    unsure_alpha: bool = False  # a fourth channel of zeros is none

    def visible_size(self, picture: av.VideoFrame) -> tuple[int, int]:
        """Return (height, width) of what is left after cropping, in stored pixels."""
        left, right, top, bottom = self.crop
        return max(1, picture.height - top - bottom), max(1, picture.width - left - right)

    def shown_size(self, picture: av.VideoFrame) -> tuple[int, int]:
        """Return (height, width) as a player shows it: square pixels, upright."""
        height, width = self.visible_size(picture)
        width = max(1, round(width * self.aspect))
        return (width, height) if _orientation(picture).transpose else (height, width)


class Fit:
    """Convert the pictures of one file to uint8 [height, width, 3]: cover the size, cut the centre."""

    def __init__(self, height: int, width: int, shape: Shape):
        self._height, self._width, self._shape = height, width, shape
        self._scaler = VideoReformatter()  # keeps FFmpeg's tables from picture to picture

    def __call__(self, picture: av.VideoFrame) -> np.ndarray:
        orientation, profile = _orientation(picture), _side_data(picture, Type.ICC_PROFILE)
        height, width = (self._width, self._height) if orientation.transpose else (self._height, self._width)
        visible_height, visible_width = self._shape.visible_size(picture)
        scale_y = max(height / visible_height, width / (visible_width * self._shape.aspect))
        scale_x = scale_y * self._shape.aspect
        scaled_height = max(height, round(picture.height * scale_y))
        scaled_width = max(width, round(picture.width * scale_x))
        if picture.interlaced_frame or self._shape.interlaced:
            picture = _deinterlace(picture)
        if _has_alpha(picture):
            picture = _on_white(picture, self._shape.unsure_alpha)
        rgb_YX3 = self._scaler.reformat(
            picture,
            scaled_width,
            scaled_height,
            "rgb24",
            src_colorspace=_guessed_matrix(picture),
            interpolation="AREA" if max(scale_y, scale_x) < 1 else "BICUBIC",
            threads=1,
        ).to_ndarray()
        left, right, top, bottom = self._shape.crop
        first_y = (scaled_height - height + round((top - bottom) * scale_y)) // 2
        first_x = (scaled_width - width + round((left - right) * scale_x)) // 2
        rgb_YX3 = rgb_YX3[first_y : first_y + height, first_x : first_x + width]
        if profile is not None:
            rgb_YX3 = np.asarray(to_srgb(Image.fromarray(rgb_YX3), profile))
        return orientation(rgb_YX3)


def check_picture(path: Media, picture: av.VideoFrame) -> None:
    """Refuse pictures that would come out in wrong colours or askew. Raises UserError."""
    if picture.color_trc in _TRANSFERS:
        raise UserError(f"{path}: its transfer function is {_TRANSFERS[picture.color_trc]}; convert it to SDR (BT.709)")
    if (
        picture.colorspace not in _MATRICES
        or _side_data(picture, Type.DOVI_METADATA)
        and picture.color_trc == _UNTAGGED
    ):
        raise UserError(f"{path}: its colour matrix ({picture.colorspace}) cannot be converted; convert it to BT.709")
    a, b, c, d = map(abs, _matrix(picture))
    if min(b + c, a + d) > 0.05 * max(b + c, a + d):
        raise UserError(f"{path}: its display matrix turns pictures by {picture.rotation} degrees, not by right angles")


def _matrix(picture: av.VideoFrame) -> tuple[float, float, float, float]:
    """Return (a, b, c, d) of the display matrix, which maps a stored pixel (x, y) to (a x + c y, b x + d y)."""
    matrix = _side_data(picture, Type.DISPLAYMATRIX)
    if matrix is None:
        angle = math.radians(picture.rotation)
        return math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    a, b, _, c, d = struct.unpack_from("=5i", matrix)
    return a, b, c, d


def _orientation(picture: av.VideoFrame) -> Orientation:
    a, b, c, d = _matrix(picture)
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, flip_rows=b < 0, flip_columns=c < 0)
    return Orientation(False, flip_rows=d < 0, flip_columns=a < 0)


def _side_data(picture: av.VideoFrame, kind: Type) -> bytes | None:
    try:
        # Not picture.side_data, which would tie picture and data together until the garbage is collected.
        data = SideDataContainer(picture).get(kind)
    except ValueError:  # PyAV knows only some kinds, and gives none where there is another one
        return None
    return None if data is None else bytes(data)


def _has_alpha(picture: av.VideoFrame) -> bool:
    return picture.format.has_palette or any(component.is_alpha for component in picture.format.components)


def _guessed_matrix(picture: av.VideoFrame) -> Colorspace | None:
    large = picture.width >= 1280 or picture.height > 576
    return Colorspace.ITU709 if picture.colorspace == _UNTAGGED and large else None


def _deinterlace(picture: av.VideoFrame) -> av.VideoFrame:
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=picture.width, height=picture.height, format=picture.format, time_base=picture.time_base or Fraction(1)
    )
    graph.link_nodes(source, graph.add("estdif", mode="frame"), graph.add("buffersink")).configure()
    graph.push(picture)
    graph.push(None)
    progressive = graph.pull()
    # The filter knows nothing of colours.
    progressive.colorspace, progressive.color_range = picture.colorspace, picture.color_range
    return progressive


def _on_white(picture: av.VideoFrame, unsure: bool) -> av.VideoFrame:
    # Before scaling, which would mix hidden colours into the edges.
    rgba_YX4 = picture.reformat(format="rgba", src_colorspace=_guessed_matrix(picture), threads=1).to_ndarray()
    alpha_YX1 = rgba_YX4[..., 3:].astype(np.uint16)
    if unsure and not alpha_YX1.any():
        return picture
    rgb_YX3 = (rgba_YX4[..., :3] * alpha_YX1 + 255 * (255 - alpha_YX1) + 127) // 255
    return av.VideoFrame.from_ndarray(rgb_YX3.astype(np.uint8), format="rgb24")
