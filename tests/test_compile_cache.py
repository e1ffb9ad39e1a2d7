import os

import pytest

from lumos.runtime import compile_cache


@pytest.fixture
def no_settings(monkeypatch):
    for name in (compile_cache._DIR, *compile_cache._SETTINGS):
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("no_settings")
def test_programs_lie_beside_the_checkpoints_by_kind_of_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compile_cache.use("run")
    first = os.environ.pop(compile_cache._DIR)
    assert first.startswith(str(tmp_path / "run" / "compiled"))
    monkeypatch.setattr(compile_cache.platform, "machine", lambda: "another")
    compile_cache.use("run")
    assert os.environ[compile_cache._DIR] != first


@pytest.mark.usefixtures("no_settings")
def test_a_folder_of_the_users_own_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv(compile_cache._DIR, "elsewhere")
    compile_cache.use(tmp_path)
    assert os.environ[compile_cache._DIR] == "elsewhere" and not set(compile_cache._SETTINGS) & set(os.environ)


@pytest.mark.usefixtures("no_settings")
def test_a_workdir_that_cannot_be_written_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path))
    compile_cache.use(tmp_path / "run")
    assert compile_cache._DIR not in os.environ
