"""Lists of clips: every row is read whole or named with its line, whatever program wrote the list."""

import csv
import io
import json

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from test_index import read_lines

from lumos.config import DataConfig
from lumos.data import lists
from lumos.data.captions import clean
from lumos.data.index import index
from lumos.data.manifest import read_manifest
from lumos.data.video_writer import write_video
from lumos.errors import UserError

DATA = DataConfig()
SUFFIXES = (".png", ".mp4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for name in "abcd":
        write_video(folder / f"{name}.png", np.full((1, 16, 16, 3), 90, np.uint8), 1)
    return folder


def captions_of(folder, name, content):
    """Index a list of this content; return {id: caption} and the reasons of the rejected rows by their line."""
    path, out = folder / name, folder / "m.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    summary = index(path, out, DATA)
    rejected = read_lines(summary.rejected_list)
    assert summary.accepted + summary.rejected == len(list(lists.read(path, SUFFIXES)[0]))
    return {row["id"]: row["caption"] for row in read_manifest(out)}, {row["line"]: row["reason"] for row in rejected}


@pytest.mark.parametrize(
    "name, content, captions",
    [
        ("commas.csv", "path,caption\na.png,A dog runs, then jumps, and barks\n", {"a.png": "A dog runs, then jumps, and barks"}),
        ("thousand.csv", "path,caption\na.png,1,000 dogs\nb.png, 2,000\n", {"a.png": "1,000 dogs", "b.png": "2,000"}),
        ("inch.csv", 'path,caption\na.png,a 12" record, turning\n', {"a.png": 'a 12" record, turning'}),
        ("semicolon.csv", "path;caption\na.png;a dog, running\n", {"a.png": "a dog, running"}),
        ("semicolons.csv", "path;caption\na.png;a dog; running\n", {"a.png": "a dog; running"}),
        ("tab.csv", "path\tcaption\na.png\ta dog, running\n", {"a.png": "a dog, running"}),
        ("tab.tsv", "caption\tpath\na dog, running\ta.png\n", {"a.png": "a dog, running"}),
        ("comma.tsv", "path,caption\na.png,a dog\n", {"a.png": "a dog"}),
        ("bar.csv", "path|caption\na.png|one, two; three\n", {"a.png": "one, two; three"}),
        ("sep.csv", 'sep=;\r\npath;caption\r\na.png;"x; y, z"\r\n', {"a.png": "x; y, z"}),
        ("sep_tab.csv", '"sep=\t"\npath\tcaption\na.png\tx\n', {"a.png": "x"}),
        ("blanks.csv", ' Path , CAPTION \na.png, a dog\nb.png, "a cat, asleep"\n', {"a.png": "a dog", "b.png": "a cat, asleep"}),
        ("trailing.csv", "path ,caption \na.png ,a dog \n", {"a.png": "a dog"}),
        ("names.csv", "File Name,TEXT\na.png,hi\n", {"a.png": "hi"}),
        ("prompt.csv", "video,prompt\na.png,hi\n", {"a.png": "hi"}),
        ("own_name.csv", "prompt,caption,path\nno,yes,a.png\n", {"a.png": "yes"}),
        ("pandas.csv", ",path,caption\n0,a.png,hi\n1,b.png,ho\n", {"a.png": "hi", "b.png": "ho"}),
        ("spreadsheet.csv", "path,caption,,\na.png,hi,,\n,,,\n\n", {"a.png": "hi"}),
        ("mark.csv", "\ufeffpath,caption\na.png,größer\n", {"a.png": "größer"}),
        ("joined.jsonl", '{"path":"a.png","caption":"x"}\n\ufeff{"path":"b.png","caption":"y"}\n', {"a.png": "x", "b.png": "y"}),
        ("windows.csv", 'path,caption\r\na.png,"two\r\nlines"\r\n\r\nb.png,x', {"a.png": "two lines", "b.png": "x"}),
        ("old_mac.csv", "path,caption\ra.png,x\rb.png,y\r", {"a.png": "x", "b.png": "y"}),
        ("doubled.csv", 'path,caption\na.png,"""Hi,"" she said"\n', {"a.png": '"Hi," she said'}),
        ("brackets.csv", "path,caption\na.png,[music]\nb.png,{x}\n", {"a.png": "[music]", "b.png": "{x}"}),
        ("mark.jsonl", '\ufeff{"path":"a.png","caption":"x"}\r\n\r\n \n{"path":"b.png","caption":"y"}\n\n', {"a.png": "x", "b.png": "y"}),
        ("names.jsonl", '{"File_Name":"a.png"," Text":"x","id":7}\n', {"7": "x"}),
        ("one.jsonl", '{"path":"a.png","caption":["x"]}\n{"path":"b.png","caption":[]}\n', {"a.png": "x", "b.png": ""}),
        ("surrogate.jsonl", '{"path":"a.png","caption":"\\ud800 half","id":"\\udc80"}\n', {"\\udc80": "half"}),
    ],
)  # fmt: skip
def test_lists_of_every_kind_are_read_whole(folder, name, content, captions):
    assert captions_of(folder, name, content) == (captions, {})


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("open.csv", 'path,caption\na.png,x\nb.png,"a dog\nc.png,a cat\n', "open.csv:3: the quote that opens here is not closed"),
        ("open_late.csv", 'path,caption,id\na.png,"two\nlines","open\nc.png,a cat\n', "open_late.csv:3: the quote that opens"),
        ("taken.csv", 'path,caption\na.png,"a dog\nb.png,"a cat, asleep"\nc.png,x\n', "taken.csv:2: the quote .*line 3"),
        ("swallowed.csv", 'path,caption\na.png,x\nb.png,"a dog\nc.png,a cat"\nd.png,z\n', "swallowed.csv:3: .*takes in 'c.png,a cat' .line 4"),
        ("other_order.csv", 'caption,path\nx,a.png\n"a dog,b.png\na cat",c.png\n', "other_order.csv:3: .*takes in 'a dog,b.png' .line 3"),
        ("no_header.csv", "a.png,a dog\nb.png,x\n", "no_header.csv:1: no column for the path among 'a.png', 'a dog'; expected a path"),
        ("blanks.csv", "path caption\na.png x\n", "blanks.csv:1: no column for the path among 'path caption'.*semicolon, tab"),
        ("twice.csv", "path,caption, Caption\na.png,x,y\n", "twice.csv:1: 'caption' and 'Caption' may both be the caption"),
        ("both.csv", "file,video,caption\na.png,b.png,y\n", "both.csv:1: 'file' and 'video' may both be the path"),
        ("empty.csv", "", "empty.csv: no rows; the first line names the columns"),
        ("header.csv", "path,caption\n", "header.csv: no rows"),
        ("empty.jsonl", "\n", "empty.jsonl: no rows"),
        ("utf16.csv", "path,caption\na.png,x\n".encode("utf-16"), "utf16.csv:1: it is UTF-16"),
        ("utf16.jsonl", '{"path":"a.png"}\n'.encode("utf-16-be"), "utf16.jsonl:1: it looks like UTF-16"),
        ("utf32.csv", "path,caption\na.png,x\n".encode("utf-32"), "utf32.csv:1: it is UTF-16 or UTF-32"),
        ("latin.csv", "path,caption\na.png,x\nb.png,gr\xf6\xdfer\n".encode("latin-1"), "latin.csv:3: not UTF-8 .byte 0xf6"),
        ("latin.jsonl", b'{"path":"a.png"}\n{"path":"b.png","caption":"\xe9"}', "latin.jsonl:2: not UTF-8"),
        ("array.jsonl", '\n[{"path":"a.png"}]\n', "array.jsonl:2 must be an object with path and caption, got list"),
        ("pretty.jsonl", '{\n"path":"a.png"}\n', "pretty.jsonl:1 is not JSON .*one object a line"),
        ("twice.jsonl", '{"path":"a.png","path":"b.png"}\n', "twice.jsonl:1 .*the field 'path' is there twice"),
    ],
)  # fmt: skip
def test_damaged_lists_are_refused_with_the_line(folder, name, content, message):
    with pytest.raises(UserError, match=message) as error:
        captions_of(folder, name, content)
    assert "\n" not in str(error.value)


