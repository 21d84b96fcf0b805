"""Imports point one way: contract, then compiler and sim, then host."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {"hw": {"hw"}, "compiler": {"hw", "compiler"}, "sim": {"hw", "compiler", "sim"},
           "boards": {"hw", "boards"}, "host": {"hw", "compiler", "sim", "boards", "host"}}


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_imports_point_one_way(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = ([alias.name for alias in node.names] if isinstance(node, ast.Import)
                     else [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
            for name in names:
                if name.startswith("alula."):
                    assert name.split(".")[1] in ALLOWED[folder], f"{path}: imports {name}"
