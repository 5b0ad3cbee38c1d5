"""Digests of files, folders and code: what says that one result belongs to another."""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from pathlib import Path


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path, left_out: frozenset[str] = frozenset()) -> str:
    """SHA-256 over the names and contents of a folder's files, those with a name in `left_out` aside."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path: path.relative_to(folder) for path in files}
    lines = [
        f"{name.as_posix()} {file_digest(path)}\n"
        for path, name in names.items()
        if not left_out.intersection(name.parts)
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def code_digest(path: Path) -> str:
    """SHA-256 of a Python file without its comments, docstrings and empty lines, which change no result."""
    return hashlib.sha256(bare_code(path.read_text("utf-8")).encode()).hexdigest()


def bare_code(source: str) -> str:
    """Source code without comments, docstrings and empty lines."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for first, last in _docstrings(ast.parse(source)):
        lines[first - 1 : last] = [""] * (last - first + 1)
    return "".join(f"{line.rstrip()}\n" for line in lines if line.strip())


def _docstrings(tree: ast.AST) -> list[tuple[int, int]]:
    """The first and last lines of each docstring."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) or not node.body:
            continue
        first = node.body[0]
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            found.append((first.lineno, first.end_lineno or first.lineno))
    return found
