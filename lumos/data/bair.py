"""The records of BAIR robot pushing (Ebert et al., arXiv 1710.05268), as they are published, into videos that can be read at random.

    softmotion30_44k/<split>/traj_*.tfrecords: one example a clip, with the features `<frame>/image_aux1/encoded` of its 30 frames

The camera is `image_aux1`, which the published figures are of; `image_main`, actions and positions stay behind. A frame is 64x64x3 bytes
(it may be a JPEG or PNG too). TFDS reads these records with TensorFlow; its definition of an example does without.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from lumos.errors import UserError

SUFFIX = ".tfrecords"
_SIZE = (64, 64, 3)
_FPS = 10  # the records name no rate
_LENGTH, _CHECKSUM = 8, 4  # bytes before a record: its length and a checksum; a second checksum follows it


def unpack(folder: Path, out: Path) -> list[Path]:
    """Write the clips of the record files of a folder as lossless videos into `out`; return their paths, in order.

    Clips that are there already stay, so that a call that was stopped goes on. Raises UserError: a damaged file.
    """
    paths = []
    for file in sorted(folder.glob(f"*{SUFFIX}")):
        for number, record in enumerate(_records(file)):
            paths.append(out / f"{file.stem}_{number:03d}.mkv")
            if not paths[-1].exists():
                _write(paths[-1], _frames(record, f"{file}: record {number}"))
    return paths


def _records(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while head := file.read(_LENGTH + _CHECKSUM):
            size = struct.unpack("<Q", head[:_LENGTH])[0] if len(head) == _LENGTH + _CHECKSUM else -1
            # What is left of the file bounds the length, so that a damaged one asks for no memory.
            if not 0 <= size <= os.fstat(file.fileno()).st_size - file.tell() - _CHECKSUM:
                raise UserError(f"{path}: damaged or cut short; download it again")
            yield file.read(size)
            file.read(_CHECKSUM)


def _frames(record: bytes, where: str) -> np.ndarray:
    """Return the frames of an example, uint8 [F, 64, 64, 3]."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto.tf_example_generated_pb2 import Example

    try:
        features = Example.FromString(record).features.feature
        encoded = []
        while (name := f"{len(encoded)}/image_aux1/encoded") in features:
            encoded.append(features[name].bytes_list.value[0])
        frames = [_pixels(data) for data in encoded]
    except (DecodeError, IndexError, OSError) as error:
        raise UserError(f"{where}: damaged ({error}); download it again") from error
    if not frames:
        raise UserError(f"{where} has no frames 0/image_aux1/encoded; --input is the folder softmotion30_44k of BAIR")
    return np.stack(frames)


def _pixels(data: bytes) -> np.ndarray:
    if len(data) == np.prod(_SIZE):
        return np.frombuffer(data, np.uint8).reshape(_SIZE)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _write(path: Path, video_FYX3: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    with av.open(str(partial.absolute()), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(_FPS))
        stream.height, stream.width, stream.pix_fmt = *video_FYX3.shape[1:3], "bgr0"
        for frame in video_FYX3:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    os.replace(partial, path)
