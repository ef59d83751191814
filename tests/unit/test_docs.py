"""The documents tell the truth: their files are written into a copy of the package, and used."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "add-one.md"

DRIVER = """
import sys
import torch
torch.set_num_threads(1)
from nanogen.cli.app import app
for line in sys.stdin.read().splitlines():
    print("$ nanogen", line, flush=True)
    app(line.split("\\t"), standalone_mode=False)
"""


IMPORTS = """from __future__ import annotations

import chz
import torch.nn.functional as F
from torch import Tensor

from nanogen.objectives.base import Facts, Step, Term
from nanogen.registry import register
"""
"""what the example of the README leaves out"""


def files(text: str) -> dict[str, str]:
    """The blocks that stand under a path."""
    return dict(re.findall(r"^`(nanogen/\S+\.py)`\n\n```python\n(.*?)^```", text, re.M | re.S))


def readme_files() -> dict[str, str]:
    """Its blocks that name a path in their first line; they leave the imports out."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r'^```python\n("""(nanogen/\S+\.py): .*?)^```', text, re.M | re.S)
    return {path: IMPORTS + code for code, path in blocks}


def commands(text: str) -> list[list[str]]:
    lines = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)).splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the guide's files in it; its assets are shared."""
    folder = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("assets", "__pycache__")
    shutil.copytree(ROOT / "nanogen", folder / "nanogen", ignore=ignored)
    (folder / "nanogen" / "assets").symlink_to(ROOT / "nanogen" / "assets")
    for path, code in (files(GUIDE.read_text()) | readme_files()).items():
        assert not (folder / path).exists(), f"{path} is taken"
        (folder / path).write_text(code)
    return folder


def run(copy: Path, *command: str, given: str = "") -> str:
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=copy, env=environment, input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_guide_adds_one_of_each() -> None:
    folders = {Path(path).parent.name for path in files(GUIDE.read_text())}
    assert folders == {"tokenizers", "objectives", "metrics", "tasks"}


def test_guide_is_formatted_like_the_package(copy: Path) -> None:
    for path in files(GUIDE.read_text()):
        for check in (["check"], ["format", "--check"]):
            command = [
                sys.executable,
                "-m",
                "ruff",
                *check,
                "--config",
                str(ROOT / "pyproject.toml"),
            ]
            run(copy, *command, str(copy / path))


def test_guide_runs(copy: Path) -> None:
    """Its commands and the README's example, at the size of a test: train with all the parts."""
    lines = []
    for name, *arguments in commands(GUIDE.read_text()):
        if name == "nanogen":
            small = [o for o in TINY if o.partition("=")[0] not in " ".join(arguments)]
            at = 2 if arguments[0] == "train" else len(arguments)
            extra = [*small, "train.images=16"] if arguments[0] == "train" else []
            lines.append("\t".join([*arguments[:at], *extra, *arguments[at:]]))
    for path in readme_files():
        term = f"terms.{Path(path).stem}=on"
        readme = [
            "train",
            "animals/pixels-v",
            *TINY,
            "train.images=16",
            term,
            "--out",
            "runs/readme",
        ]
        lines.append("\t".join(readme))
    shown = run(copy, sys.executable, "-c", DRIVER, given="\n".join(lines))
    assert "blocks of pixels folded into channels" in shown
    assert list((copy / "runs" / "folded" / "records").glob("*.json"))
    assert "colours" in (copy / "runs" / "folded" / "log.jsonl").read_text()
    assert '"robust"' in (copy / "runs" / "robust" / "log.jsonl").read_text()
    if readme_files():
        loss = Path(next(iter(readme_files()))).stem
        assert f'"{loss}"' in (copy / "runs" / "readme" / "log.jsonl").read_text()
    assert list((copy / "runs" / "named" / "records").glob("*sharpness*.json"))


@pytest.mark.slow
def test_contract_tests_find_the_new_parts(copy: Path) -> None:
    tests = str(ROOT / "tests" / "contract")
    command = [sys.executable, "-m", "pytest", tests, "-p", "no:cacheprovider", "-vv"]
    shown = run(copy, *command, "-k", "folded or colours or robust or sharpness or named_classes")
    for name in ("folded", "colours", "robust", "sharpness", "named_classes-animals"):
        assert re.search(rf"\[.*{name}.*\] PASSED", shown), name


def test_every_linked_file_exists() -> None:
    for document in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_every_path_that_is_named_exists() -> None:
    made = files(GUIDE.read_text())
    for document in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        for path in re.findall(r"`((?:nanogen|tests|scripts)/[\w/]+\.py)`", document.read_text()):
            assert path in made or (ROOT / path).exists(), f"{document.name}: {path}"
