# Every target works on a fresh machine: it creates .venv and installs what it needs (Python 3.11 to 3.13).

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)

.PHONY: demo test test-slow findings-smoke torture lint wheel docs check-release release

demo: .venv/installed
	.venv/bin/lumos demo --workdir=demo

test: .venv/installed
	.venv/bin/python -m pytest -m "not slow" --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

test-slow: .venv/installed
	.venv/bin/python -m pytest -m slow

findings-smoke: .venv/installed
	.venv/bin/lumos findings run all --smoke --workers=2 --out=findings-smoke
	.venv/bin/lumos findings report --smoke --out=findings-smoke

torture: .venv/installed
	.venv/bin/python tests/torture.py --kills=100 --minutes=24
	.venv/bin/python tests/fuzz_videos.py --files=1000 --speed

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

wheel: .venv/installed
	rm -rf build dist
	.venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir=dist .
	@ls dist/lumos_video-*.whl

docs: .venv/installed
	.venv/bin/mkdocs build --strict --site-dir=site

# A version is released when the changelog and the citation know it, nothing is left to commit, and no tag of it is there.
check-release:
	@version=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' lumos/__init__.py); \
	fail() { echo "make release: $$1"; exit 1; }; \
	grep -q "^## $$version " CHANGELOG.md || fail "CHANGELOG.md has no section '## $$version (date)'"; \
	grep -q "^version: $$version$$" CITATION.cff || fail "CITATION.cff does not say 'version: $$version'"; \
	test -z "$$(git status --porcelain)" || fail "there are changes that are not committed"; \
	! git rev-parse --quiet --verify "refs/tags/v$$version" > /dev/null || fail "the tag v$$version is there; raise __version__ in lumos/__init__.py"

release: check-release lint test wheel docs
	@version=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' lumos/__init__.py); \
	git tag --annotate "v$$version" --message="lumos $$version" && echo "tagged v$$version; publish it with: git push origin v$$version"

.venv/installed: setup.py
	@test -n "$(PYTHON)" || { echo "lumos needs Python 3.11, 3.12 or 3.13: install one, or run make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@
