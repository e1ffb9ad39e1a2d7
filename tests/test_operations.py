"""docs/operations.md promises nothing that no test shows."""

import ast
import functools
import re
from pathlib import Path

TESTS = Path(__file__).parent


@functools.cache
def functions(file: str) -> set[str]:
    return {node.name for node in ast.parse((TESTS / file).read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_line_of_the_operations_guide_names_tests_that_exist():
    lines = (TESTS.parent / "docs" / "operations.md").read_text().split("## What happens when ...")[1].splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| what |")]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row.split("|")[-2])
        assert named, row
        for file, test in named:
            assert test in functions(file), f"{file}::{test}"
