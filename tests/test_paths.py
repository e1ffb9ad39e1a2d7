"""Paths that people give: outputs are looked at before the work, and odd names mean what they say."""

import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from test_find_files import make
from tokens import run_config, write_tokens

from lumos import cli, config_loading, outputs
from lumos.checkpoint import read_config
from lumos.data.sources import parse_paths
from lumos.errors import UserError, printable
from lumos.training.match_data import match_data
from lumos.videos import video_files

# Outputs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bad_outputs():
    """Places that cannot become a folder, and the reason; root drops its privileges for the test."""
    folder = Path(tempfile.mkdtemp())
    (folder / "file").write_text("mine")
    (folder / "broken").symlink_to("nowhere")
    folder.chmod(0o555)
    user = os.geteuid()
    if not user:
        os.seteuid(65534)
    yield {
        "": "is empty",
        f"{folder}/file": "is a file, not a folder",
        f"{folder}/file/a/b": "is a file, not a folder",
        f"{folder}/broken/a": "is a link to a folder that is not there",
        f"{folder}/a/b": "permission denied",
        "/proc/a": "cannot write in /proc",  # root may, says the system
        f"{folder}/{'x' * 240}/a": "a name of more than 230 bytes",
        os.fsdecode(os.fsencode(folder) + b"/\xff"): "is not UTF-8",
        "ftp://host/a": "ftp:// is not read; give a local path or one of gs://, s3://",
        "~/a": "the shell fills in ~",
    }
    os.seteuid(user)
    folder.chmod(0o755)
    shutil.rmtree(folder)


_CONFIG = "--config=configs/demo.py:tokenizer,smoke"


@pytest.mark.parametrize(
    "verb, flag",
    [
        (["demo"], "workdir"),
        (["data", "index", "--input=clips"], "out"),
        (["data", "record", "--game=vizdoom"], "out"),
        (["data", "shapes", _CONFIG], "config.data.path"),
        (["data", "vocab", "--manifest=m.jsonl"], "out"),
        (["train", _CONFIG], "workdir"),
        (["tokenize", _CONFIG, "--workdir=run"], "out"),
        (["generate", "--workdir=run"], "out"),
        (["evaluate", "--workdir=run"], "out"),
        (["convert", "--from=lumos", "run"], "to"),
        (["convert", "--from=cosmos", "weights"], "to"),
    ],
)  # fmt: skip
def test_every_verb_looks_at_its_output_first(bad_outputs, capsys, verb, flag):
    """None of the inputs is there: an error about one of them would mean that work had begun."""
    for place, reason in bad_outputs.items():
        if verb[:2] in (["data", "index"], ["data", "vocab"]) and place:
            place += "/m.jsonl"
        assert cli.main([*verb, f"--{flag}={place}"]) == 2
        message = capsys.readouterr().err
        assert f"--{flag}" in message and reason in message and message.count("\n") == 1, message


def test_nothing_is_made_by_looking(tmp_path):
    assert outputs.check_folder(tmp_path / "a" / "b", "--out") == tmp_path / "a" / "b"
    assert outputs.check_file(tmp_path / "a" / "b.jsonl", "--out", (".jsonl",)) == tmp_path / "a" / "b.jsonl"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "out, message",
    [
        ("m.csv", "must be a file name that ends in .jsonl"),
        ("clips", "must be a file name that ends in .jsonl"),
        (".jsonl", "must be a file name that ends in .jsonl"),
        ("folder.jsonl", "is a folder"),
        ("new.jsonl/", "is a folder"),
        ("m.rejected.jsonl", "are those of the lists of rejected files"),
    ],
)
def test_where_an_index_cannot_go(tmp_path, monkeypatch, capsys, out, message):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "clips" / "a.png")
    (tmp_path / "folder.jsonl").mkdir()
    assert cli.main(["data", "index", "--input=clips", f"--out={out}"]) == 2
    assert message in capsys.readouterr().err


def test_an_index_never_overwrites_its_list(tmp_path, capsys):
    make(tmp_path / "a.png")
    for name in ("list.jsonl", "other.rejected.jsonl"):
        (tmp_path / name).write_text('{"path": "a.png", "caption": "x"}\n')
    (tmp_path / "link.jsonl").symlink_to("list.jsonl")
    for source, out in (
        ("list.jsonl", "list.jsonl"),
        ("list.jsonl", "link.jsonl"),
        ("link.jsonl", "list.jsonl"),
        ("other.rejected.jsonl", "other.jsonl"),
    ):
        assert cli.main(["data", "index", f"--input={tmp_path}/{source}", f"--out={tmp_path}/{out}"]) == 2
        assert "would overwrite" in capsys.readouterr().err
        assert (tmp_path / source).read_text() == '{"path": "a.png", "caption": "x"}\n'


