"""Pictures are measured in child processes; whatever a file does to one, only its own row fails."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pytest
from alignserve import Client
from alignserve.curate import pictures
from alignserve.curate.picture_child import perceptual_hash
from alignserve.curate.pictures import Limits, Picture, PictureProcesses, measure
from alignserve.datasets.row import RowFailure
from alignserve.testing import FakeServer
from PIL import Image

from tests.hostile.crafted import SIZES, SLOW, jpeg_with, picture, segment
from tests.hostile.mutations import mutants

_PHOTOS = Path(__file__).parents[2] / "data/photos"
_FAULTY = Path(__file__).with_name("faulty_child.py")
_CAT = (_PHOTOS / "cat.jpg").read_bytes()


def _saved(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _reasons(results: Iterator[Picture | RowFailure]) -> list[str]:
    return [result.reason if isinstance(result, RowFailure) else "ok" for result in results]


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


@pytest.fixture(scope="module")
def pool() -> Iterator[PictureProcesses]:
    with PictureProcesses(Limits(formats=("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"))) as made:
        yield made


@pytest.fixture(scope="module")
def faulty() -> Iterator[PictureProcesses]:
    with PictureProcesses(Limits(max_cpu_seconds=0.3), processes=2, _program=_FAULTY) as made:
        yield made


def _one(pool: PictureProcesses, image: bytes | Path) -> Picture | RowFailure:
    (result,) = pool.measure([image])
    return result


class TestMeasures:
    """Of good files."""

    def test_a_photo_has_all_measures(self, pool: PictureProcesses) -> None:
        """The size in pixels and bytes, the format, and both hashes."""
        found = _one(pool, _PHOTOS / "cat.jpg")

        assert isinstance(found, Picture)
        assert (found.width, found.height, found.byte_count, found.format) == (451, 300, len(_CAT), "JPEG")
        assert found.digest == _one(pool, _CAT).digest  # type: ignore[union-attr]

    @pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
    def test_each_format_is_measured_alike(self, pool: PictureProcesses, file_format: str) -> None:
        """A copy in another format has the hash of the original, up to a few bits."""
        with Image.open(BytesIO(_CAT)) as image:
            copy = _one(pool, _saved(image, file_format))

        assert isinstance(copy, Picture)
        assert (copy.width, copy.height, copy.format) == (451, 300, file_format)
        original = _one(pool, _CAT)
        assert isinstance(original, Picture)
        assert (int(copy.phash or "", 16) ^ int(original.phash or "", 16)).bit_count() <= 4

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_a_picture_is_measured_upright(self, pool: PictureProcesses, orientation: int) -> None:
        """Width, height and hash are of the picture as it is shown."""
        exif = Image.Exif()
        exif[0x0112] = orientation
        with Image.open(BytesIO(_CAT)) as image:
            turned = _one(pool, _saved(image, "JPEG", quality=95, exif=exif))
            image = Image.open(BytesIO(_saved(image, "JPEG", quality=95, exif=exif)))
        from PIL import ImageOps

        upright = ImageOps.exif_transpose(image)

        assert isinstance(turned, Picture)
        assert (turned.width, turned.height) == upright.size
        assert turned.phash == perceptual_hash(upright.convert("L"))

    def test_a_phones_further_pictures_do_not_count(self, pool: PictureProcesses) -> None:
        """MPO is JPEG with more than one picture; the first one is measured."""
        first, second = Image.open(BytesIO(_CAT)), Image.new("RGB", (30, 20))

        found = _one(pool, _saved(first, "MPO", save_all=True, append_images=[second]))

        assert isinstance(found, Picture)
        assert (found.width, found.height, found.format) == (451, 300, "JPEG")

    def test_sixteen_bits_are_scaled_not_clipped(self, pool: PictureProcesses) -> None:
        """A 16-bit picture has the hash of its 8-bit copy."""
        with Image.open(BytesIO(_CAT)) as image:
            grey = image.convert("L")
        deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)

        found, same = _one(pool, _saved(deep)), _one(pool, _saved(grey))

        assert isinstance(found, Picture)
        assert isinstance(same, Picture)
        assert found.phash == same.phash is not None

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
    def test_each_mode_is_measured(self, pool: PictureProcesses, mode: str) -> None:
        """Palettes, transparency and other colour spaces do not stop it."""
        file_format = "TIFF" if mode == "CMYK" else "PNG"
        options = {"transparency": 3} if mode == "P" else {}
        with Image.open(BytesIO(_CAT)) as image:
            found = _one(pool, _saved(image.convert("RGB").convert(mode), file_format, **options))

        assert isinstance(found, Picture)
        assert found.phash is not None

    def test_results_are_in_order(self, pool: PictureProcesses) -> None:
        """However long each takes, and whichever process takes it."""
        sides = [(7 * number) % 900 + 1 for number in range(100)]

        found = list(pool.measure(_saved(Image.new("L", (side, 1))) for side in sides))

        assert [result.width for result in found if isinstance(result, Picture)] == sides

    def test_a_caller_with_grpc_and_threads_can_use_it(self) -> None:
        """The processes are programs of their own, not forks."""
        with FakeServer() as server, Client(server.target) as client:
            client.embed_text("warm")
            found = list(measure([_CAT] * 3, processes=2))
            client.embed_text("still there")

        assert len(set(found)) == 1

    def test_a_thumbnail_is_small_and_upright(self, pool: PictureProcesses) -> None:
        """It is a JPEG, and nothing of the original file is in it."""
        exif = Image.Exif()
        exif[0x0112] = 6
        with Image.open(BytesIO(_CAT)) as image:
            content = pool.thumbnail(_saved(image, "JPEG", exif=exif), side=64)

        assert content is not None
        with Image.open(BytesIO(content)) as small:
            assert (small.format, small.size) == ("JPEG", (42, 64))
            assert not small.getexif()
        assert pool.thumbnail(b"broken") is None


class TestHash:
    """The perceptual hash."""

    # By imagehash.phash 4.3.2
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("astronaut", "c2924c5532bddfc8"),
            ("cat", "b15fe6465121175e"),
            ("coffee", "bb8320376c0f3637"),
            ("rocket", "c0371bec1be51267"),
        ],
    )
    def test_it_is_the_hash_of_imagehash(self, name: str, expected: str) -> None:
        """The bits are those of the library that most programs use."""
        with Image.open(_PHOTOS / f"{name}.jpg") as image:
            assert perceptual_hash(image.convert("L")) == expected

    @pytest.mark.parametrize("change", ["smaller", "recompressed", "brighter"])
    def test_a_copy_is_a_few_bits_away(self, change: str) -> None:
        """And another photo is not."""
        with Image.open(_PHOTOS / "coffee.jpg") as image:
            grey = image.convert("L")
        copy = {
            "smaller": lambda: grey.resize((grey.width // 2, grey.height // 2)),
            "recompressed": lambda: Image.open(BytesIO(_saved(grey, "JPEG", quality=30))),
            "brighter": lambda: grey.point([min(255, value + 20) for value in range(256)]),
        }[change]()

        assert _distance(perceptual_hash(grey), perceptual_hash(copy)) <= 6
        with Image.open(BytesIO(_CAT)) as other:
            assert _distance(perceptual_hash(grey), perceptual_hash(other.convert("L"))) > 16

    @pytest.mark.parametrize(
        "plain",
        [
            Image.new("L", (300, 200), 255),
            Image.new("L", (300, 200), 0),
            Image.linear_gradient("L"),
            Image.linear_gradient("L").rotate(90),
            Image.new("L", (7, 300)),
            Image.open(BytesIO(_CAT)).convert("L").resize((7, 7)),
            Image.open(BytesIO(_saved(Image.new("L", (300, 200), 90), "JPEG", quality=10))),
            Image.fromarray(np.random.default_rng(1).integers(127, 130, (500, 500)).astype(np.uint8)),
        ],
        ids=["white", "black", "gradient", "turned gradient", "thin", "tiny", "compressed", "noise"],
    )
    def test_a_plain_or_tiny_picture_has_none(self, plain: Image.Image) -> None:
        """Its bits would be rounding errors, and unrelated pictures would be duplicates."""
        assert perceptual_hash(plain) is None

    @pytest.mark.parametrize("name", ["cat", "coffee", "rocket", "astronaut"])
    @pytest.mark.parametrize("contrast", [1, 0.1])
    def test_a_photo_has_one(self, name: str, contrast: float) -> None:
        """Even one of low contrast."""
        with Image.open(_PHOTOS / f"{name}.jpg") as image:
            faded = image.convert("L").point([int(100 + contrast * value) % 256 for value in range(256)])

        assert perceptual_hash(faded) is not None


def _distance(one: str | None, other: str | None) -> int:
    assert one is not None
    assert other is not None
    return (int(one, 16) ^ int(other, 16)).bit_count()


class TestFailures:
    """One file's failure is its own."""

    def test_each_unreadable_file_says_why(self, pool: PictureProcesses, tmp_path: Path) -> None:
        """Files are read in the process as well, so that one that blocks is only a failed row."""
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "empty").touch()
        odd = Path(os.fsdecode(bytes(tmp_path) + b"/\xff\n.jpg"))
        odd.write_bytes(_CAT)
        (tmp_path / "loop").symlink_to(tmp_path / "loop")

        images = [tmp_path / "missing", tmp_path / "pipe", tmp_path, tmp_path / "loop", Path("/dev/zero")]
        found = list(pool.measure([*images, tmp_path / "empty", odd]))

        assert _reasons(iter(found)) == ["IMAGE_FILE_UNREADABLE"] * 5 + ["IMAGE_UNREADABLE", "ok"]
        assert [one.message for one in found[:2] if isinstance(one, RowFailure)] == [
            "image file cannot be read: No such file or directory",
            "image is not a regular file",
        ]

    @pytest.mark.parametrize("cut", [0, 1, 100, 5000, -20_000])
    def test_a_truncated_file_is_unreadable(self, pool: PictureProcesses, cut: int) -> None:
        """Half a picture is not measured as if it were whole."""
        assert _reasons(pool.measure([_CAT[:cut]])) == ["IMAGE_UNREADABLE"]

    @pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
    def test_damaged_files_have_a_result_each(self, pool: PictureProcesses, file_format: str) -> None:
        """Flipped bits, moved parts, wrong lengths, other sizes: a measure or a reason."""
        damaged = list(mutants(picture(file_format), 40))

        reasons = _reasons(pool.measure([*damaged, _CAT]))

        assert len(reasons) == 41
        assert set(reasons) <= {"ok", "IMAGE_UNREADABLE", "IMAGE_TOO_LARGE", "DECODER_OUT_OF_MEMORY"}
        assert reasons[-1] == "ok"

    def test_limits_are_checked_before_pixels_are_decoded(self, tmp_path: Path) -> None:
        """On bytes, pixels, sides and formats; each limit itself is allowed."""
        square, wide = picture("PNG", 64), _saved(Image.new("L", (100, 1)))
        (tmp_path / "large").write_bytes(square)
        limits = Limits(max_bytes=len(square), max_pixels=64 * 64, max_side=99, formats=("PNG",))

        with PictureProcesses(limits, processes=1) as pool:
            found = _reasons(
                pool.measure(
                    [square, square + b"x", picture("PNG", 65), wide, picture("JPEG"), tmp_path / "large"]
                )
            )

        too_large = "IMAGE_TOO_LARGE"
        assert found == ["ok", too_large, too_large, too_large, "IMAGE_UNREADABLE", "ok"]

    def test_an_unknown_format_is_refused_first(self) -> None:
        """EPS, for one, would start Ghostscript."""
        with pytest.raises(ValueError, match="format 'EPS' is not one of"):
            Limits(formats=("EPS",))

    def test_corrupt_exif_does_not_matter(self, pool: PictureProcesses) -> None:
        """The picture is whole, and taken as upright."""
        corrupt = jpeg_with(segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(50)), _CAT)

        assert _reasons(pool.measure([corrupt])) == ["ok"]

    def test_bombs_are_failed_rows(self) -> None:
        """Small files that claim to be huge cost little, and their neighbours succeed."""
        formats = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
        limits = Limits(max_pixels=25_000_000, max_memory_bytes=1 << 28, max_cpu_seconds=5, formats=formats)
        images = [content for build in SIZES.values() for content in (build(), _CAT)]

        found = list(measure(images, limits, processes=2))

        assert set(_reasons(iter(found[1::2]))) == {"ok"}
        refused = dict(zip(SIZES, _reasons(iter(found[::2])), strict=True))
        reasons = {"IMAGE_TOO_LARGE", "IMAGE_UNREADABLE", "DECODER_OUT_OF_MEMORY"}
        # Its decoder gets by with the memory that it may have, and returns the size that the file claims.
        assert {name for name in refused if refused[name] not in reasons} <= {
            "AVIF, stream of 12,288² for an item of 64²"
        }

    def test_a_picture_that_needs_too_much_memory_fails(self) -> None:
        """Its process is replaced, since no one knows what is left of its memory."""
        limits = Limits(max_memory_bytes=64 << 20)

        found = _reasons(measure([_CAT, picture("PNG", 6000), _CAT], limits, processes=1))

        assert found == ["ok", "DECODER_OUT_OF_MEMORY", "ok"]

    def test_a_picture_that_takes_too_much_time_fails(self) -> None:
        """Here a small file that Pillow decodes pixel by pixel, in Python."""
        slow = SLOW["BMP, 5000 ends of lines"]()
        limits = Limits(max_cpu_seconds=0.3)

        found = _reasons(measure([_CAT, slow, _CAT, picture("BMP"), _CAT], limits, processes=1))

        assert found == ["ok", "DECODER_TIMED_OUT", "ok", "ok", "ok"]


