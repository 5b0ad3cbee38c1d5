"""The fake server refuses what a real server refuses, with the same reason and fields."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Iterator
from typing import Any

import grpc
import pytest
from alignserve.testing import FakeServer
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

from tests.integration.serving import RunningServer, refusal_of

_Outcome = tuple[str, str, tuple[str, ...]]  # code, reason, fields

IMAGE, EMPTY = pb.Image(content=b"image"), pb.Image(content=b"")
LONG = "word " * 100


def pixels(height: int, width: int, size: int) -> pb.Image:
    return pb.Image(pixels=pb.Pixels(height=height, width=width, data=bytes(size)))


BAD = pixels(2, 2, 11)


def embed(*images: pb.Image, **options: Any) -> pb.EmbedImageRequest:
    return pb.EmbedImageRequest(images=images, embedding_options=pb.EmbeddingOptions(**options))


def compare(*pairs: tuple[pb.Image, str], **fields: Any) -> pb.CompareRequest:
    return pb.CompareRequest(
        pairs=[pb.ImageTextPair(image=image, text=text) for image, text in pairs], **fields
    )


def text(text: str = "a", weight: float = 1.0) -> pb.QueryTerm:
    return pb.QueryTerm(text=text, weight=weight)


def picture(image: pb.Image, weight: float = 1.0) -> pb.QueryTerm:
    return pb.QueryTerm(image=image, weight=weight)


def queries(*terms: list[pb.QueryTerm], **options: Any) -> pb.EmbedQueryRequest:
    return pb.EmbedQueryRequest(
        queries=[pb.ComposedQuery(terms=each) for each in terms],
        embedding_options=pb.EmbeddingOptions(**options),
    )


def weights(*values: float, **options: Any) -> pb.EmbedQueryRequest:
    return queries([text(weight=value) for value in values], **options)


CASES = {
    **{
        f"pixels {height} x {width}, {size} bytes": embed(pixels(height, width, size))
        for height, width, size in [
            (1, 1, 3), (0, 0, 0), (-1, -1, 3), (0, 5, 0), (5, 0, 0), (2, 2, 11), (2, 2, 13), (-(2**31), 1, 3),
            (2**31 - 1, 2**31 - 1, 1),
        ]
    },
    "no source": embed(pb.Image()),
    "no pixels": embed(pb.Image(pixels=pb.Pixels())),
    "empty before bad": embed(BAD, EMPTY, EMPTY),
    **{f"format {number}": embed(IMAGE, format=number) for number in (-1, *pb.EmbeddingFormat.values(), 99)},
    **{
        f"format {number}, sum of {weight}": weights(weight, format=number, skip_normalization=True)
        for number in pb.EmbeddingFormat.values()
        for weight in (1e10, 1e-10)
    },
    "no pairs": compare(),
    "too many pairs": compare(*[(IMAGE, "a")] * 65),
    "nothing in a pair": pb.CompareRequest(pairs=[pb.ImageTextPair()]),
    "both of a pair": compare((IMAGE, "a"), (BAD, " "), (IMAGE, "")),
    "empty image in a pair": compare((BAD, " "), (EMPTY, " ")),
    "long text in a pair": compare((IMAGE, LONG)),
    "truncated text in a pair": compare((IMAGE, LONG), truncate=True),
    "no queries": queries(),
    "no terms": queries([], [text()], []),
    "too many terms": queries([text()] * 33, [text()] * 32),
    "too many queries": queries(*[[]] * 65),
    "nothing in a term": queries([pb.QueryTerm(weight=0.0)], [text()]),
    "terms before inputs": queries(
        [pb.QueryTerm()], [text("", 0.0)], [picture(EMPTY, math.nan), picture(BAD)]
    ),
    "inputs before sums": queries([text(" "), picture(BAD)], [text(), text(weight=-1.0)]),
    "two sums": queries([text(), text(weight=-1.0)], [text()], [text(), text(weight=-1.0)]),
    **{
        f"weights {', '.join(map(str, values))}, {skip_normalization}": weights(
            *values, skip_normalization=skip_normalization
        )
        for skip_normalization in (False, True)
        for values in [
            (math.nan,), (math.inf,), (0.0,), (-0.0,), (1e38,), (3.4e38,) * 3, (1e-45,), (1e-20,), (1e18,),
            (1e-45, -1e-45), (1.0, -0.99999), (1.0, -0.9), (1e38, -1e38), (1e38, 1e-38),
        ]
    },
}  # fmt: skip
METHODS = {
    pb.EmbedImageRequest: "EmbedImage",
    pb.CompareRequest: "Compare",
    pb.EmbedQueryRequest: "EmbedQuery",
}


async def outcome_of(call: Awaitable[object]) -> _Outcome:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error)
        return refusal.code.name, refusal.reason, tuple(refusal.fields)
    return "OK", "", ()


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


async def test_the_fake_server_answers_and_refuses_like_a_real_one(
    served: RunningServer, fake: FakeServer
) -> None:
    """A program that was tested with it meets nothing new."""

    async def outcomes(stub: Any) -> dict[str, _Outcome]:
        return {
            name: await outcome_of(getattr(stub, METHODS[type(request)])(request))
            for name, request in CASES.items()
        }

    async with grpc.aio.insecure_channel(fake.target) as channel:
        of_fake = await outcomes(pb_grpc.AlignServiceStub(channel))

    assert of_fake == await outcomes(served.stub)
