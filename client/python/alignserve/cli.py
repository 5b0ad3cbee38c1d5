"""The command `alignserve`: the client from a shell."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, TextIO

import numpy as np

from alignserve import _bench
from alignserve._cli import arguments, output, protos, render
from alignserve._cli.compact_vectors import run_compact_vectors
from alignserve._cli.connection import connected
from alignserve._cli.curate import run_curate
from alignserve._cli.embed_dataset import run_embed_dataset
from alignserve._cli.evaluate import run_evaluate
from alignserve._cli.extras import MissingExtraError
from alignserve._cli.files import Found, image_files, is_image_file
from alignserve._cli.index import run_index
from alignserve._cli.inputs import STDIN, check_stdin, image_of, read_labels, read_lines, read_pairs
from alignserve._cli.label_warnings import fits_badly, warn_of_labels, warn_of_winners
from alignserve._cli.migrate_vectors import run_migrate_vectors
from alignserve._cli.progress import Progress
from alignserve._cli.resume import Earlier, line_key
from alignserve._cli.search import run_search
from alignserve._cli.terms import terms_of
from alignserve._cli.unknown_words import warn_of_unknown_texts
from alignserve._cli.verify_vectors import run_verify_vectors
from alignserve._client import Client
from alignserve._items import (
    ClassifyItem,
    CompareItem,
    Dtype,
    ImageItem,
    Item,
    QueryItem,
    StreamResult,
    TextItem,
)
from alignserve._responses import missing_rows
from alignserve._results import Classification, Comparison
from alignserve.errors import (
    AlignserveError,
    DeadlineExceededError,
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from alignserve.search.errors import StoreError

OK, SOME_FAILED, USAGE, NO_SERVER, REFUSED, SERVER_FAILED = range(6)
INTERRUPTED, BROKEN_PIPE = 130, 141  # as shells report SIGINT and SIGPIPE

_EMBED_WINDOW = 32  # items in flight


class _UsageError(Exception):
    """The command line has an error that argparse cannot detect."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; an invalid command line raises `SystemExit(2)`."""
    output.prepare_standard_streams()
    args = arguments.parser().parse_args(argv)
    return run_command(_COMMANDS[args.command], args)


