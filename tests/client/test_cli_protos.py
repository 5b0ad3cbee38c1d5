"""The command `protos`."""

from __future__ import annotations

from pathlib import Path

import pytest
from alignserve.cli import main
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

PROTOS = Path(__file__).parents[2] / "protos"
FILES = sorted(path.relative_to(PROTOS) for path in PROTOS.rglob("*.proto"))


def test_it_writes_the_protos_of_the_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every file, with a line for each; a second run changes nothing."""
    assert main(["protos", "--out", str(tmp_path / "new" / "protos")]) == 0
    first = capsys.readouterr().out
    assert main(["protos", "--out", str(tmp_path / "new" / "protos")]) == 0
    second = capsys.readouterr().out

    written = tmp_path / "new" / "protos"
    assert sorted(path.relative_to(written) for path in written.rglob("*.proto")) == FILES
    assert all((written / file).read_bytes() == (PROTOS / file).read_bytes() for file in FILES)
    assert first.splitlines() == [f"wrote {written / file}" for file in FILES]
    assert second == first.replace("wrote", "unchanged")


def test_it_overwrites_only_if_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that differs stops it before anything is written; --force replaces the file."""
    mine = tmp_path / FILES[-1]
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")

    refused = main(["protos", "--out", str(tmp_path)])
    left_alone = mine.read_text(), [path for path in tmp_path.rglob("*.proto") if path != mine]
    forced = main(["protos", "--out", str(tmp_path), "--force"])

    assert (refused, forced) == (4, 0)
    assert left_alone == ("mine", [])
    assert f"{mine} exists and differs; use --force" in capsys.readouterr().err
    assert mine.read_bytes() == (PROTOS / FILES[-1]).read_bytes()


def test_a_folder_in_the_way_stops_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It does not speak of images, as the commands do that read them."""
    assert main(["protos", "--descriptor-set", str(tmp_path)]) == 4

    assert f"{tmp_path} is a folder; a file of that name is to be written" in capsys.readouterr().err


def test_the_descriptor_set_is_complete(tmp_path: Path) -> None:
    """A tool that knows nothing else can load it, and reads the details of errors."""
    assert main(["protos", "--descriptor-set", str(tmp_path / "set.binpb")]) == 0

    files = FileDescriptorSet.FromString((tmp_path / "set.binpb").read_bytes())
    pool = DescriptorPool()
    for file in files.file:
        pool.Add(file)  # fails if an import is missing or comes later
    assert pool.FindServiceByName("alignserve.v1.AlignService")
    assert pool.FindMessageTypeByName("google.rpc.ErrorInfo")


def test_it_says_what_it_can_write(capsys: pytest.CaptureFixture[str]) -> None:
    """Without an option there is nothing to do."""
    with pytest.raises(SystemExit) as caught:
        main(["protos"])

    assert caught.value.code == 2
    assert "--out DIR or --descriptor-set FILE" in capsys.readouterr().err
