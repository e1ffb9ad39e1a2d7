"""Every command of README.md, CONTRIBUTING.md and docs/*.md: it can be parsed, and it runs, as it stands or with what the tables below say."""

import re
import subprocess
import textwrap

import numpy as np
import pytest
from commands import REPO, commands, parse, split
from PIL import Image
from runs import write_runs
from test_measures import publish
from tokens import one_device  # noqa: F401

from lumos import cli, config_loading
from lumos.data.video_writer import write_video

# What is another here: pattern, replacement, reason. N is the number of the command.
CHANGED = [
    (r"^\.venv/bin/|^PYTHONPATH=\. ", "", "the environment of the tests"),
    (r"^source <\((.*)\)", r"\1", "what a shell would read"),
    (r"^make (\w)", rf"make -C {REPO} -n \1", "minutes to hours, and a fresh machine"),
    (r"(real_clips|demo|genie)\.py:(tokenizer|transformer|actions)", r"\1.py:\2,smoke", "size"),
    (r"--config=\S+ (--config.data.path=TOKENS)", r"--config=RUN/config.json \1", "a model of the tokens of the tests"),
    (r"\btrain \.\.\.", "train --config=RUN/config.json --workdir=new_N", "flags that are left out"),
    (r"--config=\.\.\. --workdir=\.\.\.", "--config=RUN/config.json --workdir=new_N", "flags that are left out"),
    (r"\bsweep \.\.\.", "sweep --workdir=RUN --out=SWEEP_N --measure=tokens", "flags that are left out"),
    (r"(scale=1.5,3,6 .*)steps=8,16", r"\1steps=2,3 --step=best --measure=tokens", "12 cells, and small ones"),
    (r"^(lumos launch) --cluster", r"\1 --dry_run --cluster", "no cluster"),
    (r"--num_processes=4 --devices_per_process=2", "--num_processes=2 --devices_per_process=1", "size"),
    (r"^(lumos plan (?!.*--nocompile).*)", r"\1 --nocompile", "compiling takes minutes; tests/test_plan.py does"),
    (r"--clips=4096", "--clips=8", "size"),
    (r"vocab_size=2000", "vocab_size=300", "few captions"),
    (r"networks='.*'", "networks='()'", "their weights are those of lumos-video[metrics]"),
    (r"\[20s\](.*)\[10s#\]", r"[0.5s]\1[0.5s#]", "size"),
    (
        r"^(lumos stream --workdir=RUN .*)",
        r"\1 --config.generate.cache=window --config.generate.cache.width=3 --config.generate.positions=relative "
        "--config.generate.positions.horizon=3",
        "a run whose cache keeps its size",
    ),
    (r"data index --input=FOLDER", "data index --input=my_clips", "a name"),
    (r"OTHER_SWEEP", "REPORT", "another page of this test"),
    (r"info CONFIG", "info RUN/config.json", "a name"), (r"info PATH", "info RUN", "a name"), (r"help FIELD", "help optimizer", "a name"),
    (r"--profile_at=STEP", "--profile_at=3", "a number"), (r"evaluate --seed$", "evaluate --seed=0", "a number"),
    (r"configs/FILE --topology=TOPOLOGY", "configs/lumos_1b.py --topology=v5e:16x16", "names"),
]  # fmt: skip

# What does not run here, and where it does: pattern, reason. It is parsed all the same.
NOT_HERE = [
    (r"^pip install ", "into the environment of the tests; what it names is looked up"),
    (r"^python -m lumos\.\S+docs\b", "tests/test_slots.py, test_recipes.py and test_plan.py compare what it prints"),
    (r"^python (benchmarks|tests|docs)/", "measures something, for minutes; its flags are looked up"),
    (r"^source \.venv", "the environment of the tests has lumos"),
    (r"^kill ", "tests/test_operations.py sends the signal"),
    (r"^lumos data record ", "needs lumos-video[games]; tests/test_games.py"),
    (r"^lumos replay ", "needs a step that went wrong; tests/test_health.py"),
    (r"^lumos upload ", "publishes; tests/test_api.py uploads to a stand-in of the Hub"),
    (r"^lumos serve ", "does not end; tests/test_serve.py"),
    (r"^lumos play |^lumos evaluate --what=world ", "needs a world with actions; tests/test_worlds.py"),
    (r"^lumos convert --from=clips ", "needs recordings with actions; tests/test_frames_export.py"),
    (r"^lumos findings ", "minutes to hours; tests/test_findings.py runs all in miniature"),
    (r"^lumos demo ", "tests/test_project.py, from the wheel"),
]
# Pages that tell what was measured, or of weights that are not here: their commands are parsed.
PARSED = {
    "results.md": "minutes to hours each, on trained models", "design.md": "tells why", "plans.md": "generated",
    "released_weights.md": "needs the released weights; tests/test_interop_convert.py has small ones",
}  # fmt: skip