def test_workdirs_in_which_checkpoints_would_be_lost_are_refused(tmp_path, capsys):
    for name in ("a[1]", "a*", "a?", "a\\b"):
        assert cli.main(["train", _CONFIG, f"--workdir={tmp_path}/{name}/run"]) == 2
        assert "checkpoints cannot be written below a folder with" in capsys.readouterr().err
    outputs.check_workdir(tmp_path / "10:30 a=2,c%~ü" / "run", "--workdir")


# Generation ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def generator(monkeypatch, tmp_path):
    """A generator that makes black videos and counts how often it was loaded."""
    monkeypatch.chdir(tmp_path)
    loads = []
    values = config_loading.default()
    values.generate.fps = 8.0
    config = config_loading.parse(values)
    made = lambda prompts, **_: [SimpleNamespace(videos=np.zeros((len(prompts), 2, 16, 16, 3), np.uint8))]
    fake = SimpleNamespace(generate_batches=made, config=config, step=6, read_given=lambda *_: None)
    monkeypatch.setattr(video_files.Generator, "load", lambda *_: loads.append(1) or fake)
    return loads


@pytest.mark.parametrize(
    "out",
    [
        "12:30:00.mp4",
        "a:b.gif",
        "-x.mp4",
        "--y.png",
        "a b/c,d=1/[e]*?.mp4",
        "new\nline.mp4",
        "ü%d.gif",
        "{a}.mp4",
        "X.MP4",
        "~.mp4",
    ],
)
def test_videos_of_odd_names_are_written(generator, out):
    assert cli.main(["generate", "--workdir=run", "--prompt=x", f"--out={out}"]) == 0
    assert Path(out).stat().st_size > 100
    assert [path.name for path in Path(out).parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("out", ["videos", "10:30/videos", "v1.2/", "made.v2", "-dash"])
def test_folders_of_odd_names_are_written(generator, out):
    Path("made.v2").mkdir()
    assert cli.main(["generate", "--workdir=run", "--prompt=x", "--prompt=y", f"--out={out}"]) == 0
    assert sorted(path.name for path in Path(out).iterdir()) == ["000.mp4", "001.mp4"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--out=a.avi"], "unknown format .avi"),
        (["--out=v1.2"], "unknown format .2"),
        (["--out=.mp4"], "unknown format .mp4"),
        (["--out=x/.gif"], "unknown format .gif"),
        (["--out=folder.mp4"], "is a folder"),
        (["--out=file/a.mp4"], "is a file, not a folder"),
        (["--out=file"], "is a file, not a folder"),
        (["--out=a.mp4", "--prompt=x", "--prompt=y"], "is one file but there are 2 prompts"),
        (["--out=" + "x" * 250 + ".mp4"], "a name of more than 230 bytes"),
        (["--out=taken"], "000.mp4 is a folder"),
        (["--out=a.mp4"], "no prompt: give --prompt"),
        (["--out=a.mp4", "--image=absent.png"], "absent.png: no such file"),
        (["--out=a.mp4", "--video=folder.mp4"], "folder.mp4: not a file"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_or_read_is_found_before_the_model_is_loaded(generator, capsys, flags, message):
    Path("folder.mp4").mkdir()
    Path("taken/000.mp4").mkdir(parents=True)
    Path("file").write_text("")
    assert cli.main(["generate", "--workdir=run", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and generator == []


def test_a_prompt_with_anything_in_it_is_kept_in_the_metadata(generator):
    video_files.generate("run", video_files.Request(prompts=("a\udce9 b\x00c\x1b[31m\n d",)), "a.mp4")
    with av.open("a.mp4") as container:
        assert container.metadata["comment"].startswith("prompt: a  b c [31m\n d\n")


# data.path and configs -----------------------------------------------------------------------------------------------


def test_names_that_exist_are_whole_in_data_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b=2.jsonl", "x=2", "x", "plain", "c,d", "c", " lead", 'q"t', "new\nline", "y=0", "e,", "=3"):
        Path(name).write_text("")
    for text, pairs in {
        "a,b=2.jsonl": [("a,b=2.jsonl", 1)],
        "a,b=2.jsonl=3,plain": [("a,b=2.jsonl", 3), ("plain", 1)],
        "plain, a,b=2.jsonl = 3": None,
        "plain, a,b=2.jsonl=3": [("plain", 1), ("a,b=2.jsonl", 3)],
        "x=2": [("x=2", 1)],
        "x=3": [("x", 3)],
        "x=2=.5": [("x=2", 0.5)],
        '"x"=2': [("x", 2)],
        "c,d": [("c,d", 1)],
        '"c",plain': [("c", 1), ("plain", 1)],
        "c,d=2,c=3": [("c,d", 2), ("c", 3)],
        '"c,d" = 2.5 , "q""t"': [("c,d", 2.5), ('q"t', 1)],
        'q"t=4': [('q"t', 4)],
        " lead": [(" lead", 1)],
        "new\nline=2,x": [("new\nline", 2), ("x", 1)],
        "y=0": [("y=0", 1)],
        "e,,plain": [("e,", 1), ("plain", 1)],
        "plain,,x,": [("plain", 1), ("x", 1)],
        "=3": [("=3", 1)],
        '"not there, yet"=2': [("not there, yet", 2)],
        "absent=2,gone": [("absent", 2), ("gone", 1)],
        "": [],
        " , ": [],
        "plain=0": None,
        "plain=-1": None,
        '"plain"=two': None,
        "=7": None,
        "plain,typo": None,
        "a,b.jsonl,plain": None,
    }.items():
        if pairs is None:
            with pytest.raises(UserError, match="config.data.path"):
                parse_paths(text)
        else:
            assert parse_paths(text) == pairs, text
    with pytest.raises(
        UserError, match="no file or folder 'typo'. It is read as 'plain' with weight 2, 'typo' with weight 1"
    ):
        parse_paths("plain=2,typo")


def test_tokens_in_folders_of_odd_names_are_trained_on(tmp_path):
    folders = [write_tokens(tmp_path / name) for name in ("a,b=2", "c=1 [x]*?")]
    for text in (f"{folders[0]}", f"{folders[1]}", f"{folders[0]}=3,{folders[1]}", f'"{folders[1]}"=2,"{folders[0]}"'):
        assert match_data(run_config(text)).model.visual_vocab == 30


def test_configs_in_folders_with_colons(tmp_path):
    folder = tmp_path / "10:30"
    folder.mkdir()
    (folder / "c.py").write_text(
        "from lumos import config_loading\ndef get_config(variant=''):\n    c = config_loading.default()\n    c.name = variant or 'plain'\n    return c\n"
    )
    assert config_loading.load(f"{folder}/c.py").name == "plain"
    assert config_loading.load(f"{folder}/c.py:tiny,smoke").name == "tiny,smoke"
    config_loading.load(f"{folder}/c.py:tiny").save(folder / "config.json")
    assert config_loading.load(f"{folder}/config.json").name == "tiny"


def test_messages_stay_on_one_line(tmp_path, capsys):
    assert printable("a\nb\x1b[31m\udce9\u2028ü") == "a\\nb\\x1b[31m\\udce9\\u2028ü"
    assert cli.main(["data", "vocab", f"--manifest={tmp_path}/a\nb.jsonl", f"--out={tmp_path}/t.model"]) == 2
    assert "a\\nb.jsonl: no such file" in capsys.readouterr().err


def test_home_folders_are_written_by_the_shell_or_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make(Path("clips/a.png"))
    for arguments in (["--input=~/clips", "--out=m.jsonl"], ["--input=clips", "--out", "~/m.jsonl"]):
        assert cli.main(["data", "index", *arguments]) == 2
        assert f"write {Path.home()}/" in capsys.readouterr().err
    make(Path("~/a.png"))
    assert cli.main(["data", "index", "--input=~", "--out=~/m.jsonl"]) == 0
    assert Path("~/m.jsonl").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["convert", "--from=lumos1", "--input=hf://a/b", "--to=run"], "--input=hf://a/b: hf:// is not read"),
        (["sweep", "--workdir=run", "--out", "gs://host/a"], "takes a local path here, which its processes share"),
        (["demo", "--workdir=gs://bucket/demo"], "takes a local path here"),
        (["data", "vocab", "--manifest=m.jsonl", "--out=ftp://bucket/text.model"], "ftp:// is not read"),
        (["train", _CONFIG, "--workdir=run", "--config.data.path=gs://bucket/shapes"], "config.data.path"),
        (["train", _CONFIG, "--workdir=run", "--config.text.model=gs://bucket/t.model"], "config.text.model"),
    ],
)
def test_no_url_becomes_a_folder(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(flags) == 2
    error = capsys.readouterr().err
    assert message in error and "\n" not in error.strip() and not list(tmp_path.iterdir())


def test_urls_inside_configs_are_read_or_refused():
    assert parse_paths("gs://bucket/a=2,gs://bucket/b") == [("gs://bucket/a", 2), ("gs://bucket/b", 1)]
    with pytest.raises(UserError, match="config.data.path=http://bucket/a: http:// is not read"):
        parse_paths("http://bucket/a=2")
    with pytest.raises(UserError, match="ftp:// is not read"):
        read_config("ftp://bucket/tokenizer")
