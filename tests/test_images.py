"""Still and animated images: upright, in sRGB, opaque, whatever they are called."""

import io
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, ImageCms

from lumos.data.video import probe, read_clip

COLOURS = np.array([[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 0)]], np.uint8).repeat(8, 0).repeat(12, 1)


def read(path) -> np.ndarray:
    """Read a still in its own size."""
    info = probe(path)
    assert (info.frames, info.duration, info.frames_at(24)) == (1, 0.0, 1)
    return read_clip(path, height=info.height, width=info.width)[0]


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_eight_orientations(tmp_path, suffix):
    """The Exif tag says where row 0 and column 0 of the stored picture are shown."""
    shown = {
        1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1], 5: lambda x: x.swapaxes(0, 1),
        6: lambda x: x.swapaxes(0, 1)[:, ::-1], 7: lambda x: x.swapaxes(0, 1)[::-1, ::-1], 8: lambda x: x.swapaxes(0, 1)[::-1],
    }  # fmt: skip
    for number, turn in shown.items():
        exif = Image.Exif()
        exif[0x0112] = number
        options = {"quality": 100, "subsampling": 0} if suffix == ".jpg" else {"lossless": True}
        Image.fromarray(COLOURS).save(tmp_path / f"v{suffix}", exif=exif, **options)
        assert np.abs(read(tmp_path / f"v{suffix}").astype(int) - turn(COLOURS)).max() < 8


def test_sixteen_bits(tmp_path):
    levels = np.arange(64 * 64).reshape(64, 64) * 16 + 7
    Image.fromarray(levels.astype(np.uint16)).save(tmp_path / "grey.png")
    expected = np.rint(levels / 65535 * 255)
    np.testing.assert_array_equal(read(tmp_path / "grey.png"), np.repeat(expected[..., None], 3, 2))


def png_chunks(data: bytes, **chunks: bytes) -> bytes:
    """Insert chunks before the pixels of a PNG."""
    place = data.index(b"IDAT") - 4
    for name, body in chunks.items():
        body = name.encode() + body
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        data = data[:place] + chunk + data[place:]
        place += len(chunk)
    return data


def test_transparent_images_lie_on_white(tmp_path):
    """The hidden colour is green. Also palettes, one transparent colour, grey, and 16 bits of grey."""
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[:, :16] = (0, 255, 0, 0)
    rgba[:16, 16:] = (200, 0, 0, 255)
    rgba[16:, 16:] = (200, 0, 0, 51)
    expected = np.full((32, 32, 3), 255)
    expected[:16, 16:] = (200, 0, 0)
    expected[16:, 16:] = (244, 204, 204)
    for name in ("a.png", "a.webp", "a.apng"):
        Image.fromarray(rgba).save(tmp_path / name, lossless=True, exact=True, format=name[2:].replace("apng", "png"))
        assert np.abs(read(tmp_path / name).astype(int) - expected).max() <= 1
    small = read_clip(tmp_path / "a.png", height=8, width=8)[0].astype(int)
    assert (small[..., 1] - small[..., 2]).max() <= 1  # nothing of it in the edges of a smaller picture

    palette = Image.fromarray(np.repeat([[0, 1]], 16, 0).repeat(8, 1).astype(np.uint8), "P")
    palette.putpalette([0, 255, 0, 200, 0, 0])
    palette.save(tmp_path / "p.png", transparency=0)
    palette.save(tmp_path / "bytes.png", transparency=bytes([0, 51]))
    assert read(tmp_path / "p.png")[0, [0, -1]].tolist() == [[255, 255, 255], [200, 0, 0]]
    assert read(tmp_path / "bytes.png")[0, [0, -1]].tolist() == [[255, 255, 255], [244, 204, 204]]

    Image.fromarray(rgba[..., :3]).save(tmp_path / "key.png", transparency=(0, 255, 0))
    assert read(tmp_path / "key.png")[0, [0, -1]].tolist() == [[255, 255, 255], [200, 0, 0]]
    Image.fromarray(rgba[..., [0, 3]], "LA").save(tmp_path / "la.png")
    assert read(tmp_path / "la.png")[[0, 0, -1], [0, -1, -1], 0].tolist() == [255, 200, 244]
    Image.fromarray(np.repeat([[1000, 51400]], 4, 0).astype(np.uint16)).save(tmp_path / "g.png")
    (tmp_path / "g.png").write_bytes(png_chunks((tmp_path / "g.png").read_bytes(), tRNS=struct.pack(">H", 1000)))
    assert read(tmp_path / "g.png")[0].tolist() == [[255, 255, 255], [200, 200, 200]]