# How many commands of the others run at least.
RUN = {"README.md": 17, "CONTRIBUTING.md": 4, "howto.md": 51, "concepts.md": 1, "operations.md": 3}


def changed(text, number=0):
    for pattern, replacement, _ in CHANGED:
        text = re.sub(pattern, replacement, text)
    return re.sub(r"(new|SWEEP)_N\b", rf"\1_{number}", text)


def not_here(command):
    return command.page in PARSED or any(re.search(pattern, command.text) for pattern, _ in NOT_HERE)


def test_the_tables_hold_nothing_that_is_not_there():
    texts = [command.text for command in commands()]
    assert len(texts) > 100 and len({command.page for command in commands()}) >= 9
    for pattern, *_ in [*CHANGED, *NOT_HERE]:
        assert any(re.search(pattern, text) for text in texts), pattern
    assert set(PARSED) <= {command.page for command in commands()}
    for _, reason in [*NOT_HERE, *PARSED.items()]:
        for name in re.findall(r"tests/(\w+\.py)", reason):
            assert (REPO / "tests" / name).exists()


@pytest.mark.parametrize("page", sorted({command.page for command in commands()}))
def test_every_command_can_be_parsed(page):
    """Verbs, flags, fields, configs, targets of make, scripts and extras are there."""
    setup, makefile = (REPO / "setup.py").read_text(), (REPO / "Makefile").read_text()
    for command in commands():
        if command.page != page:
            continue
        program, *words = split(
            re.sub(r"^(\.venv/bin/|PYTHONPATH=\. )|^source <\(|(?<=completion)\)", "", command.text)
        )
        if program == "make":
            assert re.search(rf"^{words[0]}:", makefile, re.MULTILINE), command
        elif program == "pip":
            for name in re.findall(r"\[([\w-]+)\]", command.text):
                assert f'"{name}": [' in setup, command
            assert all(f'"{word}"' in setup for word in words if re.search("[a-z]==", word)), command
        elif program == "python":
            source = (REPO / (words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0])).read_text()
            assert all(f'"{word.partition("=")[0]}"' in source for word in words if word.startswith("--")), command
        elif program == "lumos" and words not in (["--version"], ["--help"], ["config"]):
            words = split(changed(command.text))[1:]
            if "--help" in words:
                words.remove("--help")
            parsed = parse([word for word in words if word != "..."])
            if "config" in parsed.flags and (spec := str(parsed.flags.config)).startswith("configs/"):
                config_loading.load(spec, {n: v for n, v in parsed.overrides.items() if "..." not in v})
            else:
                known = {name.partition(".")[0] for name in parsed.overrides}
                assert known <= set(config_loading.default().to_dict()), command


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, one_device):  # noqa: F811
    """A folder with all that the commands of the docs find: runs, clips, lists, pictures. Nothing is trained."""
    folder = tmp_path_factory.mktemp("newcomer")
    write_runs(folder / "runs", steps=(1, 2, 6), evaluate__num_prompts=2, evaluate__num_clips=4, evaluate__batch_size=4)
    links = {
        "RUN": "runs/transformer", "TEACHER": "runs/transformer", "TOKENIZER": "runs/tokenizer", "TOKENS": "runs/tokens",
        "OUT": "runs/tokens", "demo": "runs", "configs": REPO / "configs",
    }  # fmt: skip
    for name, target in links.items():
        (folder / name).symlink_to(target)
    rng = np.random.default_rng(0)
    for i in range(6):
        write_video(folder / "my_clips" / f"{i}.mp4", rng.integers(0, 256, (12, 32, 48, 3), np.uint8), 12)
        (folder / "my_clips" / f"{i}.txt").write_text(f"a person waves {i} times\n")
    write_video(folder / "start.mp4", rng.integers(0, 256, (9, 32, 32, 3), np.uint8), 8)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "first.png")
    shades = np.repeat(np.array([30, 220], np.uint8), 24)[:, None, None, None]
    write_video(folder / "film.mp4", np.broadcast_to(shades, (48, 256, 256, 3)).copy(), 8)
    (folder / "films.csv").write_text("path,caption,aesthetic_score\nfilm.mp4,a film of two scenes,5\n")
    write_video(folder / "gameplay" / "0.mp4", rng.integers(0, 256, (12, 32, 48, 3), np.uint8), 12)
    (folder / "gameplay" / "clips.jsonl").write_text('{"path": "0.mp4", "caption": "a game"}\n')
    (folder / "prompts.txt").write_text("a red circle moves left\n")
    (folder / "VBench_full_info.json").write_text(
        '[{"prompt_en": "a person swims", "dimension": ["motion_smoothness"]}]'
    )
    (folder / "my_metrics.py").write_text(
        "def similarity(videos, prompts):\n    return {'clip': videos.mean((1, 2, 3, 4))}\n"
    )
    (folder / "dist").mkdir()
    (folder / "dist" / "lumos_video-0.1.0-py3-none-any.whl").write_bytes(b"")
    publish(
        "ucf101",
        folder / "FOLDER",
        lambda path: (path.parent.mkdir(parents=True, exist_ok=True), path.write_bytes(b"")),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(REPO))
        patch.setenv("WANDB_MODE", "offline")
        for command in (
            "data index --input=my_clips --out=clips.jsonl",
            "data index --input=films.csv --out=films.jsonl --keep=aesthetic_score",
            "evaluate --workdir=RUN --out=REPORT",
        ):
            assert cli.main(command.split()) == 0
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_every_command_runs(page, workspace, capfd):
    """In their order: what one command writes, a later one reads."""
    failed, num = [], 0
    for number, command in enumerate(commands()):
        if command.page != page or not_here(command):
            continue
        program, *words = split(changed(command.text, number))
        if program == "lumos" and not {"--version", "--help"} & set(words) and not parse(words).is_whole:
            continue  # a part of a sentence that names a verb, or some flags
        num += 1
        capfd.readouterr()
        if program == "lumos":
            code = cli.main(words)
        else:
            code = subprocess.run([program, *words]).returncode
        out, err = capfd.readouterr()
        if code:
            failed.append(f"{command.page}: {command.text}\n    {err.strip()[-300:]}")
    assert not failed, "\n".join(failed)
    assert num >= RUN[page]


def blocks_of_python(page):
    """Return the blocks of a page that begin with an import."""
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", (REPO / page).read_text(), re.MULTILINE)
    blocks = [textwrap.dedent(block).strip() for block in found]
    return [block for block in blocks if re.match(r"import lumos|import dataclasses", block)]


@pytest.mark.slow
@pytest.mark.parametrize("page, index", [("README.md", 0), ("docs/howto.md", 0), ("docs/howto.md", 1)])
def test_python_of_the_docs_runs(workspace, page, index):
    """`...` is a statement; what is changed is the size."""
    code = blocks_of_python(page)[index]
    for pattern, replacement in (
        (r'train\("configs/demo.py:transformer"', 'train("RUN/config.json"'),  # a model of the tokens of the tests
        (r"(demo|real_clips)\.py:(\w+)", r"\1.py:\2,smoke"), (r'"train.num_steps": 2000', '"train.num_steps": 2'),
        (r"session\.frames\(20\)", "session.frames(4)"), ('"fsdp": 4', '"fsdp": 1'),
    ):  # fmt: skip
        code = re.sub(pattern, replacement, code)
    exec(compile(code, page, "exec"), {"show": lambda frames: None})
