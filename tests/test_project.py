"""What surrounds the code: the wheel in an empty environment, the Dockerfile, the docs site, releases, templates."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

import lumos

REPO = Path(__file__).resolve().parents[1]
TEMPLATES = sorted((REPO / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def stages():
    """Return the stages of the Dockerfile, [(base, name, [(instruction, argument)])]."""
    found = []
    for line in (REPO / "docker" / "Dockerfile").read_text().replace("\\\n", " ").splitlines():
        instruction, _, argument = line.partition(" ")
        if instruction == "FROM":
            base, _, name = argument.partition(" AS ")
            found.append((base, name, []))
        elif line and not line.startswith("#"):
            found[-1][2].append((instruction, argument))
    return found


def test_the_dockerfile_stage_by_stage():
    """No engine is at hand: sources are there, stages follow on each other, commands are valid, extras exist."""
    known, extras = [], re.findall(r'^        "([\w-]+)": \[', (REPO / "setup.py").read_text(), re.MULTILINE)
    allowed = {line[1:] for line in (REPO / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for base, name, instructions in stages():
        assert re.fullmatch(r"python:3\.1[12]-slim", base)
        for instruction, argument in instructions:
            assert instruction in ("WORKDIR", "COPY", "RUN", "ARG", "CMD")
            if instruction == "RUN":
                subprocess.run(["bash", "-n"], input=argument, text=True, check=True)
                for group in re.findall(r"\[([\w${},-]+)\]", argument):
                    assert set(group.replace("${EXTRA}", "gpu").split(",")) <= set(extras)
            elif instruction == "COPY" and "--from=" in argument:
                assert re.match(r"--from=(\w+) ", argument)[1] in known
            elif instruction == "COPY":
                sources = argument.split()[:-1]
                assert all((REPO / source).exists() for source in sources) and set(sources) <= allowed
            elif instruction == "CMD":
                assert json.loads(argument)[0] == "lumos"
        known.append(name)
    assert {"gpu", "tpu"} <= set(extras)


def test_the_dockerfile_passes_its_linter():
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), REPO / "docker" / "Dockerfile"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_wheel_in_an_empty_environment_runs_the_demo(tmp_path):
    """The wheel is that of the first stage of the Dockerfile; the demo runs from an empty folder."""
    _, _, instructions = stages()[0]
    source = tmp_path / "src"
    for instruction, argument in instructions:
        *names, target = argument.split()
        if instruction == "COPY":
            for name in names:
                place = source / target / name if target == "./" else source / target
                place.parent.mkdir(parents=True, exist_ok=True)
                if (REPO / name).is_dir():  # links stay links, as in a container
                    shutil.copytree(REPO / name, place, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(REPO / name, place)
        elif instruction == "RUN":
            command = argument.replace("pip ", f"{sys.executable} -m pip ", 1).replace(
                "/wheels", str(tmp_path / "wheels")
            )
            subprocess.run(["bash", "-c", command], cwd=source, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheels").glob("lumos_video-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    (install,) = (argument for instruction, argument in stages()[1][2] if instruction == "RUN")
    for extra in ("gpu", "tpu"):  # gigabytes: only what would be installed is looked up
        command = install.replace("pip install", f"{python} -m pip install --quiet --dry-run").partition(" && ")[0]
        command = command.replace("/wheels", str(tmp_path / "wheels"))
        subprocess.run(["bash", "-c", command], env=os.environ | {"EXTRA": extra}, check=True, capture_output=True)
    (tmp_path / "empty").mkdir()
    unwanted = ("PYTHONPATH", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted} | {"JAX_PLATFORMS": "cpu"}
    run = lambda *arguments: subprocess.run(
        [tmp_path / "venv" / "bin" / "lumos", *arguments], cwd=tmp_path / "empty", env=environment, check=True, capture_output=True, text=True
    )  # fmt: skip
    assert f"lumos {lumos.__version__}" in run("--version").stdout
    run("demo", "--variant=smoke")
    assert (tmp_path / "empty" / "demo" / "report" / "index.html").exists()
    run("export", "--workdir=demo/transformer", "--to=released")
    run("generate", "--workdir=released", "--prompt=a red circle moves left", "--out=out.mp4")
    assert (tmp_path / "empty" / "out.mp4").stat().st_size > 0


@pytest.mark.slow
def test_the_docs_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path}"]
    subprocess.run(command, cwd=REPO, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True, capture_output=True)
    page = (tmp_path / "api" / "index.html").read_text()
    for name in ("load", "load_tokenizer", "train", "stream", "score", "generate", "Session"):
        assert f">{name}<" in page
    assert "images/demo.png" in (tmp_path / "index.html").read_text()
    pages = {path.parent.name for path in tmp_path.glob("*/index.html")}
    assert {path.stem for path in (REPO / "docs").glob("*.md")} <= pages  # none is left out of the menu


def test_a_release_is_refused_until_all_is_ready(tmp_path):
    """`make check-release` in a repository of its own."""
    run = lambda *command: subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    for name in ("Makefile", "CITATION.cff"):
        shutil.copy(REPO / name, tmp_path)
    (tmp_path / "lumos").mkdir()
    (tmp_path / "lumos" / "__init__.py").write_text('__version__ = "9.1.0"\n')
    changes, citation = tmp_path / "CHANGELOG.md", tmp_path / "CITATION.cff"
    changes.write_text("# Changelog\n\n## Unreleased\n")
    run("git", "init", "--quiet")

    def refusal():
        done = subprocess.run(["make", "--silent", "check-release"], cwd=tmp_path, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode else ""

    assert "has no section '## 9.1.0 (date)'" in refusal()
    changes.write_text("# Changelog\n\n## 9.1.0 (2030-01-01)\n")
    assert "CITATION.cff does not say 'version: 9.1.0'" in refusal()
    citation.write_text(re.sub("^version: .*$", "version: 9.1.0", citation.read_text(), flags=re.MULTILINE))
    assert "not committed" in refusal()
    run("git", "add", "--all")
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=a")
    assert refusal() == ""
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "tag", "--annotate", "v9.1.0", "--message=a")
    assert "the tag v9.1.0 is there" in refusal()


def test_citation_templates_and_hooks_can_be_read():
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text())
    assert citation["version"] == lumos.__version__ and citation["license"] == "Apache-2.0"
    assert len(TEMPLATES) == 2
    for template in map(yaml.safe_load, map(Path.read_text, TEMPLATES)):
        assert template["name"] and all(item["attributes"]["label"] for item in template["body"])
    (repo,) = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["id"] for hook in repo["hooks"]] == ["ruff", "ruff-format", "mypy"]
    assert (REPO / "lumos" / "py.typed").exists()


def test_continuous_integration_has_every_python_that_make_accepts():
    workflow = yaml.safe_load((REPO / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"]
    first, last = re.search(r"Python 3\.(\d+) to 3\.(\d+)", (REPO / "Makefile").read_text()).groups()
    assert workflow["strategy"]["matrix"]["python"] == [f"3.{i}" for i in range(int(first), int(last) + 1)]
    last = workflow["steps"][-1]
    assert (REPO / last["run"]).stat().st_mode & 0o100 and last["env"]["PYTHON"].startswith("python")
