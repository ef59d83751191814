"""Records: what is written is read back, and nothing broken or foreign gets in."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest

from nanogen.bench.record import SUFFIX, Record, file_name, read, write
from nanogen.errors import DataError

RECORD = Record(
    run="animals-x",
    task="class_conditional",
    method="pixels, x",
    metric="pr-animals/precision",
    version=1,
    value=0.75,
    standard_error=None,
    n=500,
    higher_is_better=True,
    seen=32_000,
    facts={"reference_images": 2000, "worst": "cow"},
    sampler={"solver": "euler", "steps": 50, "guidance": 3.0, "interval": [0.0, 0.9], "seed": 0},
)


def changed(**values: object) -> Record:
    return dataclasses.replace(RECORD, **values)


def test_round_trip_through_any_depth_of_folders(tmp_path: Path) -> None:
    other = changed(metric="fd-animals", value=12, higher_is_better=False)
    write(tmp_path / "a" / "records", RECORD)
    write(tmp_path / "b", other)
    assert read(tmp_path) == [RECORD, other]
    assert read(write(tmp_path / "b", other)) == [other]


def test_the_same_evaluation_replaces_its_file_and_another_does_not(tmp_path: Path) -> None:
    write(tmp_path, RECORD)
    write(tmp_path, changed(value=0.8, seconds=3.0))
    assert [r.value for r in read(tmp_path)] == [0.8]
    write(tmp_path, changed(sampler={**RECORD.sampler, "steps": 100}))
    write(tmp_path, changed(seen=64_000))
    write(tmp_path, changed(weights="raw"))
    assert len(read(tmp_path)) == 4
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in tmp_path.glob(f"*{SUFFIX}")}


def test_file_names_are_stable_and_safe() -> None:
    assert file_name(RECORD) == file_name(changed())
    hostile = file_name(changed(method="../../etc/passwd\n"))
    assert "/" not in hostile and "\n" not in hostile


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting"),
        ("[]", "not a record"),
        ('{"hello": 1}', "misses higher_is_better, method"),
        (json.dumps({**dataclasses.asdict(RECORD), "schema": 99}), "schema 99"),
        (json.dumps({**dataclasses.asdict(RECORD), "n": "many"}), "n is 'many', not int"),
        (json.dumps({**dataclasses.asdict(RECORD), "value": float("nan")}), "not finite"),
        (json.dumps({**dataclasses.asdict(RECORD), "extra": 1}), "unknown fields: extra"),
    ],
)
def test_a_bad_file_is_skipped_with_one_line_that_names_it(
    text: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, RECORD)
    bad = tmp_path / f"zebra{SUFFIX}"
    bad.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path) == [RECORD]
    [line] = [r.getMessage() for r in caplog.records]
    assert str(bad) in line and reason in line and "\n" not in line


def test_a_file_that_is_given_and_no_record_is_one_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, content in (("run.yaml", b"seed: 1"), ("image.png", b"\x89PNG"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} is not a record .*; give a run folder"):
            read(tmp_path / name)
    assert not caplog.records


def test_files_that_do_not_claim_to_be_records_are_not_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "samples.json").write_text("{")
    assert read(tmp_path) == [] and not caplog.records


@pytest.mark.parametrize(
    ("field", "value"),
    [("value", float("inf")), ("n", 0), ("weights", "best"), ("n", True), ("task", 3)],
)
def test_a_record_with_nonsense_cannot_be_made(field: str, value: object) -> None:
    with pytest.raises(DataError, match=field):
        changed(**{field: value})


def test_missing_and_unwritable_folders_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        write(tmp_path / "file" / "records", RECORD)
