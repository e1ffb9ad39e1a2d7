"""Bad input of every kind: it is named with the reason and counted, the rest goes on, and nothing written is damaged."""

import contextlib
import dataclasses
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import zlib
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from test_video import make_damaged, numbered_video, write_with_keyframes
from tokens import run_config, write_tokens

from lumos import cli, config_loading
from lumos.checkpoint import Checkpointer
from lumos.config import DataConfig
from lumos.data import decoder
from lumos.data.index import index
from lumos.data.manifest import read_manifest
from lumos.data.pipeline import make_pipeline
from lumos.data.records import RecordSource, RecordWriter
from lumos.data.video_writer import write_video
from lumos.errors import UserError
from lumos.evaluation import report
from lumos.training.match_data import match_data

DATA = DataConfig()


def rejected(summary) -> dict[str, str]:
    lines = map(json.loads, summary.rejected_list.read_text().splitlines())
    return {Path(line["path"]).name: line["reason"] for line in lines}


def clips_config(manifest, **data):
    config = config_loading.default()
    config.task, config.data.source, config.data.path = "tokenizer", "clips", str(manifest)
    config.data.buckets, config.data.batch_size, config.data.num_threads = ((5, 32, 32),), 2, 0
    for name, value in data.items():
        config.data[name] = value
    return config_loading.parse(config)


# Files ---------------------------------------------------------------------------------------------------------------


