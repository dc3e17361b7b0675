"""The file of an edit that does not change weights: complete, checked, and never executed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata.editors.edit_file import FORMAT, StoredEdit, edit_format
from errata.errors import InputError

from tests.support.editing import FACTS


def stored() -> StoredEdit:
    return StoredEdit(
        method="toy",
        settings={"size": 3},
        facts=tuple(FACTS[:2]),
        base="lab",
        fingerprint="f" * 64,
        created="2026-11-28T00:00:00+00:00",
        versions={"errata": "0"},
        state={"threshold": 0.5},
        tensors={"keys": torch.arange(6.0).reshape(2, 3), "codes": torch.tensor([1, 2])},
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    edit, path = stored(), tmp_path / "edit.safetensors"
    edit.save(path)
    again = StoredEdit.load(path)
    for name in ("method", "settings", "facts", "base", "fingerprint", "created", "versions", "state", "stored_bytes"):
        assert getattr(again, name) == getattr(edit, name), name
    assert again.tensors.keys() == edit.tensors.keys()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in edit.tensors.items())
    assert edit_format(path) == FORMAT
    assert path.stat().st_size >= edit.stored_bytes


def test_any_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "edit.safetensors"
    stored().save(path)
    whole = path.read_bytes()
    for place in range(8, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError) as caught:
            StoredEdit.load(path)
        assert caught.value.code == "EDIT_UNREADABLE"


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"not a tensor file"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "edit.safetensors"
    path.write_bytes(content)
    assert edit_format(path) is None
    with pytest.raises(InputError) as caught:
        StoredEdit.load(path)
    assert caught.value.code == "EDIT_UNREADABLE"
    with pytest.raises(InputError):
        StoredEdit.load(tmp_path / "missing")
