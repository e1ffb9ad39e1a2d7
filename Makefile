# Every target works on a fresh machine: it creates .venv and installs what it needs (Python 3.11 or 3.12).

PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)

.PHONY: demo test test-slow torture lint

demo: .venv/installed
	.venv/bin/lumos demo --workdir=demo

test: .venv/installed
	.venv/bin/python -m pytest -m "not slow" --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

test-slow: .venv/installed
	.venv/bin/python -m pytest -m slow

torture: .venv/installed
	.venv/bin/python tests/torture.py --kills=100 --minutes=24
	.venv/bin/python tests/fuzz_videos.py --files=1000 --speed

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

.venv/installed: setup.py
	@test -n "$(PYTHON)" || { echo "lumos needs Python 3.11 or 3.12: install one, or run make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@
