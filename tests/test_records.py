"""ArrayRecord shards: contents, atomicity, damage."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from lumos.data.records import RecordSource, RecordWriter
from lumos.errors import UserError


def record(number: int) -> dict:
    rng = np.random.default_rng(number)
    return {
        "tokens": rng.integers(0, 64000, (3, 4, 5), dtype=np.uint32),
        "transposed": np.arange(6, dtype=np.int16).reshape(2, 3).T,
        "score": np.float32(0.5 + number),
        "caption": f"clip {number} – größer",
        "empty": "",
        "noise": rng.integers(0, 256, 4096, dtype=np.uint8),
    }


def write(path, numbers):
    with RecordWriter(path) as writer:
        for number in numbers:
            writer.write(record(number))


def test_round_trip_over_shards(tmp_path):
    write(tmp_path / "a-00000-of-00002.array_record", range(3))
    write(tmp_path / "a-00001-of-00002.array_record", range(3, 5))
    source = RecordSource(sorted(tmp_path.glob("*.array_record")))
    assert len(source) == 5
    for number in (4, 0, 3, 2):
        read, expected = source[number], record(number)
        assert read.keys() == expected.keys()
        for name, value in expected.items():
            assert np.asarray(read[name]).dtype == np.asarray(value).dtype
            np.testing.assert_array_equal(read[name], value)


def test_a_shard_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "train.array_record"
    with RecordWriter(path) as writer:
        writer.write(record(0))
        assert not path.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"train.array_record", "train.array_record.places"}
    before = path.read_bytes()

    with pytest.raises(KeyboardInterrupt):
        with RecordWriter(path) as writer:
            writer.write(record(1))
            raise KeyboardInterrupt
    assert {p.name for p in tmp_path.iterdir()} == {"train.array_record", "train.array_record.places"}
    assert path.read_bytes() == before


def test_what_a_killed_writer_left_is_overwritten(tmp_path):
    path = tmp_path / "train.array_record"
    path.with_name("train.array_record.partial").write_bytes(b"half" * 1000)
    write(path, range(2))
    assert len(RecordSource([path])) == 2
    assert {p.name for p in tmp_path.iterdir()} == {"train.array_record", "train.array_record.places"}


def test_damage_names_file_and_record(tmp_path):
    paths = [tmp_path / "a.array_record", tmp_path / "b.array_record"]
    write(paths[0], range(2))
    write(paths[1], range(3))
    data = bytearray(paths[1].read_bytes())
    position = data.find(record(1)["noise"].tobytes())
    assert position > 0
    data[position] ^= 1
    paths[1].write_bytes(data)
    source = RecordSource(paths)
    with pytest.raises(UserError, match="b.array_record: record 1 is damaged"):
        source[3]
    assert source[2]["caption"] == record(0)["caption"]

    paths[1].write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises(UserError, match="b.array_record: damaged record file"):
        RecordSource(paths)
    with pytest.raises(UserError, match="absent.array_record: no such record file"):
        RecordSource([tmp_path / "absent.array_record"])


def test_a_folder_whose_name_is_not_utf_8_is_refused_in_one_line(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    with RecordWriter(tmp_path / "x.array_record") as writer:
        writer.write({"caption": "a"})
    shutil.copy(tmp_path / "x.array_record", folder / "x.array_record")
    with pytest.raises(UserError, match=r"caf\\udce9/x.array_record: record files are read below folders"):
        RecordSource([folder / "x.array_record"])
