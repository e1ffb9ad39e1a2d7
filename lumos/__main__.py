"""`python -m lumos` is `lumos`."""

from lumos.cli import run_and_exit

run_and_exit()
