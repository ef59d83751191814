"""Files and folders appear whole or not at all."""

from __future__ import annotations

import pytest

from nanogen.errors import UserError
from nanogen.files import remove_parts, whole_file, whole_folder, writable_folder, write_text


def test_a_file_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "name.txt"
    with whole_file(target) as part:
        part.write_text("new")
        assert not target.exists() and part.parent == tmp_path
    assert target.read_text() == "new" and list(tmp_path.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o644


def test_an_error_leaves_the_old_file_and_no_part(tmp_path):
    write_text(tmp_path / "name.txt", "old")
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "name.txt") as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("name.txt", "old")]


def test_a_folder_appears_when_the_block_ends(tmp_path):
    with whole_folder(tmp_path / "made") as part:
        (part / "inside").write_text("1")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "inside").read_text() == "1"
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_no_folder(tmp_path, error):
    with pytest.raises(error), whole_folder(tmp_path / "made") as part:
        (part / "inside").write_text("1")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_never_replaces_another(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old").touch()
    with pytest.raises(OSError), whole_folder(tmp_path / "made") as part:
        (part / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "old"]


def test_a_folder_replaces_another_that_stands_until_then(tmp_path):
    target = tmp_path / "made"
    for text in ("old", "new"):
        with whole_folder(target, replace=True) as part:
            (part / text).write_text(text)
            assert not target.exists() or (target / "old").read_text() == "old"
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "new"]
    with pytest.raises(ZeroDivisionError), whole_folder(target, replace=True) as part:
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "new"]


def test_parts_of_an_interrupted_write_are_removed_and_nothing_else(tmp_path):
    (tmp_path / ".a.x1.part").touch()
    (tmp_path / ".b.x2.part").mkdir()
    (tmp_path / ".b.x2.part" / "inside").touch()
    (tmp_path / "mine.part").touch()
    (tmp_path / ".hidden").touch()
    remove_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "mine.part"]
    remove_parts(tmp_path / "absent")


def test_unwritable_folders_are_user_errors(tmp_path):
    assert writable_folder(tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    for path in ("file", "file/below"):
        with pytest.raises(UserError, match="cannot write to .*; choose another folder with --out"):
            writable_folder(tmp_path / path)
