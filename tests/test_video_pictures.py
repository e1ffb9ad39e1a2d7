"""Pictures of a video as a player shows them: shape, orientation, colours, transparency, fields."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from lumos.data.video import probe, read_clip
from lumos.data.video_writer import write_video
from lumos.errors import UserError

# Luma weights of red and blue by the number of the matrix in ITU-T H.273.
MATRICES = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
COLOURS = np.array([[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 0)]], np.uint8)


def write(path, pictures, codec="libx264", pixels="yuv444p", aspect=None, matrix=None, **options):
    """Encode arrays, or frames as they are, without visible loss."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=8, options=options or {"qp": "1"})
        first = pictures[0]
        height, width = (first.height, first.width) if isinstance(first, av.VideoFrame) else first.shape[:2]
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if matrix is not None:
            stream.set_display_matrix(
                [matrix[0] << 16, matrix[1] << 16, 0, matrix[2] << 16, matrix[3] << 16, 0, 0, 0, 1 << 30]
            )
        for picture in pictures:
            if not isinstance(picture, av.VideoFrame):
                picture = av.VideoFrame.from_ndarray(picture, format="rgba" if picture.shape[2] == 4 else "rgb24")
            else:  # tags of the stream are those of its first frame
                stream.codec_context.colorspace = picture.colorspace
                stream.codec_context.color_range = picture.color_range
                stream.codec_context.color_trc = picture.color_trc
            output.mux(stream.encode(picture))
        output.mux(stream.encode())


def insert_box(data: bytes, path: list[bytes], box: bytes) -> bytes:
    """Append a box to one of an mp4 whose index comes last, and adjust the sizes of those around it."""
    data, place, heads = bytearray(data), 0, []
    for name in path:
        while data[place + 4 : place + 8] != name:
            place += struct.unpack_from(">I", data, place)[0]
        heads.append(place)
        end = place + struct.unpack_from(">I", data, place)[0]
        place += 16 if name == b"stsd" else 8
    for head in heads:
        struct.pack_into(">I", data, head, struct.unpack_from(">I", data, head)[0] + len(box))
    data[end:end] = box
    return bytes(data)


