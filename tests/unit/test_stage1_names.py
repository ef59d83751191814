"""Presets that help and docstrings name can be had."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import nanogen
from nanogen import recipes
from nanogen.stage1 import kinds

PACKAGE = Path(nanogen.__file__).parent
FILES = [*sorted((PACKAGE / "stage1").glob("*.py")), *sorted((PACKAGE / "cli").glob("token*.py"))]
NAME = re.compile(r"(?<![\w/.-])(?:animals|scenes|imagenet|repa-e)/[a-z][\w@.-]*\w")


def texts(file: Path) -> Iterator[str]:
    """Docstrings, and what options say of themselves."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""
        if isinstance(node, ast.keyword) and node.arg == "help":
            yield from (c.value for c in ast.walk(node) if isinstance(c, ast.Constant))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_named_presets_exist(file):
    named = {name for text in texts(file) for name in NAME.findall(str(text))}
    assert named <= kinds.summaries().keys() | set(recipes.names())


def test_names_are_found():
    assert NAME.findall("such as animals/vae, or imagenet/rae.") == ["animals/vae", "imagenet/rae"]
    assert {n for f in FILES for t in texts(f) for n in NAME.findall(str(t))} >= {"animals/vae"}