def write_odd_but_good(folder: Path) -> None:
    video = numbered_video(24)
    folder.mkdir(parents=True)
    with av.open(str(folder / "ten_bit.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p10le"
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    write_with_keyframes(folder / "rotated.mp4", video, 24, rotation=90)
    write_video(folder / "one_frame.mp4", video[:1], 24)
    shutil.copy(folder / "rotated.mp4", folder / "really_mp4.webm")
    with av.open(str(folder / "variable_rate.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt, stream.time_base = 32, 48, "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, frame in zip(np.cumsum([10, 40, 90, 20] * 6), video):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = int(time), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    Image.fromarray(numbered_video(1, 33, 47)[0]).save(folder / "odd_size.png")
    write_video(folder / "odd_size.gif", numbered_video(24, 33, 47), 24)


def write_huge(folder: Path) -> dict[str, str]:
    """Write small files that would unpack to gigabytes, or claim to be that large."""
    header = b"IHDR" + (60_000).to_bytes(4) + (60_000).to_bytes(4) + bytes([8, 2, 0, 0, 0])
    body = b"\x89PNG\r\n\x1a\n" + len(header[4:]).to_bytes(4) + header + zlib.crc32(header).to_bytes(4)
    (folder / "pixels.png").write_bytes(body + bytes(100))
    gif = bytearray((folder / "odd_size.gif").read_bytes())
    gif[6:10] = (12_000).to_bytes(2, "little") * 2
    (folder / "pixels.gif").write_bytes(gif)
    with (folder / "bytes.mp4").open("wb") as file:
        file.truncate(30 * 10**9)  # sparse: takes no space
    write_video(folder / "seconds.mp4", numbered_video(3), fps=0.01)
    return {
        "pixels.png": "",  # Pillow's own limit, or ours
        "pixels.gif": "is more than 9437184 pixels",
        "bytes.mp4": "30.0 GB is more than 20 (data.limits)",
        "seconds.mp4": "s is more than 60 (data.limits)",
    }


def flip_bits(path: Path, target: Path, share: float, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    places = rng.integers(0, data.size, max(1, int(share * data.size)))
    data[places] ^= (1 << rng.integers(0, 8, places.size)).astype(np.uint8)
    target.write_bytes(data.tobytes())


def test_every_kind_of_file_is_used_or_named_with_the_reason(tmp_path):
    folder = tmp_path / "clips"
    write_odd_but_good(folder)
    shutil.copy(folder / "odd_size.png", folder / "really_png.mp4")
    shutil.copy(folder / "rotated.mp4", folder / "really_mp4.jpg")
    good = {path.name for path in folder.iterdir()}
    reasons = make_damaged(folder) | write_huge(folder)
    flip_bits(folder / "rotated.mp4", folder / "flipped.mp4", 0.05)
    (folder / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")
    reasons |= {"flipped.mp4": "damaged", "playlist.mp4": "damaged or not a video"}
    limits = dataclasses.replace(DATA, limits=(DATA.limits[0], 60.0, DATA.limits[2]))
    summary = index(folder, tmp_path / "clips.jsonl", limits)
    assert {row["id"] for row in read_manifest(summary.manifest)} == good
    told = rejected(summary)
    assert told.keys() == reasons.keys() and summary.rejected == len(reasons)
    for name, reason in reasons.items():
        assert reason in told[name] and "\n" not in told[name], (name, told[name])
    for row in read_manifest(summary.manifest):
        frames = min(row["frames"], 5)
        clip = decoder.read_clip(row["path"], num_frames=frames, height=24, width=24)
        assert clip.shape == (frames, 24, 24, 3) and clip.max() > 8


@pytest.mark.parametrize(
    "trouble, limit, reason",
    [
        ("os.abort()", "", r"the decoder crashed \(SIGABRT\)"),
        ("time.sleep(100)", "decoder.SECONDS_PER_FILE = 1", "decoding took longer than 600 s"),
        ("np.ones(1 << 40)", "", "decoding needs more than 4 GiB of memory"),
        ("ctypes.string_at(1)", "", r"the decoder crashed \(SIGSEGV\)"),
    ],
)
def test_a_decoder_that_crashes_hangs_or_bloats_costs_a_worker_and_not_the_run(
    tmp_path, monkeypatch, trouble, limit, reason
):
    write_video(tmp_path / "good.mp4", numbered_video(5), 8)
    (tmp_path / "bad.mp4").write_bytes((tmp_path / "good.mp4").read_bytes())
    code = f"""
import ctypes, os, time, numpy as np
from lumos.data import decoder, video
real = video.read_clip
def read_clip(path, **arguments):
    if path.name == "bad.mp4":
        {trouble}
    return real(path, **arguments)
video.read_clip = read_clip
{limit}
decoder._serve()
"""
    decoder.close()
    monkeypatch.setattr(decoder, "_COMMAND", (sys.executable, "-c", code))
    try:
        for _ in range(2):
            with pytest.raises(UserError, match=f"bad.mp4: {reason}"):
                decoder.read_clip(tmp_path / "bad.mp4", num_frames=5, height=32, width=32)
            assert decoder.read_clip(tmp_path / "good.mp4", num_frames=5, height=32, width=32).shape == (5, 32, 32, 3)
    finally:
        decoder.close()


def test_workers_outlive_a_signal_to_all_processes(tmp_path):
    """SIGTERM asks the run to save: until it ends, no clip may be missed, or the losses would be others."""
    write_video(tmp_path / "good.mp4", numbered_video(5), 8)
    decoder.close()
    decoder.read_clip(tmp_path / "good.mp4", num_frames=5, height=32, width=32)
    (worker,) = decoder._started
    worker._process.send_signal(signal.SIGTERM)
    assert decoder.read_clip(tmp_path / "good.mp4", num_frames=5, height=32, width=32).shape == (5, 32, 32, 3)
    assert decoder._started == [worker]


def test_a_run_replaces_bad_clips_and_counts_them(tmp_path, caplog):
    """Files that went bad after they were indexed: gone, emptied, cut."""
    for i in range(40):
        write_video(tmp_path / "clips" / f"{i:02d}.mp4", numbered_video(5), 8)
    summary = index(tmp_path / "clips", tmp_path / "clips.jsonl", DATA)
    bad = ["03.mp4", "11.mp4", "20.mp4"]
    (tmp_path / "clips" / bad[0]).unlink()
    (tmp_path / "clips" / bad[1]).write_bytes(b"")
    data = (tmp_path / "clips" / bad[2]).read_bytes()
    (tmp_path / "clips" / bad[2]).write_bytes(data[: len(data) // 2])
    with caplog.at_level(logging.WARNING):
        with make_pipeline(clips_config(summary.manifest), "train", process_index=0, process_count=1) as pipeline:
            for _ in range(20):
                next(pipeline)
            assert pipeline.num_replaced == len([name for name in bad if name in caplog.text]) > 0


# Captions ------------------------------------------------------------------------------------------------------------


def test_captions_of_every_kind(tmp_path):
    texts = {
        "empty": b"", "huge": b"word " * 10**6, "invalid": b"caf\xe9 \xff\xfe", "control": b"a\x00red\x1b[31m\tcircle\x7f\r\n",
        "surrogate": "half \U0001f600".encode("utf-16-le"), "right_to_left": "\u202etxet".encode(), "good": "größer".encode(),
    }  # fmt: skip
    for name, text in texts.items():
        write_video(tmp_path / "clips" / f"{name}.mp4", numbered_video(5), 8)
        (tmp_path / "clips" / f"{name}.txt").write_bytes(text)
    summary = index(tmp_path / "clips", tmp_path / "clips.jsonl", DATA)
    captions = {row["id"].removesuffix(".mp4"): row["caption"] for row in read_manifest(summary.manifest)}
    assert set(rejected(summary)) == {"invalid.mp4", "surrogate.mp4"}
    assert "caption file cannot be read" in rejected(summary)["invalid.mp4"]
    assert captions["empty"] == "" and len(captions["huge"]) <= 10_000 and captions["good"] == "größer"
    assert captions["control"] == "a red [31m circle"
    with make_pipeline(clips_config(summary.manifest), "train", process_index=0, process_count=1) as pipeline:
        batches = [next(pipeline) for _ in range(10)]
        assert pipeline.num_truncated > 0 and max(batch["text_length"].max() for batch in batches) == 24


def test_files_beside_clips_of_every_kind(tmp_path):
    good = {
        "a.txt": (b"\xef\xbb\xbfa dog\r\n", "a dog"), "b.txt": (b"", ""), "c.json": (b'\xef\xbb\xbf{"caption": "a dog"}', "a dog"),
        "d.json": (b'{"Text": "a dog"}', "a dog"), "e.json": (b'{"caption": ["a dog"], "prompt": "x"}', "a dog"),
        "f.json": (b'{"caption": null, "fps": 3}', ""), "g.json": (b'{"title": "x"}', ""), "h.txt": ("größer".encode() * 4000, "größer" * 1666 + "größ"),
        "i.txt": (b"[music]", "[music]"), "j.json": (b'{"caption": ""}', ""), "k.json": (b"{}", ""),
    }  # fmt: skip
    bad = {
        "l.txt": ("a dog".encode("utf-16"), "UTF-16"), "m.txt": ("a dog".encode("utf-16-le"), "UTF-16"), "n.txt": (b"caf\xe9", "not UTF-8"),
        "o.json": (b'{"caption": ["a", 2]}', "got int 2"), "p.json": (b'[{"caption": "a"}]', "an object"),
        "q.json": (b'"a dog"', "an object"), "r.json": (b"", "Expecting value"), "s.json": (b'{"caption": 5}', "must be text"),
        "t.json": (b'{"caption": {"en": "a"}}', "must be text"), "u.json": (b'{"text": "a", "prompt": "b"}', "may both be the caption"),
        "v.json": ('{"caption": "a"}'.encode("utf-16"), "UTF-16"), "w.txt": (b"['a', 'b']", "written as text"),
        "x.json": (b'{"caption": "a", "caption": "b"}', "there twice"), "y.json": (b"{" * 9999, "cannot be read"),
    }  # fmt: skip
    for name, (content, _) in (good | bad).items():
        write_video(tmp_path / "clips" / f"{name[0]}.png", numbered_video(1), 8)
        (tmp_path / "clips" / name).write_bytes(content)
    summary = index(tmp_path / "clips", tmp_path / "clips.jsonl", DATA)
    captions = {row["id"][0]: row["caption"] for row in read_manifest(summary.manifest)}
    assert captions == {name[0]: caption for name, (_, caption) in good.items()}
    told = rejected(summary)
    assert len(told) == len(bad)
    for name, (_, reason) in bad.items():
        assert "its caption file cannot be read" in told[f"{name[0]}.png"] and reason in told[f"{name[0]}.png"], told[
            f"{name[0]}.png"
        ]


def test_captions_cannot_break_out_of_the_report(tmp_path):
    """What is shown goes into the page as escaped text, or as JSON in which nothing ends the script."""
    evil = "\"></script><script>alert(1)</script>' onload=x &amp; \u202e$title <!--"
    number = {"value": 1.0, "low": 0.5, "high": 1.5, "n": 2, "protocol": evil, "better": evil}
    video = {"group": evil, "file": '../"><b>.mp4', "caption": evil}
    content = {"cell": {"run": evil, evil: evil}, "metrics": {evil: number}, "videos": [video], "facts": {"note": evil}}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "row.json").write_text(json.dumps(content))
    results = {"name": evil, "prompt_accuracy": {evil: evil}, "versions": {"x": evil}}
    failed = [{"cell": {"run": evil}, "reason": evil}]
    page = report.write(tmp_path, [tmp_path], results, {}, failed=failed).read_text()
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, {name for name, _ in attributes}))
    parser.feed(page)
    assert [tag for tag, _ in tags].count("script") == 2 and not {"b", "video"} & {tag for tag, _ in tags}
    assert not any("onload" in names for _, names in tags)
    data = page.split('id="data">')[1].split("</script>")[0]
    assert json.loads(data)["rows"][0]["videos"][0]["caption"] == evil and "<" not in data
    assert json.loads((tmp_path / "rows.json").read_text())[0]["cell"][evil] == evil


# Manifests and lists -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"path": "../secret.mp4"}, "leads out of the folder"),
        ({"path": "a/../../secret.mp4"}, "leads out of the folder"),
        ({"id": "1"}, "the id '1' was given before"),
        ({"frames": -1}, "frames must not be -1"),
        ({"frames": "5"}, "frames must not be '5'"),
        ({"width": 0}, "0x32 pixels"),
        ({"fps": float("nan")}, "fps must not be nan"),
        ({"caption": None}, "caption must not be None"),
        ({"path": 7}, "path must not be 7"),
        ({"duration": 1e300}, r"duration must not be 1e\+300"),
    ],
)
def test_a_bad_manifest_is_refused_with_the_line(tmp_path, change, message):
    row = {"path": "x.mp4", "caption": "", "duration": 1.0, "fps": 8.0, "width": 48, "height": 32, "frames": 8}
    lines = [row | {"id": "1"}, row | {"id": "2"} | change]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=f"m.jsonl:2.*{message}"):
        read_manifest(tmp_path / "m.jsonl")


def test_lists_with_traversal_and_control_characters(tmp_path):
    write_video(tmp_path / "clips" / "good.mp4", numbered_video(5), 8)
    write_video(tmp_path / "outside.mp4", numbered_video(5), 8)
    names = [
        "good.mp4",
        "../outside.mp4",
        "nul\0.mp4",
        "x" * 5000 + ".mp4",
        "$(touch pwned).mp4",
        "good.mp4",
        "-f.mp4",
        "concat:a|b.mp4",
    ]
    (tmp_path / "clips" / "list.jsonl").write_text("".join(json.dumps({"path": name}) + "\n" for name in names))
    summary = index(tmp_path / "clips" / "list.jsonl", tmp_path / "m.jsonl", DATA)
    assert [row["id"] for row in read_manifest(summary.manifest)] == ["good.mp4"]
    told = [json.loads(line)["reason"] for line in summary.rejected_list.read_text().splitlines()]
    assert "leads out of the folder of the list" in told[0] and "given before" in " ".join(told) and len(told) == 7
    assert not list(tmp_path.rglob("pwned*"))


# Records -------------------------------------------------------------------------------------------------------------


def damage_one_record(shard: Path) -> int:
    """Flip a bit where it makes one record unreadable; return which."""
    whole = shard.read_bytes()
    for place in range(300, 20_000, 101):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        bad = []
        with contextlib.suppress(UserError):  # the index of the file is hit
            for i in range(len(source := RecordSource([shard]))):
                try:
                    source[i]
                except UserError:
                    bad.append(i)
        if len(bad) == 1:
            return bad[0]
    raise AssertionError("no place found")


def test_a_damaged_record_is_replaced_and_a_missing_shard_is_refused(tmp_path, caplog):
    folder = write_tokens(tmp_path / "tokens")
    config = match_data(run_config(folder, data__num_threads=0))
    shard = folder / "train-00001-of-00002.array_record"
    broken = damage_one_record(shard)
    with caplog.at_level(logging.WARNING), make_pipeline(config, "train", process_index=0, process_count=1) as pipeline:
        for _ in range(8):  # an epoch
            next(pipeline)
        assert pipeline.num_replaced == 1
    assert f"{shard}: record {broken} is damaged" in caplog.text
    shard.unlink()
    with pytest.raises(UserError, match="1 of 00002 shards of split 'train'; finish `lumos tokenize`"):
        make_pipeline(config, "train", process_index=0, process_count=1)


# Disks ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def full_disk():
    """No file can grow beyond 4 kB; the system says so as it does when a quota is used up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_while_writing_tokens_leaves_whole_shards_only(tmp_path):
    record = {
        "tokens": np.random.default_rng(0).integers(0, 2**31, (5, 8, 8)).astype(np.uint32),
        "caption": "",
        "id": "0",
    }

    def write(name):
        with RecordWriter(tmp_path / name) as writer:
            for _ in range(100):
                writer.write(record)

    write("first.array_record")
    before = (tmp_path / "first.array_record").read_bytes()
    for name in ("first.array_record", "second.array_record"):
        with full_disk(), pytest.raises(UserError, match=f"cannot write .*{name}: ") as caught:
            write(name)
        assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"first.array_record", "first.array_record.places"}
    assert (tmp_path / "first.array_record").read_bytes() == before


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.png"])
def test_a_full_disk_while_writing_samples_leaves_nothing_half_written(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    with full_disk(), pytest.raises(UserError, match=f"cannot write .*{name}: "):
        write_video(tmp_path / name, noise, 8)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def read_only():
    """A folder that this process may read and not write: root drops its privileges for the test."""
    folder = Path(tempfile.mkdtemp())
    write_tokens(folder / "tokens")
    write_video(folder / "clips" / "a.mp4", numbered_video(5), 8)
    run_config(folder / "tokens").save(folder / "config.json")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    user = os.geteuid()
    if not user:
        os.seteuid(65534)
    yield folder
    os.seteuid(user)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_folder_ends_every_command_in_one_line(read_only, capsys):
    for arguments in (
        ["train", f"--config={read_only}/config.json", f"--workdir={read_only}/run"],
        ["train", f"--config={read_only}/config.json", f"--workdir={read_only}"],
        ["data", "index", f"--input={read_only}/clips", f"--out={read_only}/m.jsonl"],
    ):
        assert cli.main(arguments) == 2
        message = capsys.readouterr().err.strip()
        assert message.startswith("lumos: error: ") and str(read_only) in message and "denied" in message, message
        assert message.count("\n") == 0
    with pytest.raises(UserError, match="cannot write .*/t.array_record"):
        RecordWriter(read_only / "t.array_record").close()
    with pytest.raises(UserError, match="cannot write .*/v.gif: Permission denied"):
        write_video(read_only / "v.gif", numbered_video(2), 8)
    with pytest.raises((UserError, OSError), match="denied"):
        Checkpointer(read_only / "run")


# No code from data ---------------------------------------------------------------------------------------------------


def test_nothing_is_unpickled_and_no_shell_is_called():
    """Readers that run code are not used anywhere; subprocesses get lists, never a line for a shell. One file writes pickles,
    which Jasmine reads."""
    root = Path(cli.__file__).parent
    files = [path for path in [*root.rglob("*.py"), *(root / "tokenizers").rglob("*.py")]]
    assert len(files) > 50
    for path in files:
        text = path.read_text()
        if "class _Unpickler(pickle.Unpickler)" in text and "def find_class" in text:
            continue  # refuses all but numbers, arrays and containers; test_interop_*.py, test_metric_networks.py
        if path != root / "interop" / "frames.py":
            assert "import pickle" not in text, path
        for word in (
            "pickle.load",
            "allow_pickle=True",
            "yaml.load(",
            "os.system",
            "shell=True",
            "os.popen",
        ):
            assert word not in text, f"{path}: {word}"


def test_prompts_are_neither_paths_nor_shell_words(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from lumos.videos import video_files

    evil = "../../x; $(touch pwned) `id` \0\n"
    made = SimpleNamespace(videos=np.zeros((2, 2, 16, 16, 3), np.uint8))
    values = config_loading.default()
    values.generate.fps = 8.0
    fake = SimpleNamespace(generate_batches=lambda *_, **__: [made], config=config_loading.parse(values), step=6)
    monkeypatch.setattr(video_files.Generator, "load", lambda *_: fake)
    monkeypatch.chdir(tmp_path)
    paths = video_files.generate("run", video_files.Request(prompts=(evil, "-rf /")), tmp_path / "out")
    assert [path.name for path in paths] == ["000.mp4", "001.mp4"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["000.mp4", "001.mp4", "out"]


def test_a_transformer_that_is_given_clips_is_told_to_tokenize_them(tmp_path):
    config = run_config(write_tokens(tmp_path / "tokens"), data__source="moving_shapes")
    with pytest.raises(UserError, match="a transformer trains on tokens; make them with lumos tokenize"):
        match_data(config)


def test_the_name_of_an_unknown_field_cannot_break_the_line():
    with pytest.raises(UserError, match=r"^unknown field 'a\\nb' in config\.loss; allowed: chunk, ") as error:
        config_loading.parse({"loss": {"a\nb": 1}})
    assert "\n" not in str(error.value)
