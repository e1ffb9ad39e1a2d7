"""The shape of the source tree: no import circles, and files that can be read in one go."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
FOLDERS = ("lumos", "tokenizers", "launch", "configs")  # the last three are in lumos through symlinks
MAX_LINES = 400


def source_files() -> dict[str, Path]:
    """Return every module of lumos by its name."""
    files = {}
    for folder in FOLDERS:
        for path in sorted((REPO / folder).rglob("*.py")):
            inside = path.relative_to(REPO)
            if folder == "lumos" and inside.parts[1] in FOLDERS:  # on the other side of a symlink
                continue
            name = ".".join(inside.with_suffix("").parts).removesuffix(".__init__")
            files[name if folder == "lumos" else f"lumos.{name}"] = path
    return files


def imported(tree: ast.AST, names) -> set[str]:
    """Return which of `names` a module imports, in functions too, but not `if TYPE_CHECKING`."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"a relative import: {ast.unparse(node)}"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in names else node.module for name in full}
        found |= imported(node, names)
    return found & set(names)


def graph_of_files() -> dict[str, set[str]]:
    files = source_files()
    return {name: imported(ast.parse(path.read_text()), files) - {name} for name, path in files.items()}


def graph_of_packages() -> dict[str, set[str]]:
    """Return which of lumos's folders, and of the files beside them, import which others."""
    top = lambda name: ".".join(name.split(".")[:2])
    graph = {}
    for name, others in graph_of_files().items():
        graph.setdefault(top(name), set()).update({top(other) for other in others} - {top(name)})
    return graph


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the nodes of one circle in order, the first one again at the end; [] if there is none."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        path.append(node)
        circle = next(filter(None, map(visit, sorted(graph[node]))), [])
        path.pop()
        done.add(node)
        return circle

    return next(filter(None, map(visit, sorted(graph))), [])


@pytest.mark.parametrize("graph", [graph_of_files, graph_of_packages])
def test_imports_have_no_circle(graph):
    circle = find_circle(graph())
    assert not circle, f"an import circle: {' -> '.join(circle)}; move what is shared to where both can import it"


def test_circles_are_found_where_they_are():
    assert find_circle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    code = "import a.b\nfrom a import c\ndef f():\n    from d import x\nif TYPE_CHECKING:\n    import e\n"
    assert imported(ast.parse(code), {"a", "a.b", "a.c", "d", "e"}) == {"a.b", "a.c", "d"}
    graph = graph_of_files()
    assert "lumos.config_rules" in graph["lumos.config"] and "lumos.demo" in graph["lumos.verbs"]
    assert "lumos.tokenizers.quantizers" in graph["lumos.tokenizers.quantizer_factory"]


def test_what_watches_a_run_knows_no_model():
    assert graph_of_packages()["lumos.runtime"] <= {
        "lumos.errors",
        "lumos.files",
        "lumos.growing_files",
        "lumos.sharding",
        "lumos.chips",
    }


def test_files_can_be_read_in_one_go():
    lengths = {name: len(path.read_text().splitlines()) for name, path in source_files().items()}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}
    assert lengths["lumos.training.loop"] <= 250  # the loop is read from top to bottom
