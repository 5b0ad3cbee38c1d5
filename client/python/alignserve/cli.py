"""The command `alignserve`: what the client can do, from a shell."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, TextIO

import numpy as np

from alignserve import _arguments, _bench, _output, _render
from alignserve._connection import connected
from alignserve._files import image_files, is_image_file
from alignserve._items import ClassifyItem, ImageItem, Item, StreamResult, TextItem
from alignserve._progress import Progress
from alignserve._unknown import warn_of_unknown_labels, warn_of_unknown_texts
from alignserve.errors import (
    AlignserveError,
    DeadlineExceededError,
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)

OK, SOME_FAILED, USAGE, NO_SERVER, REFUSED, SERVER_FAILED = range(6)
INTERRUPTED, BROKEN_PIPE = 130, 141  # as shells report SIGINT and SIGPIPE


class _UsageError(Exception):
    """The command line is wrong in a way that argparse cannot see."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; a wrong command line raises `SystemExit(2)`."""
    _output.prepare_standard_streams()
    args = _arguments.parser().parse_args(argv)
    try:
        code = _COMMANDS[args.command](args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout again at exit, and would complain about the pipe then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except _UsageError as error:
        args.usage_error(str(error))
        return USAGE  # not reached: argparse has exited
    except AlignserveError as error:
        _complain(_advice(error, args))
        return exit_code(error)
    except (OSError, TypeError, ValueError) as error:
        _complain(str(error))
        return REFUSED
    return code


def exit_code(error: AlignserveError) -> int:
    """Returns the exit code for an error that ended the command."""
    if isinstance(error, ResourceExhaustedError):
        return REFUSED if error.retry_delay_seconds is None else NO_SERVER
    if isinstance(error, (UnavailableError, DeadlineExceededError)):
        return NO_SERVER
    if isinstance(error, (InvalidArgumentError, UnauthenticatedError, PermissionDeniedError)):
        return REFUSED
    return SERVER_FAILED


def run_info(args: argparse.Namespace) -> int:
    """Prints the model and the limits of the server."""
    with connected(args) as client:
        info = client.model_info()
    if args.json:
        _print_json(dataclasses.asdict(info))
    else:
        print(_render.info_table(info))
    return OK


def run_classify(args: argparse.Namespace) -> int:
    """Prints the labels of one image, best first."""
    labels = _labels(args)
    if not labels:
        raise _UsageError("classify needs --label or --labels-file")
    with connected(args) as client:
        found = client.classify(args.image, labels, prompt_templates=args.template, top_k=args.top_k)
        if args.json:
            _print_json({"classifications": _render.classification_data(found)})
        else:
            print(_render.classification_table(found))
        warn_of_unknown_labels(client, labels, _complain)
    return OK


def run_embed(args: argparse.Namespace) -> int:
    """Prints or saves the embeddings of files and texts, in the order given."""
    for text in filter(is_image_file, args.text):
        raise _UsageError(f"'{text}' after --text is a file; put files before --text")
    texts = [*args.text, *(_lines(args.texts_file) if args.texts_file else [])]
    items: list[Item] = [ImageItem(path, id=str(path)) for path in args.file]
    items += [TextItem(text, truncate=args.truncate, id=text) for text in texts]
    if not items:
        raise _UsageError("embed needs a FILE, --text or --texts-file")
    with _output.open_bytes(args.npy) if args.npy else nullcontext() as npy, connected(args) as client:
        info = client.model_info()
        results = list(_whole(client.stream(items, ordered=True), items))
        if npy:
            _save(npy, results, info.embedding_dimension)
        elif args.json:
            _print_json(
                {"model": info.fingerprint, "embeddings": [_embed_line(result) for result in results]}
            )
        else:
            _print_embeddings(results)
    warn_of_unknown_texts(results, _complain)
    return _report_failures(results)


def run_stream(args: argparse.Namespace) -> int:
    """Writes a line for every image file below the paths, through one stream."""
    labels = _labels(args)
    if args.npy and labels:
        raise _UsageError("--npy holds embeddings; leave out the labels, or use --output")
    files = list(image_files(args.path))
    if not files:
        raise _UsageError(f"no image files in {', '.join(map(str, args.path))}")
    if args.npy:
        return _stream_to_npy(args, files)
    return _stream_to_lines(args, files, labels)


_COMMANDS = {
    "info": run_info,
    "classify": run_classify,
    "embed": run_embed,
    "stream": run_stream,
    "bench": _bench.run,
}


def _stream_item(file: Path, labels: Sequence[str], args: argparse.Namespace) -> Item:
    if labels:
        return ClassifyItem(file, labels, args.template, args.top_k, id=str(file))
    return ImageItem(file, id=str(file))


def _stream_to_lines(args: argparse.Namespace, files: Sequence[Path], labels: Sequence[str]) -> int:
    items = (_stream_item(file, labels, args) for file in files)
    with _opened(args.output) as out, connected(args) as client:
        client.model_info()
        warn_of_unknown_labels(client, labels, _complain)
        if out is not sys.stdout:
            _output.empty(out)  # not before the server has answered
        progress = Progress(len(files), sys.stderr, is_hidden=out.isatty())
        results = client.stream(items, ordered=args.ordered, window=args.window)
        for result in _counted(results, progress):
            out.write(_json(_stream_line(result), out) + "\n")
        out.flush()
    return _summarize(progress)


def _stream_to_npy(args: argparse.Namespace, files: Sequence[Path]) -> int:
    names_path = args.npy.with_name(f"{args.npy.name}.txt")
    with (
        _output.open_bytes(args.npy) as npy,
        _output.open_text(names_path) as names,
        connected(args) as client,
    ):
        dimension = client.model_info().embedding_dimension
        progress = Progress(len(files), sys.stderr)
        items: list[Item] = [ImageItem(file, id=str(file)) for file in files]
        stream = client.stream(items, ordered=True, window=args.window)
        results = list(_counted(_whole(stream, items), progress))
        _save(npy, results, dimension)
        _output.empty(names)
        names.writelines(f"{file}\n" for file in files)
    _report_failures(results)
    return _summarize(progress)


def _whole(results: Iterable[StreamResult], items: Sequence[Item]) -> Iterator[StreamResult]:
    """Yields ordered results, and the error of a stream that ends midway for the items that it leaves."""
    done = 0
    try:
        for result in results:
            done += 1
            yield result
    except AlignserveError as error:
        if not done:
            raise
        yield from (StreamResult(item, error=error) for item in items[done:])


def _counted(results: Iterable[StreamResult], progress: Progress) -> Iterator[StreamResult]:
    try:
        for result in results:
            yield result
            progress.advance(failed=result.error is not None)
    finally:
        progress.finish()


def _summarize(progress: Progress) -> int:
    _complain(progress.summary())
    return SOME_FAILED if progress.failed else OK


def _stream_line(result: StreamResult) -> dict[str, Any]:
    if result.error is not None:
        return {"input": result.id, "error": _render.error_data(result.error)}
    value = result.result()
    if isinstance(value, list):
        return {"input": result.id, "classifications": _render.classification_data(value)}
    return {"input": result.id, "embedding": _render.vector_data(value)}


def _embed_line(result: StreamResult) -> dict[str, Any]:
    line: dict[str, Any] = {"input": result.id, "kind": _kind(result)}
    if result.error is not None:
        return {**line, "error": _render.error_data(result.error)}
    return {**line, "values": _render.vector_data(result.embedding)}


def _print_embeddings(results: Sequence[StreamResult]) -> None:
    rows = [(result.id, _kind(result), result.embedding) for result in results if result.error is None]
    if not rows:
        return
    print(_render.embedding_table(rows))
    images = [(name, vector) for name, kind, vector in rows if kind == "image"]
    texts = [(name, vector) for name, kind, vector in rows if kind == "text"]
    if images and texts:
        print(f"\n{_render.similarity_table(images, texts)}")


def _save(file: IO[bytes], results: Sequence[StreamResult], dimension: int) -> None:
    rows = np.full((len(results), dimension), np.nan, np.float32)  # a failed input keeps its row
    for row, result in zip(rows, results, strict=True):
        if result.error is None:
            row[:] = result.embedding
    _output.empty(file)
    np.save(file, rows)


def _report_failures(results: Iterable[StreamResult]) -> int:
    failed = [result for result in results if result.error is not None]
    for result in failed:
        _complain(f"{result.id}: {result.error}")
    return SOME_FAILED if failed else OK


def _kind(result: StreamResult) -> str:
    return "text" if isinstance(result.item, TextItem) else "image"


def _labels(args: argparse.Namespace) -> list[str]:
    return [*args.label, *(_lines(args.labels_file) if args.labels_file else [])]


def _lines(path: str) -> list[str]:
    with nullcontext(sys.stdin) if path == "-" else Path(path).open(encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip()]


@contextmanager
def _opened(output: str) -> Iterator[TextIO]:
    if output == "-":
        yield sys.stdout
    else:
        with _output.open_text(Path(output)) as file:
            yield file


def _print_json(data: object) -> None:
    print(_json(data, sys.stdout))


def _json(data: object, out: TextIO) -> str:
    return json.dumps(data, ensure_ascii=not _output.is_unicode(out))


def _complain(message: str) -> None:
    print(f"alignserve: {' '.join(message.split())}", file=sys.stderr)


def _advice(error: AlignserveError, args: argparse.Namespace) -> str:
    if isinstance(error, UnavailableError) and error.reason:
        return f"{error}; add --wait-seconds 60 to wait for it"
    if isinstance(error, UnavailableError):
        return (
            f"no server at {args.server}: {error.message}; start alignserve-server there, "
            "or name another one with --server"
        )
    if isinstance(error, DeadlineExceededError) and not error.reason:
        return (
            f"no answer from {args.server} within {args.timeout_seconds:g} s; allow more by --timeout-seconds"
        )
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
