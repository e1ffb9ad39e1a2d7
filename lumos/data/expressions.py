"""Conditions over the columns of a manifest, such as `width >= 256 and 2 < duration < 20 and words > 3`.

The grammar is Python's, of which comparisons, and, or, not, + - * /, `in` with a list, numbers, texts and names of columns are allowed; nothing is
called and no attribute is read. A column that a row does not have makes a comparison with it false.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from lumos.errors import UserError, short

_COMPARISONS = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip
_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


class _Missing(Exception):
    pass


def compile_condition(text: str) -> Callable[[dict[str, Any]], bool]:
    """Return the condition as a function of a row's values. Raises UserError where it is none, here or of the values."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"--where={short(text)}: not a condition ({error.__class__.__name__})") from error
    _check(tree, text)

    def holds(values: dict[str, Any]) -> bool:
        try:
            return bool(_value(tree, values))
        except _Missing:
            return False
        except (TypeError, ZeroDivisionError) as error:
            raise UserError(f"--where={short(text)}: {error}, of the row {short(values.get('id'))}") from error

    return holds


def names_in(text: str) -> set[str]:
    """Return the columns that a condition asks for."""
    return {node.id for node in ast.walk(ast.parse(text.strip(), mode="eval")) if isinstance(node, ast.Name)}


def _check(node: ast.AST, text: str) -> None:
    match node:
        case ast.BoolOp() | ast.List() | ast.Tuple():
            inside = node.values if isinstance(node, ast.BoolOp) else node.elts
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            inside = [node.operand]
        case ast.BinOp() if type(node.op) in _ARITHMETIC:
            inside = [node.left, node.right]
        case ast.Compare() if all(type(op) in _COMPARISONS for op in node.ops):
            inside = [node.left, *node.comparators]
        case ast.Name():
            inside = []
        case ast.Constant() if isinstance(node.value, (str, int, float)):
            inside = []
        case _:
            what = ast.unparse(node)
            raise UserError(
                f"--where={short(text)}: {short(what)} is not allowed; conditions are made of columns, numbers, texts, and, or, not, "
                "comparisons, + - * /, in [...]"
            )
    for part in inside:
        _check(part, text)


def _value(node: ast.AST, values: dict[str, Any]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            if values.get(node.id) is None:
                raise _Missing(node.id)
            return values[node.id]
        case ast.List() | ast.Tuple():
            return [_value(part, values) for part in node.elts]
        case ast.UnaryOp(op=ast.Not()):
            return not _truth(node.operand, values)
        case ast.UnaryOp():
            return -_value(node.operand, values)
        case ast.BinOp():
            return _ARITHMETIC[type(node.op)](_value(node.left, values), _value(node.right, values))
        case ast.BoolOp(op=ast.And()):
            return all(_truth(part, values) for part in node.values)
        case ast.BoolOp():
            return any(_truth(part, values) for part in node.values)
    return _compared(node, values)


def _truth(node: ast.AST, values: dict[str, Any]) -> bool:
    try:
        return bool(_value(node, values))
    except _Missing:
        return False


def _compared(node: ast.Compare, values: dict[str, Any]) -> bool:
    left = _value(node.left, values)
    for op, part in zip(node.ops, node.comparators):
        right = _value(part, values)
        if not _COMPARISONS[type(op)](left, right):
            return False
        left = right
    return True