def run_command(command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Runs a command and returns its exit code, also for the errors that it raises."""
    try:
        code = command(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout again at exit, and would report the broken pipe then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except _UsageError as error:
        args.usage_error(str(error))
        return USAGE  # not reached: argparse exits
    except MissingExtraError as error:
        _complain(str(error))
        return USAGE
    except AlignserveError as error:
        _complain(_advice(error, args))
        return exit_code(error)
    except StoreError as error:
        _complain(str(error))
        return REFUSED
    except IsADirectoryError as error:
        takes_image = args.command in ("classify", "compare")
        advice = "use alignserve stream to process the images in it" if takes_image else "give a file"
        _complain(f"{error.filename} is a folder; {advice}")
        return REFUSED
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
    """Prints the server's model and limits."""
    with connected(args) as client:
        info = client.model_info()
    if args.json:
        _print_json(dataclasses.asdict(info))
    else:
        print(render.info_table(info))
    return OK


def run_health(args: argparse.Namespace) -> int:
    """Prints that the server is ready; otherwise an error says why it is not."""
    with connected(args) as client:
        client.check_ready(timeout_seconds=args.timeout_seconds)
        print(f"{client.target} is ready")
    return OK


def run_classify(args: argparse.Namespace) -> int:
    """Prints the labels of each image, best first."""
    labels = read_labels(args, args.image, needs="classify needs an IMAGE")
    if not labels:
        raise _UsageError("classify needs --label or --labels-file")
    images = [image_of(path) for path in args.image]
    with connected(args) as client:
        if len(images) == 1:
            found = client.classify(images[0], labels, prompt_templates=args.template, top_k=args.top_k)
            code = _print_classification(found, len(labels), args)
        else:
            results = client.classify(
                images, labels, prompt_templates=args.template, top_k=args.top_k, on_error="return"
            )
            code = _print_classifications(results, len(labels), args)
        warn_of_labels(client, labels, _complain)
    return code


def run_embed(args: argparse.Namespace) -> int:
    """Prints or saves the embeddings of files and texts, in the order given."""
    for text in filter(is_image_file, args.text):
        raise _UsageError(f"'{text}' after --text is a file; put files before --text")
    check_stdin(args, args.file)
    _check_resumes(args, args.file)
    texts = [*args.text, *(read_lines(args.texts_file) if args.texts_file else [])]
    items: list[Item] = [ImageItem(image_of(path), dtype=args.dtype, id=str(path)) for path in args.file]
    items += [TextItem(text, truncate=args.truncate, dtype=args.dtype, id=text) for text in texts]
    if not items:
        raise _UsageError("embed needs a FILE, --text or --texts-file")
    if args.output is not None:
        return _write_lines(args, items, ordered=True)
    with output.open_bytes(args.npy) if args.npy else nullcontext() as npy, connected(args) as client:
        info = client.model_info()
        results = list(_whole(client.stream(items, ordered=True), items))
        if npy:
            _save(npy, results, info.embedding_dimension, args.dtype)
        elif args.json:
            _print_json(
                {"model": info.fingerprint, "embeddings": [_embed_line(result) for result in results]}
            )
        else:
            _print_embeddings(results, args.dtype)
    warn_of_unknown_texts(results, _complain)
    return _report_failures(results)


def run_compare(args: argparse.Namespace) -> int:
    """Prints or writes how well each text matches its image."""
    pairs = read_pairs(args)
    if not pairs:
        raise _UsageError("compare needs IMAGE and --text, or --pairs-file")
    _check_resumes(args, [path for path, _ in pairs])
    images = {path: image_of(path) for path in dict.fromkeys(path for path, _ in pairs)}
    items: list[Item] = [
        CompareItem(images[path], text, truncate=args.truncate, id=str(path)) for path, text in pairs
    ]
    if args.output is not None:
        return _write_lines(args, items, ordered=True)
    with connected(args) as client:
        results = list(_whole(client.stream(items, ordered=True), items))
    if args.json:
        _print_json({"comparisons": [_stream_line(result) for result in results]})
    elif rows := [
        (result.id, result.item.text, result.comparison)
        for result in results
        if isinstance(result.item, CompareItem) and result.error is None
    ]:
        print(render.comparison_table(rows))
    warn_of_unknown_texts(results, _complain)
    return _report_failures(results)


def run_embed_query(args: argparse.Namespace) -> int:
    """Prints or saves the embedding of a composed query."""
    if not args.terms:
        raise _UsageError("embed-query needs --image or --text")
    check_stdin(args, [term.image for term in args.terms if term.image is not None])
    item = QueryItem(terms_of(args.terms), truncate=args.truncate, dtype=args.dtype, id="query")
    with output.open_bytes(args.npy) if args.npy else nullcontext() as npy, connected(args) as client:
        info = client.model_info()
        (result,) = client.stream([item])
        vector = result.embedding
        if npy:
            _save(npy, [result], info.embedding_dimension, args.dtype)
        elif args.json:
            _print_json({"model": info.fingerprint, **_values(result, "values")})
        else:
            print(render.embedding_table([(result.id, "query", vector)]))
    return OK


def run_stream(args: argparse.Namespace) -> int:
    """Writes a line for every image file below the paths, through one stream."""
    labels = read_labels(args, args.path, needs="stream needs a PATH")
    if args.npy and labels:
        raise _UsageError("--npy stores embeddings; leave out the labels, or use --output")
    _check_resumes(args, args.path)
    found = image_files(args.path)
    if not found.files:
        left_out = "".join(f" ({line})" for line in found.left_out())
        raise _UsageError(f"no image files in {', '.join(map(str, args.path))}{left_out}")
    if args.npy:
        return _stream_to_npy(args, found)
    items = [_stream_item(file, labels, args) for file in found.files]
    return _write_lines(args, items, ordered=args.ordered, labels=labels, found=found)


def run_batch(args: argparse.Namespace) -> int:
    """Answers a file of requests in OpenAI's batch form."""
    from alignserve._cli import batch

    return batch.run_batch(args, _complain)


def run_protos(args: argparse.Namespace) -> int:
    """Writes the protos or a descriptor set, for stubs in other languages."""
    if args.out is None and args.descriptor_set is None:
        raise _UsageError("protos needs --out DIR or --descriptor-set FILE")
    for line in protos.write(args):
        print(line)
    return OK


_COMMANDS = {
    "info": run_info,
    "health": run_health,
    "classify": run_classify,
    "embed": run_embed,
    "embed-query": run_embed_query,
    "compare": run_compare,
    "stream": run_stream,
    "batch": run_batch,
    "protos": run_protos,
    "bench": _bench.run,
    "embed-dataset": run_embed_dataset,
    "verify-vectors": run_verify_vectors,
    "migrate-vectors": run_migrate_vectors,
    "compact-vectors": run_compact_vectors,
    "index": run_index,
    "search": run_search,
    "curate": run_curate,
    "evaluate": run_evaluate,
}


def _check_resumes(args: argparse.Namespace, paths: Sequence[Path]) -> None:
    if not args.resume:
        return
    if args.output in (None, "-") or getattr(args, "npy", None):
        raise _UsageError("--resume continues a file; name it with --output")
    if getattr(args, "dtype", None) == "binary":
        raise _UsageError("--resume cannot compare binary embeddings with the server's; use another --dtype")
    if STDIN in paths:
        raise _UsageError("--resume needs files, since standard input has no name")


def _stream_item(file: Path, labels: Sequence[str], args: argparse.Namespace) -> Item:
    if labels:
        return ClassifyItem(image_of(file), labels, args.template, args.top_k, id=str(file))
    return ImageItem(image_of(file), dtype=args.dtype, id=str(file))


def _write_lines(
    args: argparse.Namespace,
    items: list[Item],
    *,
    ordered: bool,
    labels: Sequence[str] = (),
    found: Found | None = None,
) -> int:
    """Writes a line for each item, or for each item that an earlier run did not finish."""
    earlier = Earlier.read(Path(args.output)) if args.resume else None
    with _opened(args.output) as out, connected(args) as client:
        info = client.model_info()
        warn_of_labels(client, labels, _complain)
        if found is not None:
            items = _readable(items, found, info.image_formats)
        left = items if earlier is None else _left(earlier, items, client)
        if out is not sys.stdout and earlier is None:
            output.empty(out)  # only once the server has answered
        progress = Progress(len(left), sys.stderr, is_hidden=out.isatty())
        window = getattr(args, "window", _EMBED_WINDOW)
        results = client.stream(left, ordered=ordered, window=window)
        with output.open_end(Path(args.output)) if earlier else nullcontext(out) as lines:
            try:
                for result in _counted(_observed(results, labels), progress):
                    lines.write(_json(_stream_line(result), lines) + "\n")
                lines.flush()
            except KeyboardInterrupt:
                _complain(_interrupted(progress, args.output))
                raise
    if earlier is not None:
        _complain(f"{len(items) - len(left)} of {len(items)} were done before")
    return _summarize(progress)


def _readable(items: list[Item], found: Found, formats: Sequence[str]) -> list[Item]:
    """Returns the items whose files the server can read, and reports the files skipped in folders."""
    files = {str(file) for file in found.readable(formats)}
    for line in found.left_out():
        _complain(line)
    if not files:
        raise ValueError(f"no images that this server can read; it reads {', '.join(formats)}")
    return [item for item in items if item.id in files]


def _left(earlier: Earlier, items: list[Item], client: Client) -> list[Item]:
    """Returns the items that an earlier run did not finish, after checking that its lines are still valid."""
    left = earlier.left(items, lambda item: line_key(_line_of(item)))
    if earlier.last is not None:
        key = line_key(earlier.last)
        again = next((item for item in items if line_key(_line_of(item)) == key), None)
        if again is not None:
            (now,) = client.stream([again])
            if now.error is not None:
                raise now.error
            earlier.check(_stream_line(now))
    earlier.repair()
    return left


def _observed(results: Iterable[StreamResult], labels: Sequence[str]) -> Iterator[StreamResult]:
    """Yields the results, and warns at the end about unreliable labels and scores."""
    texts: list[StreamResult] = []
    unfitting: list[str] = []
    for result in results:
        yield result
        if isinstance(result.item, (TextItem, CompareItem)):
            texts.append(StreamResult(result.item, tokenization=result.tokenization))
        elif labels and result.error is None and fits_badly(result.classifications):
            unfitting.append(str(result.id))
    warn_of_unknown_texts(texts, _complain)
    warn_of_winners(unfitting, len(labels), _complain)


def _stream_to_npy(args: argparse.Namespace, found: Found) -> int:
    names_path = args.npy.with_name(f"{args.npy.name}.txt")
    with (
        output.open_bytes(args.npy) as npy,
        output.open_text(names_path) as names,
        connected(args) as client,
    ):
        info = client.model_info()
        items = _readable([_stream_item(file, (), args) for file in found.files], found, info.image_formats)
        progress = Progress(len(items), sys.stderr)
        stream = client.stream(items, ordered=True, window=args.window)
        results = list(_counted(_whole(stream, items), progress))
        _save(npy, results, info.embedding_dimension, args.dtype)
        output.empty(names)
        names.writelines(f"{item.id}\n" for item in items)
    _report_failures(results)
    return _summarize(progress)


def _whole(results: Iterable[StreamResult], items: Sequence[Item]) -> Iterator[StreamResult]:
    """Yields ordered results; if the stream ends early, its error becomes that of the remaining items."""
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


def _interrupted(progress: Progress, output: str) -> str:
    advice = "" if output == "-" else "; run the same command with --resume to do the rest"
    return f"interrupted: {progress.summary()}{advice}"


def _line_of(item: Item) -> dict[str, Any]:
    """Returns the fields that identify an item in its line; images have no `kind`."""
    if isinstance(item, CompareItem):
        return {"input": item.id, "text": item.text}
    return {"input": item.id, "kind": "text"} if isinstance(item, TextItem) else {"input": item.id}


def _stream_line(result: StreamResult) -> dict[str, Any]:
    line = _line_of(result.item)
    if result.error is not None:
        return {**line, "error": render.error_data(result.error)}
    value = result.result()
    if isinstance(value, list):
        return {**line, "classifications": render.classification_data(value)}
    if isinstance(value, Comparison):
        return {**line, **render.comparison_data(value)}
    return {**line, **_values(result, "embedding")}


def _embed_line(result: StreamResult) -> dict[str, Any]:
    line: dict[str, Any] = {"input": result.id, "kind": _kind(result)}
    if result.error is not None:
        return {**line, "error": render.error_data(result.error)}
    return {**line, **_values(result, "values")}


def _values(result: StreamResult, name: str) -> dict[str, Any]:
    scale = {} if result.int8_scale is None else {"int8_scale": result.int8_scale}
    return {name: render.vector_data(result.embedding), **scale}


def _print_classification(found: list[Classification], label_count: int, args: argparse.Namespace) -> int:
    if args.json:
        _print_json({"classifications": render.classification_data(found)})
    else:
        print(render.classification_table(found))
    warn_of_winners([str(args.image[0])] if fits_badly(found) else [], label_count, _complain)
    return OK


def _print_classifications(
    results: Sequence[list[Classification] | AlignserveError], label_count: int, args: argparse.Namespace
) -> int:
    named = list(zip(map(str, args.image), results, strict=True))
    found = [(name, result) for name, result in named if not isinstance(result, AlignserveError)]
    failed = [(name, result) for name, result in named if isinstance(result, AlignserveError)]
    if args.json:
        _print_json({"results": [_classify_line(name, result) for name, result in named]})
    elif found:
        tables = [f"{name}\n{render.classification_table(result)}" for name, result in found]
        print("\n\n".join(tables))
    for name, error in failed:
        _complain(f"{name}: {error}")
    warn_of_winners([name for name, result in found if fits_badly(result)], label_count, _complain)
    return SOME_FAILED if failed else OK


def _classify_line(name: str, result: list[Classification] | AlignserveError) -> dict[str, Any]:
    if isinstance(result, AlignserveError):
        return {"input": name, "error": render.error_data(result)}
    return {"input": name, "classifications": render.classification_data(result)}


def _print_embeddings(results: Sequence[StreamResult], dtype: Dtype) -> None:
    rows = [(result.id, _kind(result), result.embedding) for result in results if result.error is None]
    if not rows:
        return
    print(render.embedding_table(rows))
    images = [(name, vector) for name, kind, vector in rows if kind == "image"]
    texts = [(name, vector) for name, kind, vector in rows if kind == "text"]
    if images and texts and dtype != "binary":
        print(f"\n{render.similarity_table(images, texts)}")


def _save(file: IO[bytes], results: Sequence[StreamResult], dimension: int, dtype: Dtype) -> None:
    rows = missing_rows(len(results), dimension, dtype=dtype)  # a failed input keeps its row
    for row, result in zip(rows, results, strict=True):
        if result.error is None:
            row[:] = result.embedding
    output.empty(file)
    np.save(file, rows)


def _report_failures(results: Iterable[StreamResult]) -> int:
    failed = [result for result in results if result.error is not None]
    for result in failed:
        _complain(f"{result.id}: {result.error}")
    return SOME_FAILED if failed else OK


def _kind(result: StreamResult) -> str:
    return "text" if isinstance(result.item, TextItem) else "image"


@contextmanager
def _opened(path: str) -> Iterator[TextIO]:
    if path == "-":
        yield sys.stdout
    else:
        with output.open_text(Path(path)) as file:
            yield file


def _print_json(data: object) -> None:
    print(_json(data, sys.stdout))


def _json(data: object, out: TextIO) -> str:
    return output.json_text(data, out)


def _complain(message: str) -> None:
    output.complain(message)


def _advice(error: AlignserveError, args: argparse.Namespace) -> str:
    if isinstance(error, InvalidArgumentError) and _is_of_the_image(error, args):
        return f"{args.image[0]}: {error}"
    if isinstance(error, UnauthenticatedError) and error.reason == "KEY_MISSING":
        return f"{error}; give it with --api-key-file FILE or ALIGNSERVE_API_KEY"
    if isinstance(error, UnavailableError) and error.reason:
        return f"{error}; add --wait-seconds 60 to wait for it"
    if isinstance(error, UnavailableError) and isinstance(error.__cause__, (AlignserveError, TimeoutError)):
        return error.message  # it has the cause and advice
    if isinstance(error, UnavailableError):
        return (
            f"no server at {args.server}: {error.message}; start alignserve-server there, "
            "or give another address with --server"
        )
    if isinstance(error, DeadlineExceededError) and not error.reason:
        return (
            f"no answer from {args.server} within {args.timeout_seconds:g} s; "
            "allow more time with --timeout-seconds"
        )
    return str(error)


def _is_of_the_image(error: InvalidArgumentError, args: argparse.Namespace) -> bool:
    """Returns whether an error is about the only image of `classify`; with several, each has its own line."""
    return args.command == "classify" and any(at.field.startswith("images[0]") for at in error.violations)


if __name__ == "__main__":
    sys.exit(main())
