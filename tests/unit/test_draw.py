"""What a person asks for: numbers, classes, captions."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanogen.errors import ConfigError, DataError
from nanogen.sampling.draw import Wanted, class_numbers, numbers, read_prompts

NAMES = ("bat", "bear", "cat", "dog")


@pytest.mark.parametrize(
    ("text", "found"),
    [("0", [0]), ("0-3,7", [0, 1, 2, 3, 7]), (" 2 - 3 , 1", [2, 3, 1]), ("5,5", [5, 5])],
)
def test_numbers(text, found):
    assert numbers(text, "--seeds") == found


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "1.5", "3-", "0x1", "²", "1-2-3"])
def test_what_is_no_number(text):
    with pytest.raises(ConfigError, match="--seeds .*write whole numbers and ranges"):
        numbers(text, "--seeds")


@pytest.mark.parametrize("text", ["3-2", "0-100000", "0-99999999999999999999"])
def test_ranges_that_are_empty_or_too_long(text):
    with pytest.raises(ConfigError, match="is empty or too long"):
        numbers(text, "--seeds")


def test_classes_by_number_range_and_name():
    assert class_numbers("3,0-1,cat", NAMES) == [3, 0, 1, 2]
    assert class_numbers(None, NAMES) == [0, 1, 2, 3]
    assert class_numbers(None, NAMES * 5) == list(range(10))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4", "there is no class 4; this run has 0 to 3"),
        ("0-4", "there is no class 4"),
        ("cta", "unknown class 'cta'; did you mean cat"),
        ("cat,", "unknown class ''"),
        ("-", "--classes '-'"),
    ],
)
def test_classes_that_there_are_not(text, message):
    with pytest.raises(ConfigError, match=message):
        class_numbers(text, NAMES)


def test_prompts_are_the_lines_of_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa cat\r\n\r\n  zwei Bären  \n".encode())
    assert read_prompts(file) == ["a cat", "zwei Bären"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("un h\xe9risson".encode("latin-1"), r"is not UTF-8 text \(byte 4\); save it as UTF-8"),
        ("a cat".encode("utf-16"), "is not UTF-8 text"),
        (b"", "holds no captions; write one a line"),
        (b" \n\t\n", "holds no captions"),
    ],
)
def test_files_that_are_no_prompts(tmp_path, data, message):
    (tmp_path / "prompts.txt").write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_prompts(tmp_path / "prompts.txt")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot read .*gone: No such file"):
        read_prompts(tmp_path / "gone")
    with pytest.raises(DataError, match="cannot read"):
        read_prompts(tmp_path)


def test_requests_that_contradict_each_other():
    Wanted(None, "a cat", None, "0").check()
    with pytest.raises(ConfigError, match="--prompt and --prompts contradict each other"):
        Wanted(None, "a cat", Path("file"), "0").check()
    with pytest.raises(ConfigError, match="--seeds"):
        Wanted(None, None, None, "x").check()