@pytest.mark.long
class TestFaults:
    """A process that dies is replaced; neighbours succeed; nothing hangs and nothing is left over."""

    @pytest.mark.parametrize(
        ("fault", "reason", "message"),
        [
            (b"crash", "DECODER_CRASHED", "image crashes its decoder: SIGSEGV"),
            (b"kill", "DECODER_CRASHED", "image crashes its decoder: SIGKILL"),
            (b"exit", "DECODER_CRASHED", "image crashes its decoder: exit code 7"),
            (b"spin", "DECODER_TIMED_OUT", "image takes longer to decode than the limit allows"),
            (b"lie", "DECODER_CRASHED", "image makes its decoder answer nonsense"),
            (b"reason", "DECODER_CRASHED", "image makes its decoder answer nonsense"),
            (b"flood", "DECODER_CRASHED", "image"),
        ],
    )
    def test_a_fault_fails_its_own_row(
        self, faulty: PictureProcesses, fault: bytes, reason: str, message: str
    ) -> None:
        """Whatever it does to its process."""
        found = list(faulty.measure([_CAT, fault, _CAT]))

        assert _reasons(iter(found)) == ["ok", reason, "ok"]
        assert isinstance(found[1], RowFailure)
        assert message in found[1].message

    def test_a_process_that_waits_or_was_stopped_is_replaced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stopped process's own timer is stopped too, and the caller's counts."""
        monkeypatch.setattr(pictures, "_MARGIN_SECONDS", 0.0)

        with PictureProcesses(Limits(max_seconds=3), processes=2, _program=_FAULTY) as pool:
            found = _reasons(pool.measure([b"stop", b"sleep", _CAT]))

        assert found == ["DECODER_TIMED_OUT", "DECODER_TIMED_OUT", "ok"]

    def test_damage_by_an_earlier_picture_fails_no_other(self) -> None:
        """A picture whose process crashes gets a new one, once."""
        with PictureProcesses(processes=1, _program=_FAULTY) as pool:
            found = _reasons(pool.measure([b"damage", _CAT, _CAT, b"crash", _CAT]))

        assert found == ["IMAGE_UNREADABLE", "ok", "ok", "DECODER_CRASHED", "ok"]

    def test_a_program_that_cannot_start_fails_the_run(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """That is the fault of no row; its own words say why."""
        program = tmp_path / "broken_child.py"
        program.write_text("raise SystemExit('no Pillow')")

        with (
            PictureProcesses(processes=1, _program=program) as pool,
            pytest.raises(OSError, match="at startup"),
        ):
            list(pool.measure([_CAT]))

        assert "no Pillow" in capfd.readouterr().err

    def test_the_results_before_a_broken_source_are_whole(self, pool: PictureProcesses) -> None:
        """The source's error comes behind them."""

        def images() -> Iterator[bytes]:
            yield from [_CAT] * 3
            raise RuntimeError("the source broke off")

        results = pool.measure(images())

        assert [next(results) for _ in range(3)]
        with pytest.raises(RuntimeError, match="broke off"):
            next(results)

    def test_nothing_is_left_of_a_pool(self) -> None:
        """Neither processes nor descriptors, also behind crashes and in the middle of a picture."""
        before = _children(), psutil.Process().num_fds()
        with PictureProcesses(processes=2, _program=_FAULTY) as pool:
            list(pool.measure([_CAT, b"crash", b"kill", _CAT]))
            next(pool.measure([_CAT, b"sleep", b"sleep", _CAT]))

        assert (_children(), psutil.Process().num_fds()) == before
        with pytest.raises(RuntimeError):
            list(pool.measure([_CAT]))

    @pytest.mark.parametrize("way", ["closed", "dropped"])
    def test_an_abandoned_iterator_ends_its_processes(self, way: str) -> None:
        """With pictures in flight."""
        before = _children()
        results = measure([_CAT] * 100, processes=2)
        next(results)

        if way == "closed":
            results.close()  # type: ignore[attr-defined]  # it is a generator
        del results
        gc.collect()

        assert _children() == before

    def test_an_abandoned_pool_ends_its_processes(self) -> None:
        """Also if its last reference is that of a thread that measures a picture."""
        before = _children()
        pool = PictureProcesses(processes=2)
        next(pool.measure([_CAT] * 100))
        children = [psutil.Process(pid) for pid in _children() - before]
        del pool
        gc.collect()

        assert children
        _, alive = psutil.wait_procs(children, timeout=60)
        assert alive == []

    def test_processes_end_with_a_caller_that_is_killed(self) -> None:
        """Even with SIGKILL."""
        program = (
            "import sys; from pathlib import Path; from alignserve.curate.pictures import PictureProcesses\n"
            "pool = PictureProcesses(processes=2)\n"
            "list(pool.measure([Path(sys.argv[1])] * 9)); print('ready', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program, str(_PHOTOS / "cat.jpg")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as caller:
            assert caller.stdout is not None
            assert caller.stdout.readline() == b"ready\n"
            children = psutil.Process(caller.pid).children()
            caller.send_signal(signal.SIGKILL)

        assert children
        _, alive = psutil.wait_procs(children, timeout=60)
        assert alive == []
