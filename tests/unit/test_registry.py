"""Names for parts: found by file, unique, and helpful when misspelt."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nanogen import registry
from nanogen.errors import ConfigError


@pytest.fixture(autouse=True)
def unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it; what modules register is there before it."""
    for kind in registry.FOLDERS:
        registry.entries(kind)
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def make(name: str = "Part", module: str = "here") -> type:
    return type(name, (), {"__module__": module})


@pytest.mark.parametrize("kind", registry.FOLDERS)
def test_every_kind_is_a_folder(kind: str) -> None:
    for entry in registry.entries(kind):
        assert entry.kind == kind and entry.summary and entry.licence
        assert registry.get(kind, entry.name) is entry.target
        assert registry.entry_of(entry.target) == entry
        # One line of a table.
        assert len(entry.summary) <= 90 and "\n" not in entry.summary


def test_entries_are_sorted_by_name() -> None:
    names = [entry.name for entry in registry.entries("metric")]
    assert names == sorted(names) and len(names) > 1


def test_registering() -> None:
    part = registry.register("tokenizer", "mine", summary="a test", licence="MIT")(make())
    entry = registry.entry_of(part)
    assert (entry.name, entry.summary, entry.licence) == ("mine", "a test", "MIT")
    assert entry.needs == "" and registry.get("tokenizer", "mine") is part


def test_a_name_belongs_to_one_class() -> None:
    registry.register("tokenizer", "mine", summary="a test")(make())
    # A module that is loaded again defines the same class again.
    registry.register("tokenizer", "mine", summary="a test")(make())
    for other in (make("Other"), make(module="elsewhere")):
        with pytest.raises(ValueError, match="registered twice"):
            registry.register("tokenizer", "mine", summary="a test")(other)
    # The same name of another kind is another name.
    registry.register("metric", "mine", summary="a test")(make("Other"))


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="unknown tokenizer 'pixles'; did you mean pixels"):
        registry.get("tokenizer", "pixles")
    with pytest.raises(ConfigError, match="known: "):
        registry.get("tokenizer", "nanogen.tokenizers.pixels:PixelsConfig")
    with pytest.raises(ValueError, match="unknown kind"):
        registry.register("tokeniser", "mine", summary="a test")(make())


def test_names_come_without_torch() -> None:
    """The registry itself is light: asking for help must not wait for torch."""
    code = "import sys, nanogen.registry, nanogen.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
