"""Runs a batch: reads requests, embeds their inputs over one stream, and writes answers in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from alignserve._batch.answers import Answer, answer_of
from alignserve._batch.embeddings import Embeddings, TextInput
from alignserve._batch.embeddings import ImageInput as EncodedImage
from alignserve._batch.output import Job, Outputs
from alignserve._batch.request import Request, read_request
from alignserve._batch.source import Source, Survey
from alignserve._client import Client
from alignserve._items import ImageItem, Item, StreamResult, TextItem
from alignserve._results import ModelInfo
from alignserve.errors import InternalError, InvalidArgumentError

_ANSWERS = (InvalidArgumentError, InternalError)  # to an input; others say that the work is refused


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch whose input has been checked and whose outputs are open.

    Attributes:
        source: The requests.
        survey: What the source has.
        outputs: The answers, with those of earlier runs.
    """

    source: Source
    survey: Survey
    outputs: Outputs

    @property
    def is_complete(self) -> bool:
        """Whether every request has its answer."""
        return self.outputs.account.done == self.survey.requests


def prepare(source: Source, outputs: Outputs) -> Batch:
    """Checks the input, and finds what an earlier run has answered. Nothing is written but repairs.

    Raises:
        OSError: A file cannot be read.
        ValueError: There are no requests, a `custom_id` comes twice, or the earlier run had another input.
    """
    survey = source.survey()
    if not survey.requests:
        raise ValueError(f"{source.path} has no requests")
    if outputs.is_begun:
        outputs.check_resumes(survey)  # so the ids were checked
        outputs.take_stock(survey)
    else:
        source.check_ids(outputs.folder)
    return Batch(source, survey, outputs)


def run(batch: Batch, client: Client, *, window: int, on_answer: Callable[[Answer], object]) -> None:
    """Answers the requests that have no answer yet.

    Args:
        batch: The batch.
        client: Of the server.
        window: Maximum number of inputs in flight.
        on_answer: Called with each answer, after it is written.

    Raises:
        AlignserveError: The server cannot be reached or refuses the work; the answers so far are kept.
        OSError: A file cannot be read or written.
        ValueError: The model is another one than before, or the input has changed.
    """
    outputs = batch.outputs
    model = client.model_info()
    if outputs.is_begun:
        outputs.check_model(model.fingerprint)
    job = Job(
        batch.survey.sha256,
        batch.survey.requests,
        model.model_id,
        model.fingerprint,
        outputs.has_error_file,
    )
    outputs.begin(job)
    items = _items(batch.source, outputs.account.done, model)
    results: list[StreamResult] = []
    with closing(client.stream(items, ordered=True, window=window)) as stream:
        for result in stream:
            if result.error is not None and not isinstance(result.error, _ANSWERS):
                raise result.error
            results.append(result)
            place: _Place = result.id
            if place.is_last:
                answer = answer_of(place.request, results, job.name, model)
                outputs.write(answer)
                on_answer(answer)
                results.clear()
    if client.model_info().fingerprint != model.fingerprint:
        raise ValueError("the server's model changed during the run; remove the output and start again")
    outputs.finish(job)


@dataclass(frozen=True, slots=True)
class _Place:
    """Which request an item of the stream belongs to."""

    request: Request
    is_last: bool  # of its items


class _NotSent:
    """Stands for a request that is refused here: an image that cannot be read.

    The stream then returns it in its turn without sending it, and holds at most a window of such items.
    """

    def read(self, _: int = -1, /) -> bytes:
        raise ValueError("not sent")


def _items(source: Source, skip: int, model: ModelInfo) -> Iterator[Item]:
    for number, line in enumerate(source.lines(skip), start=skip + 1):
        request = read_request(
            line.content,
            number,
            line.number,
            model,
            is_too_long=line.is_too_long,
            is_ended=line.is_ended,
        )
        wanted = request.wanted
        if not isinstance(wanted, Embeddings):
            yield ImageItem(_NotSent(), id=_Place(request, is_last=True))
            continue
        for position, each in enumerate(wanted.inputs, start=1):
            yield _item(each, wanted, _Place(request, position == len(wanted.inputs)))


def _item(each: TextInput | EncodedImage, wanted: Embeddings, place: _Place) -> Item:
    if isinstance(each, TextInput):
        return TextItem(each.text, truncate=wanted.truncate, normalize=wanted.normalize, id=place)
    return ImageItem(each, normalize=wanted.normalize, id=place)
