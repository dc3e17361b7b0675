"""Parsers' errors in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.errors import InputError
from errata.patches.patch import read_patch
from errata.runs.run import read_manifest

from tests.support.errors import raises_code


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b'{"subject": "Ada", "prompt": "{} is", "target": "x"}\n' * 9, "it is not a safetensors file"),
        (
            b"\x40\0\0\0\0\0\0\0" + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(64),
            "it is truncated",
        ),
        (b"\x08\0\0\0\0\0\0\0{      }", "its format is None"),
    ],
)
def test_a_file_that_is_no_patch(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "patch.safetensors"
    path.write_bytes(content)
    with raises_code("PATCH_UNREADABLE", InputError, str(path), reason):
        read_patch(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"{,}", "it is not JSON (line 1, column 2)"),
        (b"\xff", "it is not UTF-8 text"),
        (b"{}", "it has no 'checksum'"),
    ],
)
def test_a_file_that_is_no_record(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with raises_code("RUN_UNREADABLE", InputError, str(path), reason):
        read_manifest(path)
    with raises_code("RUN_UNREADABLE", InputError, "its parent is a file"):
        read_manifest(path / "run.json")
