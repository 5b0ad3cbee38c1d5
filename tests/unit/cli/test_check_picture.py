"""`alignserve-server check --picture` compares scores with published ones."""

from __future__ import annotations

import json
import math
import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from alignserve_server.cli.check.deployment import Deployment
from alignserve_server.cli.check.picture import PUBLISHED, PublishedLogits, compare_picture, served_logits
from alignserve_server.cli.check.report import CheckWarning
from alignserve_server.cli.main import run
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.settings import Settings
from PIL import Image


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of 64 x 48."""
    path = tmp_path / "cats.png"
    Image.new("RGB", (64, 48), "teal").save(path)
    return path


@pytest.fixture
def deployment() -> Deployment:
    """One whose model hashes its inputs, and of which transformers knows nothing."""
    examined = Deployment(Settings(checkpoint="fake"), ExitStack())
    examined.encoder = FakeEncoder(embedding_dimension=640, is_recording=False)
    return examined


def published(deployment: Deployment, picture: Path, shift: float = 0.0) -> PublishedLogits:
    """Returns the logits of the deployment as if they were published, all but the shift."""
    encoder = deployment.encoder
    assert encoder is not None
    ours = served_logits(encoder, picture.read_bytes())
    return PublishedLogits(
        f"example/{encoder.info.model_id}",
        640,
        (64, 48),
        "a teal picture",
        tuple(float(logit) + shift for logit in ours),
        "their tests",
    )


def test_the_figures_of_align_base_are_those_of_transformers() -> None:
    """They are in its integration test, with a tolerance of a thousandth."""
    (align_base,) = PUBLISHED

    assert align_base.logits == (9.7093, 3.4679)
    assert align_base.fits("kakaobrain/align-base", 640, (640, 480))
    assert align_base.fits("align-base", 640, (640, 480))  # its folder
    assert not align_base.fits("mini", 640, (640, 480))
    assert not align_base.fits("kakaobrain/align-base", 640, (480, 640))


def test_equal_scores_pass(deployment: Deployment, picture: Path) -> None:
    """The line shows them and their source."""
    text = compare_picture(deployment, picture, [published(deployment, picture, shift=5e-4)])

    assert re.search(r"'a photo of a cat' \S+, 'a photo of a dog' \S+: as published for example/", text)


def test_other_scores_fail(deployment: Deployment, picture: Path) -> None:
    """Both are shown, and why there is no second opinion."""
    with pytest.raises(ValueError, match=r"but their tests has .*transformers needs the checkpoint"):
        compare_picture(deployment, picture, [published(deployment, picture, shift=0.01)])


def test_scores_of_another_picture_are_compared_with_nothing(deployment: Deployment, picture: Path) -> None:
    """A published figure is of one checkpoint and one picture."""
    other = replace(published(deployment, picture), size=(48, 64))

    with pytest.raises(CheckWarning, match="compared with nothing: transformers needs"):
        compare_picture(deployment, picture, [other])


@pytest.mark.parametrize(("cosine", "passes"), [(0.9999, True), (1.0, False)])
def test_half_precision_may_differ_by_what_a_start_has_measured(
    deployment: Deployment, picture: Path, cosine: float, passes: bool
) -> None:
    """A cosine is converted to the greatest difference of a logit."""
    encoder = deployment.encoder
    assert isinstance(encoder, FakeEncoder)
    figures = published(deployment, picture, shift=math.acos(0.9999) / encoder.info.temperature)
    encoder.info = replace(encoder.info, dtype="float16", min_cosine_similarity=cosine)

    if passes:
        assert "as published" in compare_picture(deployment, picture, [figures])
    else:
        with pytest.raises(ValueError, match="but their tests has"):
            compare_picture(deployment, picture, [figures])


def test_a_picture_that_cannot_be_read_fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The command names it, and exits with 1."""
    ports = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]

    code = run(["check", "--checkpoint", "fake", "--json", "--picture", str(tmp_path / "none.jpg"), *ports])

    findings = json.loads(capsys.readouterr().out)["findings"]
    (found,) = [finding for finding in findings if finding["subject"] == "picture"]
    assert code == 1
    assert found["verdict"] == "FAIL"
    assert "none.jpg" in found["text"]