def with_clean_aperture(data: bytes, width: int, height: int, right: int, down: int) -> bytes:
    """Let an mp4 show width x height pixels, moved from the centre by half pixels."""
    box = struct.pack(">I4sIIIIiIiI", 40, b"clap", width, 1, height, 1, right, 2, down, 2)
    return insert_box(data, [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"], box)


@pytest.mark.parametrize("aspect", [Fraction(1), Fraction(4, 3), Fraction(8, 9), Fraction(1, 2)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_pixels_that_are_not_square(tmp_path, suffix, aspect):
    """A disc that is stored as an ellipse is shown as a disc, also where the clip has another shape."""
    path = tmp_path / f"v{suffix}"
    y, x = np.mgrid[:96, :120]
    disc = np.hypot((x - 59.5) * float(aspect), y - 47.5) < 24
    write(path, [np.repeat(255 * disc[..., None], 3, 2).astype(np.uint8)] * 2, aspect=aspect)
    info = probe(path)
    assert (info.width, info.height) == (round(120 * aspect), 96)
    for height, width in [(info.height, info.width), (48, 48), (64, 40), (20, 60)]:
        white = read_clip(path, num_frames=1, height=height, width=width)[0, :, :, 0] > 127
        scale = max(height / 96, width / (120 * float(aspect)))
        for count in (white.any(1).sum(), white.any(0).sum()):
            assert abs(count - min(48 * scale, height if count == white.any(1).sum() else width)) <= 2


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("aspect", [Fraction(1), Fraction(3, 2)])
@pytest.mark.parametrize(
    "matrix", [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, -1, 0), (0, -1, 1, 0), (0, 1, 1, 0), (0, -1, -1, 0)]
)  # fmt: skip
def test_eight_orientations_with_crop_and_aspect(tmp_path, matrix, aspect, crop):
    """A stored pixel (x, y) is shown at (a x + c y, b x + d y), moved to where the picture begins."""
    path = tmp_path / "v.mp4"
    picture = COLOURS.repeat(24, 0).repeat(40, 1)  # 48 x 80
    write(path, [picture] * 2, aspect=aspect, matrix=matrix)
    if crop:  # 16 columns on the left and 8 rows at the bottom go
        path.write_bytes(with_clean_aperture(path.read_bytes(), 64, 40, 16, -8))
        picture = picture[:40, 16:]
    height, width = picture.shape[:2]
    a, b, c, d = matrix
    y, x = np.mgrid[:height, :width]
    shown_x, shown_y = a * x + c * y, b * x + d * y
    expected = np.zeros((np.ptp(shown_y) + 1, np.ptp(shown_x) + 1, 3), np.uint8)
    expected[shown_y - shown_y.min(), shown_x - shown_x.min()] = picture
    if a:
        expected = expected.repeat(aspect.numerator, 1)[:, :: aspect.denominator]
    else:  # stored rows are shown as columns
        expected = expected.repeat(aspect.numerator, 0)[:: aspect.denominator]
    info = probe(path)
    assert (info.height, info.width) == expected.shape[:2]
    clip = read_clip(path, num_frames=1, height=info.height, width=info.width)[0]
    assert (np.abs(clip.astype(int) - expected).max(axis=2) > 24).mean() < 0.06  # the borders of the colours


def test_a_skewed_display_matrix_is_refused(tmp_path):
    write(tmp_path / "v.mp4", [np.zeros((32, 32, 3), np.uint8)] * 2)
    data = bytearray((tmp_path / "v.mp4").read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # version 0: the matrix
    half = round(0.5**0.5 * 65536)
    struct.pack_into(">5i", data, place, half, half, 0, -half, half)
    (tmp_path / "v.mp4").write_bytes(data)
    with pytest.raises(UserError, match="its display matrix turns pictures by -?45 degrees"):
        probe(tmp_path / "v.mp4")


def flat(size, yuv, pixels, matrix, full, transfer=2):
    """Return a frame of one colour with its tags."""
    frame = av.VideoFrame(*size, pixels)
    deep = "10" in pixels
    for plane, level in zip(frame.planes, yuv):
        samples = np.full(plane.buffer_size // (1 + deep), level << 2 * deep, np.uint16 if deep else np.uint8)
        plane.update(samples.tobytes())
    frame.colorspace, frame.color_range, frame.color_trc = matrix, 2 if full else 1, transfer
    return frame


def to_rgb(yuv, matrix, full):
    """Convert 8-bit YUV to RGB by the definition of the matrix."""
    red, blue = MATRICES[matrix]
    y, u, v = np.subtract(yuv, (0 if full else 16, 128, 128)) / ((255, 255, 255) if full else (219, 224, 224))
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    return 255 * np.clip([r, (y - red * r - blue * b) / (1 - red - blue), b], 0, 1)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
def test_matrix_and_range(tmp_path, pixels, full):
    for yuv in [(128, 110, 200), (128, 150, 60)]:
        for matrix in MATRICES:
            write(tmp_path / "v.mkv", [flat((32, 32), yuv, pixels, matrix, full)] * 2, pixels=pixels)
            clip = read_clip(tmp_path / "v.mkv", height=32, width=32)
            assert np.abs(clip - to_rgb(yuv, matrix, full)).max() < 4  # BT.601, 709 and 2020 differ by more than 5


@pytest.mark.parametrize(
    "size, matrix", [((64, 48), 6), ((720, 576), 6), ((1278, 64), 6), ((1280, 64), 1), ((64, 578), 1), ((1280, 720), 1)]
)
def test_untagged_pictures(tmp_path, size, matrix):
    yuv = (120, 90, 160)
    write(tmp_path / "v.mkv", [flat(size, yuv, "yuv444p", 2, False)] * 2)
    assert np.abs(read_clip(tmp_path / "v.mkv", height=16, width=16) - to_rgb(yuv, matrix, False)).max() < 3


def test_rgb_needs_no_matrix(tmp_path):
    picture = np.broadcast_to(np.array([200, 90, 40], np.uint8), (720, 1280, 3))
    for codec, options in [("qtrle", {"threads": "1"}), ("libx264rgb", {"qp": "0"})]:
        write(tmp_path / "v.mov", [np.ascontiguousarray(picture)] * 2, codec, "rgb24", **options)
        assert read_clip(tmp_path / "v.mov", height=16, width=16)[0, 8, 8].tolist() == [200, 90, 40]


def test_colours_that_would_come_out_wrong_are_refused(tmp_path):
    reasons = {
        (9, 16): r"its transfer function is PQ \(HDR\)", (9, 18): r"its transfer function is HLG \(HDR\)", (1, 8): "is linear",
        (8, 1): r"its colour matrix \(8\) cannot be converted", (14, 2): r"its colour matrix \(14\) cannot be converted",
    }  # fmt: skip
    for (matrix, transfer), reason in reasons.items():
        frames = [flat((32, 32), (120, 90, 160), "yuv420p10le", matrix, False, transfer)] * 2
        write(tmp_path / "v.mkv", frames, pixels="yuv420p10le")
        with pytest.raises(UserError, match=reason):
            probe(tmp_path / "v.mkv")
        with pytest.raises(UserError, match=reason):
            read_clip(tmp_path / "v.mkv", height=16, width=16)


def test_own_files_come_back_whatever_their_size(tmp_path):
    for height, width in [(64, 64), (720, 1280)]:
        video = np.broadcast_to(np.array([200, 90, 40], np.uint8), (2, height, width, 3))
        write_video(tmp_path / "v.mp4", video, 8)
        assert np.abs(read_clip(tmp_path / "v.mp4", height=32, width=32) - (200.0, 90, 40)).max() < 4


def disc_on_hidden_green(height=64, width=96) -> tuple[np.ndarray, np.ndarray]:
    """Return a red disc with a soft edge whose transparent ground is green, as RGBA, and what it is on white."""
    y, x = np.mgrid[:height, :width]
    alpha = np.clip((20 - np.hypot(y - height / 2, x - width / 2)) * 64, 0, 255)
    rgba = np.where(alpha[..., None] > 0, (255, 0, 0, 0), (0, 255, 0, 0)) + np.where([0, 0, 0, 1], alpha[..., None], 0)
    rgba = rgba.astype(np.uint8)
    return rgba, rgba[..., :3] * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)


@pytest.mark.parametrize(
    "name, codec, pixels",
    [
        ("v.mov", "prores_ks", "yuva444p10le"), ("v.mov", "qtrle", "argb"), ("v.mov", "png", "rgba"), ("v.mov", "png", "rgba64be"),
        ("v.mkv", "ffv1", "bgra"), ("v.avi", "utvideo", "gbrap"), ("v.webm", "libvpx-vp9", "yuva420p"),
        ("v.webm", "libvpx", "yuva420p"),
    ],
)  # fmt: skip
def test_transparent_videos_lie_on_white(tmp_path, name, codec, pixels):
    rgba, expected = disc_on_hidden_green()
    options = {"auto-alt-ref": "0", "crf": "4", "b": "4M"} if "vpx" in codec else {"threads": "1"}
    with av.open(str(tmp_path / name), "w") as output:
        stream = output.add_stream(codec, rate=8, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixels
        if "vpx" in codec:
            stream.metadata["alpha_mode"] = "1"
        for _ in range(5):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba")))
        output.mux(stream.encode())
    info = probe(tmp_path / name)
    assert info.frames == 5
    clip = read_clip(tmp_path / name, height=64, width=96)
    assert np.abs(clip - expected).mean() < 2
    assert np.abs(clip[:, [0, 0, -1], [0, -1, 0]].astype(int) - 255).max() < 3
    small = read_clip(tmp_path / name, start=0.25, num_frames=2, height=16, width=24).astype(int)
    assert (small[..., 1] - small[..., 2]).max() < 10  # nowhere green


def test_zeros_in_the_fourth_byte_of_raw_avi_pixels_are_no_transparency(tmp_path):
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[..., :3] = (200, 90, 40)
    write(tmp_path / "v.avi", [rgba] * 3, "rawvideo", "bgra", threads="1")
    assert np.abs(read_clip(tmp_path / "v.avi", height=32, width=32) - (200.0, 90, 40)).max() < 3
    rgba[:, 16:, 3] = 255
    write(tmp_path / "v.avi", [rgba] * 3, "rawvideo", "bgra", threads="1")
    clip = read_clip(tmp_path / "v.avi", height=32, width=32)
    assert (clip[:, :, :16] == 255).all() and np.abs(clip[:, :, 16:] - (200.0, 90, 40)).max() < 3


@pytest.mark.parametrize(
    "name, codec, pixels",
    [
        ("v.mpg", "mpeg2video", "yuv420p"),
        ("v.mp4", "libx264", "yuv420p"),
        ("v.mov", "prores_ks", "yuv422p10le"),
        ("m.mov", "mjpeg", "yuvj420p"),
    ],
)
def test_interlaced_pictures_lose_their_combs(tmp_path, name, codec, pixels):
    """A bar that moves between the two fields of a picture; a still picture keeps its place."""
    pictures = []
    for i in range(9):
        picture = np.full((64, 96, 3), 40, np.uint8)
        for field in (0, 1):  # the upper first
            left = 8 + 4 * (2 * i + field)
            picture[field::2, left : left + 16] = 220
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        pictures.append(frame)
    flags = {"flags": {"prores_ks": "+ildct", "mjpeg": "+bitexact"}.get(codec, "+ildct+ilme")}
    extra = {"x264-params": "tff=1:qp=1"} if codec == "libx264" else {"q": "2"}
    with av.open(str(tmp_path / name), "w") as output:
        stream = output.add_stream(codec, rate=25, options={**flags, **extra})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 96, 64, pixels, 20_000_000
        stream.codec_context.field_order = 2
        graph = av.filter.Graph()
        source = graph.add_buffer(width=96, height=64, format="rgb24", time_base=Fraction(1, 25))
        chain = [
            source,
            graph.add("format", {"prores_ks": "yuv422p", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")),
            graph.add("setfield", "tff"),
        ]
        graph.link_nodes(*chain, graph.add("buffersink")).configure()
        for i, frame in enumerate(pictures):
            frame.pts, frame.time_base = i, Fraction(1, 25)
            graph.push(frame)
            output.mux(stream.encode(graph.pull()))
        output.mux(stream.encode())
    with av.open(str(tmp_path / name)) as container:
        # Of Motion JPEG the container alone says it.
        assert next(container.decode(video=0)).interlaced_frame == (codec != "mjpeg")
    info = probe(tmp_path / name)
    assert (info.frames, info.fps) == (9, 25)

    def comb(clip):
        clip = clip[..., 1].astype(int)
        return np.abs(2 * clip[:, 1:-1] - clip[:, :-2] - clip[:, 2:])[:, 4:-4].mean()

    clip = read_clip(tmp_path / name, height=64, width=96)
    assert comb(clip) < 1 < 8 < comb(np.stack([frame.to_ndarray() for frame in pictures]))
    for first in (1, 5):  # whatever came before
        part = read_clip(tmp_path / name, start=first / 25, num_frames=3, height=64, width=96)
        np.testing.assert_array_equal(part, clip[first : first + 3])
    for i in (0, 4, 8):  # the bar stands where one of the fields has it
        columns = np.flatnonzero(clip[i, 32, :, 1] > 130)
        assert columns[0] in range(8 + 8 * i - 1, 8 + 8 * i + 6) and abs(len(columns) - 16) <= 1
