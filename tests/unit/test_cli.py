"""The command line: quick to answer, tables for people and JSON for programs, status by cause."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nanogen import recipes
from nanogen.cli import app, ls
from nanogen.errors import ConfigError, MissingExtra, RunFailed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def nanogen(monkeypatch, capsys):
    """Run `nanogen ARGUMENTS` in this process; (status, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nanogen", *arguments])
        with pytest.raises(SystemExit) as left:
            app.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return run


HEAVY = ("torch", "numpy", "scipy", "PIL", "safetensors", "chz", "yaml")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["bench", "--help"]], ids=" ".join
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys; from nanogen.cli import app; sys.argv = ['nanogen', *sys.argv[1:]]\n"
        "try: app.main()\n"
        f"finally: print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert "Usage: nanogen" in done.stdout


def test_help_names_every_command(nanogen):
    status, out, _ = nanogen("--help")
    assert status == 0
    assert all(f"\n  {name} " in out for name in app.COMMANDS)


def test_nothing_given_shows_the_help(nanogen):
    assert nanogen() == nanogen("--help")


@pytest.mark.parametrize("name", app.COMMANDS)
def test_every_command_explains_itself(nanogen, name):
    status, out, _ = nanogen(name, "--help")
    assert status == 0 and f"Usage: nanogen {name}" in out


@pytest.mark.parametrize("kind", ls.KINDS)
def test_ls_of_every_kind(nanogen, kind):
    status, out, err = nanogen("ls", kind)
    assert (status, err) == (0, "")
    status, text, _ = nanogen("ls", kind, "--json")
    (table,) = json.loads(text)
    assert table["title"] == kind
    if kind != "terms":
        assert table["rows"]
    assert all(row[0]["value"] in out for row in table["rows"])


def test_ls_of_everything(nanogen):
    titles = [table["title"] for table in json.loads(nanogen("ls", "--json")[1])]
    assert set(titles) <= set(ls.KINDS) and len(titles) >= len(ls.KINDS) - 1
    presets = next(t for t in json.loads(nanogen("ls", "--json")[1]) if t["title"] == "presets")
    assert [row[0]["value"] for row in presets["rows"]] == recipes.names()


@pytest.mark.parametrize(
    "arguments",
    [["leaderboard"], ["correlate"], ["doctor"], ["diff", "animals/pixels-v", "scenes/pixels-v"]],
    ids=" ".join,
)
def test_tables_are_json_with_json(nanogen, arguments):
    status, out, err = nanogen(*arguments, "--json")
    assert (status, err) == (0, "")
    tables = json.loads(out)
    assert tables and all({"title", "columns", "rows", "notes"} == table.keys() for table in tables)
    status, out, _ = nanogen(*arguments)
    assert status == 0 and tables[0]["title"].split()[0] in out


def test_leaderboard_as_markdown(nanogen):
    status, out, _ = nanogen("leaderboard", "--markdown")
    assert status == 0 and "| ---" in out and "RAE" in out


def test_a_change_of_task_is_at_most_eleven_lines(nanogen):
    """For every method, in every fidelity that both tasks have."""
    names, checked = recipes.names(), 0
    for first, second in (("imagenet", "t2i"), ("animals", "scenes")):
        for a in names:
            b = a.replace(f"{first}/", f"{second}/")
            if a.startswith(f"{first}/") and b in names:
                (table,) = json.loads(nanogen("diff", a, b, "--json")[1])
                assert 1 <= len(table["rows"]) <= 11, a
                checked += 1
    assert checked >= 60


def test_a_preset_does_not_differ_from_itself(nanogen):
    (table,) = json.loads(nanogen("diff", "t2i/jit", "t2i/jit", "--json")[1])
    assert (table["title"], table["rows"]) == ("nothing differs", [])


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ConfigError("two\n  lines"), 2, "error: two lines\n"),
        (MissingExtra("this", "pip install that"), 2, "error: this is not installed; install it"),
        (RunFailed("it came to nothing"), 1, "error: it came to nothing\n"),
        (OSError(28, "No space left on device", "log.jsonl"), 1, "No space left on device: 'log"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_status_by_cause(nanogen, monkeypatch, error, status, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(app, "app", fail)
    found, out, err = nanogen("ls")
    assert (found, out) == (status, "") and message in err
    assert err.count("\n") == 1
    found, _, err = nanogen("ls", "--debug")
    assert found == status and err.startswith("Traceback") and message in err


def test_a_defect_keeps_its_traceback(monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(app, "app", fail)
    monkeypatch.setattr(sys, "argv", ["nanogen", "ls"])
    with pytest.raises(ZeroDivisionError):
        app.main()


def test_a_reader_that_leaves_early_is_no_error():
    reader = f"{sys.executable} -m nanogen ls | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", reader],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