def icc_profile(space: bytes, gamma: float, primaries: np.ndarray | None = None) -> bytes:
    """Return a version 2 profile: grey, or RGB with the columns of `primaries` (XYZ, D50) and one gamma."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    xyz = lambda values: b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))
    tags = {
        b"wtpt": xyz((0.9642, 1.0, 0.8249)),
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(79),
    }
    if primaries is None:
        tags[b"kTRC"] = curve
    else:
        tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
        tags |= {name + b"XYZ": xyz(column) for name, column in zip((b"r", b"g", b"b"), primaries.T)}
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = bytes(8) + struct.pack(">I4s4s4s", 0x02100000, b"mntr", space, b"XYZ ") + bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061)
    profile = head + bytes(128 - len(head)) + table + body
    return struct.pack(">I", len(profile)) + profile[4:]


# D50: columns are red, green, blue.
ADOBE = np.array([(0.6097, 0.2053, 0.1492), (0.3111, 0.6257, 0.0632), (0.0195, 0.0609, 0.7446)])
SRGB = np.array([(0.4361, 0.3851, 0.1431), (0.2225, 0.7169, 0.0606), (0.0139, 0.0971, 0.7142)])


def srgb_levels(linear: np.ndarray) -> np.ndarray:
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_profiles_are_applied(tmp_path, suffix):
    colours = np.array([(200, 120, 80), (90, 140, 100), (128, 128, 128), (255, 255, 255)], np.uint8)
    picture = colours[None].repeat(16, 0).repeat(16, 1)
    options = {"quality": 100, "subsampling": 0} if suffix == ".jpg" else {"lossless": True}
    Image.fromarray(picture).save(tmp_path / f"v{suffix}", icc_profile=icc_profile(b"RGB ", 2.2, ADOBE), **options)
    expected = srgb_levels((colours / 255) ** 2.2 @ ADOBE.T @ np.linalg.inv(SRGB).T)
    assert np.abs(expected - colours).max() > 20
    assert np.abs(read(tmp_path / f"v{suffix}")[8, 8::16] - expected).max() < 4


def test_profiles_inside_videos_are_applied(tmp_path):
    """Motion JPEG and PNG in a container keep the profile of their pictures."""
    colours = np.array([(200, 120, 80), (90, 140, 100)], np.uint8)
    buffer, profile = io.BytesIO(), icc_profile(b"RGB ", 2.2, ADOBE)
    Image.fromarray(colours[None].repeat(16, 0).repeat(16, 1)).save(
        buffer, "jpeg", quality=100, subsampling=0, icc_profile=profile
    )
    with av.open(str(tmp_path / "v.mov"), "w") as output:
        stream = output.add_stream("mjpeg", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuvj444p"
        for i in range(3):
            packet = av.Packet(buffer.getvalue())
            packet.pts = packet.dts = i
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 8), stream, True
            output.mux(packet)
    expected = srgb_levels((colours / 255) ** 2.2 @ ADOBE.T @ np.linalg.inv(SRGB).T)
    clip = read_clip(tmp_path / "v.mov", height=16, width=32)
    assert len(clip) == 3 and np.abs(clip[:, 8, 8::16] - expected).max() < 4


def test_profiles_of_grey_and_transparent_images(tmp_path):
    grey = np.repeat(np.array([[10, 60, 128, 200]], np.uint8), 8, 0)
    expected = srgb_levels((grey[0] / 255) ** 1.0)
    assert np.abs(expected - grey[0]).max() > 40
    profile = icc_profile(b"GRAY", 1.0)
    Image.fromarray(grey).save(tmp_path / "l.png", icc_profile=profile)
    Image.fromarray(np.dstack([grey, np.full_like(grey, 255)]), "LA").save(tmp_path / "la.png", icc_profile=profile)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "i.png", icc_profile=profile)
    for name in ("l.png", "la.png", "i.png"):
        assert np.abs(read(tmp_path / name)[0, :, 1] - expected).max() < 3, name
    rgba = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    linear = icc_profile(b"RGB ", 1.0, SRGB)
    Image.fromarray(rgba).save(tmp_path / "rgba.png", icc_profile=linear)
    assert np.abs(read(tmp_path / "rgba.png")[0, :, 1] - expected).max() < 3
    # One that belongs to another kind of image, or is none, is ignored, as viewers do.
    for wrong in (linear, b"no profile"):
        Image.fromarray(grey).save(tmp_path / "wrong.png", icc_profile=wrong)
        np.testing.assert_array_equal(read(tmp_path / "wrong.png")[..., 0], grey)


def test_srgb_pictures_keep_every_bit(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, options in {"tagged.png": {"icc_profile": profile}, "plain.png": {}}.items():
        Image.fromarray(picture).save(tmp_path / name, **options)
        np.testing.assert_array_equal(read(tmp_path / name), picture)


def test_a_profile_that_says_srgb_may_be_another(tmp_path):
    colours = np.array([[(200, 30, 40), (30, 180, 60), (90, 90, 90)]], np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    assert ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(swapped))).startswith("sRGB")
    Image.fromarray(colours).save(tmp_path / "v.png", icc_profile=swapped)
    assert np.abs(read(tmp_path / "v.png").astype(int) - colours[..., [1, 0, 2]]).max() <= 2


def test_cmyk(tmp_path):
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, 16:] = (0, 255, 255, 0)
    Image.fromarray(inks, "CMYK").save(tmp_path / "v.jpg", quality=100)
    picture = read(tmp_path / "v.jpg")[8].astype(int)
    assert np.abs(picture[[2, 29]] - [(255, 255, 255), (255, 0, 0)]).max() < 8


@pytest.mark.parametrize("suffix", [".png", ".webp", ".apng"])
def test_animations_are_videos(tmp_path, suffix):
    path = tmp_path / f"v{suffix}"
    first, *rest = (Image.new("RGB", (48, 32), (16 + 4 * i,) * 3) for i in range(10))
    first.save(
        path,
        format="webp" if suffix == ".webp" else "png",
        save_all=True,
        append_images=rest,
        duration=125,
        lossless=True,
    )
    info = probe(path)
    assert (info.frames, info.duration, info.fps, info.width, info.height) == (10, 1.25, 8.0, 48, 32)
    clip = read_clip(path, height=32, width=48)
    assert clip[:, 5, 5, 0].tolist() == [16 + 4 * i for i in range(10)]
    clip = read_clip(path, start=0.5, num_frames=3, fps=4, height=32, width=48)
    assert clip[:, 5, 5, 0].tolist() == [16 + 4 * i for i in (4, 6, 8)]


def test_the_picture_before_an_animation_is_not_part_of_it(tmp_path):
    cover, *frames = (Image.new("RGB", (16, 16), (20 * i, 0, 0)) for i in range(5))
    cover.save(tmp_path / "v.png", save_all=True, append_images=frames, duration=100, default_image=True)
    assert probe(tmp_path / "v.png").frames == 4
    assert read_clip(tmp_path / "v.png", height=16, width=16)[:, 0, 0, 0].tolist() == [20, 40, 60, 80]


def test_content_decides(tmp_path):
    """A JPEG called .png, a PNG called .mp4, a GIF called .jpg, a still GIF, and files without a suffix."""
    picture = Image.fromarray(COLOURS)
    for name, kind in {"a.png": "jpeg", "b.mp4": "png", "c": "webp", "d.webm": "jpeg"}.items():
        picture.save(tmp_path / name, format=kind)
        assert read(tmp_path / name).shape == COLOURS.shape and probe(tmp_path / name).codec == kind
    shades = [Image.new("L", (16, 16), 40 * i) for i in range(4)]
    shades[0].save(tmp_path / "e.jpg", format="gif", save_all=True, append_images=shades[1:], duration=100)
    assert probe(tmp_path / "e.jpg").frames == 4
    shades[1].save(tmp_path / "f.gif")
    info = probe(tmp_path / "f.gif")
    assert info.frames == info.frames_at(24) == 1
    assert read_clip(tmp_path / "f.gif", height=16, width=16).tolist() == np.full((1, 16, 16, 3), 40).tolist()


def test_the_previews_of_a_camera_are_no_video(tmp_path):
    """Cameras put several JPEGs into one file (MPO): the first is the picture."""
    picture = Image.fromarray(COLOURS)
    picture.save(tmp_path / "v.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], quality=100)
    with Image.open(io.BytesIO((tmp_path / "v.jpg").read_bytes())) as image:
        assert image.n_frames == 2
    assert np.abs(read(tmp_path / "v.jpg")[4, [4, -5]].astype(int) - [(255, 0, 0), (0, 255, 0)]).max() < 8
