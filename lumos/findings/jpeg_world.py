"""A world of JPEG files: pictures as the bytes of a codec in use, one by one or in pieces of several bytes."""

from __future__ import annotations

import dataclasses
import functools
import io
from pathlib import Path

import av
import numpy as np
import sentencepiece
from PIL import Image

from lumos.findings.file_world import shown
from lumos.findings.worlds import PixelWorld

_END = b"\xff\xd9"  # the marker that ends a file
_FIRST = 0x100  # the character that stands for byte 0 in pieces: 256 letters without spaces and marks
_PIECES = "pieces.model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class JpegWorld(PixelWorld):
    """Pictures of a plain world, each cell a square of pixels, as JPEG files of one row of `length` tokens, filled up with zeros.

    Markers and tables before the picture, 623 bytes, and the marker behind it are the same in all files: they are left out, and come back
    before a file is decoded. A token is a byte, or with `pieces` one of so many pieces of bytes (byte-pair encoding, learnt from the files of
    the training split). A file that a decoder finds an error in shows no cells.
    """

    frames: int = 1
    side: int = 8
    background: str = "plain"
    pixels: int = 4  # rows and columns of a cell
    quality: int = 25  # of JPEG; no chroma is left out
    length: int = 96
    pieces: int = 0  # vocabulary of the pieces, the 256 bytes among them; 0 = bytes

    def __post_init__(self):
        super().__post_init__()
        if self.pieces and self.pieces <= 256:
            raise ValueError(f"pieces={self.pieces}; allowed: 0, or more than the 256 bytes")

    @property
    def grid(self):
        return 1, 1, self.length

    @property
    def num_codes(self):
        return (self.pieces or 256) + 1

    def prepare(self, folder):
        if self.pieces:
            frames = self.clips("train", self.num_train).codes[:, 0]
            (folder / _PIECES).write_bytes(_learn(map(self.encode, frames), self.num_codes))

    def tokens_of(self, codes, folder):
        rows = [self._split(self.encode(clip[0]), folder) for clip in codes]
        longest = max(map(len, rows))
        if longest > self.length:
            raise ValueError(f"length={self.length}: a file has {longest} tokens; allowed: at least as many")
        return np.stack([np.pad(row, (0, self.length - len(row))) for row in rows]).astype(np.int32)[:, None, None]

    def cells_of(self, tokens, folder):
        return shown([self.decode(self._join(row, folder)) for row in tokens[:, 0, 0]], self.side)

    def encode(self, frame: np.ndarray) -> bytes:
        """Return the file of a frame [side, side] without its header and its end."""
        file = io.BytesIO()
        Image.fromarray(self.video(frame)).save(file, "JPEG", quality=self.quality, subsampling=0)
        return file.getvalue()[_start(file.getvalue()) : -len(_END)]

    def decode(self, file: bytes) -> np.ndarray | None:
        """Return the cells int32 [side, side] nearest to what a file shows; None where it has an error."""
        picture = _decode(self._header + file + _END)
        return None if picture is None else self.read(picture)

    @functools.cached_property
    def _header(self) -> bytes:
        file, size = io.BytesIO(), self.side * self.pixels
        Image.new("RGB", (size, size)).save(file, "JPEG", quality=self.quality, subsampling=0)
        return file.getvalue()[: _start(file.getvalue())]

    def _split(self, file: bytes, folder: Path) -> list[int]:
        """Return the tokens of a file; 0 stands for none."""
        if not self.pieces:
            return [byte + 1 for byte in file]
        return _pieces(folder / _PIECES).encode("".join(chr(_FIRST + byte) for byte in file))

    def _join(self, row: np.ndarray, folder: Path) -> bytes:
        """Return the bytes of a row of tokens up to the first 0."""
        tokens = row[: int(np.argmax(np.append(row, 0) == 0))].tolist()
        if not self.pieces:
            return bytes(token - 1 for token in tokens)
        return bytes(
            ord(letter) - _FIRST for token in tokens for letter in _pieces(folder / _PIECES).id_to_piece(token)
        )


def _start(file: bytes) -> int:
    """Return where the coded picture begins: behind the last header, that of the scan."""
    scan = file.index(b"\xff\xda") + 2
    return scan + int.from_bytes(file[scan : scan + 2], "big")


def _decode(file: bytes) -> np.ndarray | None:
    """Return the pixels uint8 [Y, X, 3] of a JPEG file; None where the decoder finds an error. Pillow fills such files up with grey."""
    decoder = av.CodecContext.create("mjpeg", "r")
    decoder.options = {"err_detect": "explode"}
    try:
        frames = [*decoder.decode(av.Packet(file)), *decoder.decode(None)]
    except av.error.FFmpegError:
        return None
    return frames[0].to_ndarray(format="rgb24") if frames else None


def _learn(files, size: int) -> bytes:
    """Return the sentencepiece model of byte-pair encoding with `size` pieces; number 0, "unknown", never occurs."""
    model = io.BytesIO()
    letters = "".join(chr(_FIRST + byte) for byte in range(256))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["".join(letters[byte] for byte in file) for file in files]), model_writer=model, model_type="bpe",
        vocab_size=size, required_chars=letters, character_coverage=1.0, normalization_rule_name="identity", add_dummy_prefix=False,
        split_by_unicode_script=False, split_by_number=False, split_by_whitespace=False, unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1,
        num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


@functools.lru_cache(maxsize=2)
def _pieces(path: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