def test_a_row_that_cannot_be_used_is_rejected_with_its_line_and_costs_no_other(folder):
    content = (
        'path,caption,split\na.png,"two\nlines",train\nb.png,a dog, running,train\nc.png,x\n,nothing,train\n'
        "d.png,\"['a dog', 'a cat']\",train\n" + 'c.png,"[""a"", ""b""]",train\n' + "b.png,ok,train\n"
    )
    captions, reasons = captions_of(folder, "rows.csv", content)
    assert captions == {"a.png": "two lines", "b.png": "ok"}
    assert {line: reason.split(";")[0] for line, reason in reasons.items()} == {
        4: "rows.csv:4: fields: 4, columns: 3",
        5: "rows.csv:5: fields: 2, columns: 3",
        6: "rows.csv:6: no path",
        7: "rows.csv:7: the caption is a list or an object written as text, \"['a dog', 'a cat']\"",
        8: """rows.csv:8: the caption is a list or an object written as text, '["a", "b"]'""",
    }
    content = (
        'path,caption\na.png,"a dog" runs\nb.png,"a \\"dog\\""\nc.png,'
        + "x" * 140_000
        + '\nc.png,"a "dog", "cat""\nd.png,ok\n'
    )
    captions, reasons = captions_of(folder, "quotes.csv", content)
    assert captions == {"d.png": "ok"} and list(reasons) == [2, 3, 4, 5]
    assert "expected after" in reasons[2] and reasons[3].endswith("doubled") and "field larger" in reasons[4]
    rows = [
        {"path": "a.png", "caption": ["a dog", 7]}, {"path": "a.png", "caption": 5}, {"path": "a.png", "caption": {"en": "x"}},
        {"caption": "x"}, {"path": 5}, {"path": ""}, {"path": None}, {"path": ["a.png"]}, {"path": "a.png", "id": [1]},
        {"path": "a.png", "text": "x", "prompt": "y"}, {"path": "a.png", "caption": float("nan")}, {"path": "a.png", "split": True},
        {"path": "nul\0.png"}, {"path": "a.png", "caption": "good"},
    ]  # fmt: skip
    captions, reasons = captions_of(folder, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert captions == {"a.png": "good"} and list(reasons) == list(range(1, 14))
    for line, word in enumerate(
        ["got int 7", "got int 5", "got dict", "no path; its fields are 'caption'", "got 5", "no path", "no path",
         "must be text", "the id must be text", "'text' and 'prompt' may both be", "got float nan", "the split", "null"], 1,
    ):  # fmt: skip
        assert word in reasons[line], (line, reasons[line])


def test_parquet_of_every_kind(folder):

    def write(name, columns):
        table = pyarrow.table(columns)
        parquet.write_table(table, folder / name)
        return (folder / name).read_bytes()

    binary = write("binary.parquet", {"file_name": [b"a.png", b"b.png"], "text": ["x", None], "other": [b"\xff"] * 2})
    assert captions_of(folder, "binary.parquet", binary) == ({"a.png": "x", "b.png": ""}, {})
    lists = write("lists.parquet", {"path": ["a.png", "b.png", None], "caption": [["x"], ["x", "y"], ["z"]]})
    captions, reasons = captions_of(folder, "lists.parquet", lists)
    assert captions == {"a.png": "x", "b.png": "x"} and reasons[3].endswith("row 3: no path")
    assert [row.get("captions") for row in read_manifest(folder / "m.jsonl")] == [None, ["x", "y"]]
    structs = write("structs.parquet", {"video": [{"path": "a.png", "bytes": b""}], "caption": ["x"]})
    (folder / "structs.parquet").write_bytes(structs)  # a file of clips, without their bytes
    with pytest.raises(UserError, match="none of 1 files can be used, e.g. the row holds nothing"):
        index(folder / "structs.parquet", folder / "m.jsonl", DATA)
    with pytest.raises(UserError, match="none.parquet: no column for the path among 'title', 'n'"):
        captions_of(folder, "none.parquet", write("none.parquet", {"title": ["x"], "n": [1]}))
    with pytest.raises(UserError, match="cut.parquet: not a parquet file"):
        captions_of(folder, "cut.parquet", binary[: len(binary) // 2])


def test_a_list_without_captions_says_so(folder):
    (folder / "labels.csv").write_text("path,label\na.png,3\n")
    text = str(index(folder / "labels.csv", folder / "m.jsonl", DATA))
    assert "1 without caption (no caption or text or prompt or captions among the columns path, label;" in text
    (folder / "empty_captions.csv").write_text("path,caption\na.png,\n")
    assert "among the columns" not in str(index(folder / "empty_captions.csv", folder / "m.jsonl", DATA))


_captions = st.text(st.sampled_from("ab ,;|\t\"'\n.é[]{}"), max_size=12)


@settings(deadline=None, derandomize=True, max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    st.lists(_captions, min_size=1, max_size=4),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_what_csv_writers_write_comes_back(tmp_path_factory, texts, separator, quoting, end, reverse):
    """Python's writer against the reader: each caption is what was written, or its row is rejected with a reason."""
    path = tmp_path_factory.getbasetemp() / f"written{'.tsv' if separator == chr(9) else '.csv'}"
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=separator, quoting=quoting, lineterminator=end)
    for row in [("path", "caption"), *((f"{i}.png", text) for i, text in enumerate(texts))]:
        writer.writerow(row[::-1] if reverse else row)
    path.write_bytes(buffer.getvalue().encode())
    rows = list(lists.read(path, SUFFIXES)[0])
    assert [row.path for row in rows] == [f"{i}.png" for i in range(len(texts))]
    for row, text in zip(rows, texts):
        assert row.fault or clean("".join(row.captions or ())) == clean(text)
        assert not row.fault or "written as text" in row.fault and text.strip()[0] + text.strip()[-1] in ("[]", "{}")


@settings(deadline=None, derandomize=True, max_examples=300, suppress_health_check=list(HealthCheck))
@given(st.text(st.sampled_from('ab .,;"\n'), max_size=40), st.sampled_from([",", ";"]))
def test_no_row_of_a_strange_csv_file_is_lost(tmp_path_factory, body, separator):
    """Rows that begin and end the file are read whatever stands between, or the file is refused with a line."""
    path = tmp_path_factory.getbasetemp() / "strange.csv"
    path.write_text(f"path{separator}caption\nfirst.png{separator}one\n{body}\nlast.png{separator}end\n")
    try:
        rows = list(lists.read(path, SUFFIXES)[0])
    except UserError as error:
        line = int(str(error).removeprefix(f"{path}:").split(":")[0])
        assert '"' in path.read_text().split("\n")[line - 1] and "\n" not in str(error)
        return
    assert (rows[0].path, rows[0].captions) == ("first.png", ("one",))
    assert (rows[-1].path, rows[-1].captions) == ("last.png", ("end",))
    lines = path.read_text().split("\n")
    assert all(lines[row.line - 1].strip() for row in rows)
    assert len({row.line for row in rows}) == len(rows)
