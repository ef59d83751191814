"""Who imports whom is what docs/architecture.md says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "nanogen"


def layers() -> dict[str, int]:
    """Module or folder -> its layer, counted from the nouns."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("| layer | modules |")[2].partition("\n\n")[0]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("|")][1:]
    return {name: layer for layer, row in enumerate(rows) for name in re.findall(r"`([^`]+)`", row)}


def layer_of(module: str, known: dict[str, int]) -> int:
    """The layer of `nanogen.a.b`: that of `a/b` where the table names it, else of `a`."""
    parts = module.split(".")[1:]
    return known["/".join(parts[:2])] if "/".join(parts[:2]) in known else known[parts[0]]


def imported(file: Path) -> set[str]:
    """The modules of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nanogen"):
            inner = [f"{node.module}.{name.name}" for name in node.names]
            path = PACKAGE.parent.joinpath(*str(node.module).split("."))
            found |= {m for m in inner if path.is_dir() and m != "nanogen.__version__"}
            found |= {str(node.module)} if not path.is_dir() else set()
    return found


def test_imports_go_one_way() -> None:
    known = layers()
    assert len(known) > 20 and len(set(known.values())) == 7
    upwards = []
    for file in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        if file.name.startswith("__"):
            continue
        own = layer_of(module, known)
        upwards += [f"{module} -> {m}" for m in imported(file) if layer_of(m, known) > own]
    assert upwards == []
