"""A model that writes JPEG files, byte by byte or in pieces of bytes (T18 with a codec in use)."""

import dataclasses

from lumos.findings.file_world import FileLength, Files
from lumos.findings.finding import Above, Arm, Finding
from lumos.findings.jpeg_world import JpegWorld
from lumos.findings.measures import Loss

_BYTES = JpegWorld(quality=35, length=112, num_test=64)


def get_finding() -> Finding:
    arm = lambda steps, pieces: Arm(
        recipe="jpeg_lm", train={"train.num_steps": steps}, world=dataclasses.replace(_BYTES, pieces=pieces)
    )
    return Finding(
        name="jpeg_bytes",
        claim="A plain next-token model writes JPEG files that a decoder reads and that show what the caption says, byte by byte or in pieces "
        "of bytes, which make files shorter.",
        paper="JPEG-LM (arXiv 2408.08459), representation and generation of images",
        published="JPEG of quality 25, a vocabulary of 320 byte pairs; nearly all files of a 7 B model are valid",
        mechanism=(
            "test_findings_tokens.py::test_a_jpeg_file_is_what_pillow_writes_and_reads",
            "test_findings_tokens.py::test_pieces_are_shorter_and_say_the_same_bytes",
        ),
        world=_BYTES,
        arms={"bytes, 150 steps": arm(150, 0), "bytes": arm(1000, 0), "pieces": arm(1000, 320)},
        measures=(Loss(draws=1), Files(), FileLength()),
        checks=(
            Above(
                text="tokens of a file: bytes against 320 pieces",
                high="bytes:length", low="pieces:length", expected=15.0,
            ),
            Above(
                text="files that decode: 1000 steps against 150",
                high="bytes:files/valid", low="bytes, 150 steps:files/valid", expected=0.3,
            ),
            Above(text="more than nine in ten files decode", high="bytes:files/valid", low=0.9, expected=0.05),
            Above(
                text="more than half of the files show what the caption says, byte by byte",
                high="bytes:files/whole", low=0.5, expected=0.2,
            ),
            Above(
                text="files that show what the caption says: pieces against bytes",
                high="pieces:files/whole", low="bytes:files/whole", expected=0.1,
            ),
            Above(text="nats of a whole file: bytes against pieces", high="all:bytes", low="all:pieces", expected=0.3),
        ),
        derived=lambda arms: {name: arms[name]["nll"] * _BYTES.length for name in ("bytes", "pieces")},
        steps=1000,
        seeds=(0, 1, 2),
        cost=1.0,
        note="Pictures of 32 x 32 pixels, quality 35, without the header of 623 bytes and the end marker, which are the same in all files. A file "
        "counts as decoded if FFmpeg's decoder, told to stop at errors, finds none.",
    )  # fmt: skip
