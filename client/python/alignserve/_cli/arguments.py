"""The command line of `alignserve`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from alignserve import __version__, _bench
from alignserve._call_defaults import PRIORITIES
from alignserve._cli import (
    compact_vectors,
    curate,
    embed_dataset,
    evaluate,
    index,
    migrate_vectors,
    numbers,
    protos,
    search,
    verify_vectors,
)
from alignserve._cli.suggest import SuggestingParser
from alignserve._cli.terms import add_terms
from alignserve._environment import default_target
from alignserve._items import Dtype

_EPILOG = """\
examples:
  alignserve info
  alignserve health --wait 60
  alignserve classify cat.jpg --label cat dog --template 'a photo of a {label}'
  alignserve embed cat.jpg dog.jpg --text 'a cat' 'a dog'
  alignserve embed cat.jpg --npy vectors.npy
  alignserve compare cat.jpg --text 'a cat'
  alignserve embed-query --image bag.jpg --text red --weight 0.5 --json
  alignserve --server gpu-box:50051 stream photos/ --output vectors.jsonl
  alignserve --server gpu-box:50051 stream photos/ --output vectors.jsonl --resume
  alignserve batch requests.jsonl answers.jsonl --error-file errors.jsonl
  alignserve protos --out protos
  alignserve bench --concurrency 1,8,64
  alignserve embed-dataset photos/ --to vectors
  alignserve index photos/ --to photos.store
  alignserve search photos.store --text 'a dog on a beach' --html found.html
  alignserve curate pairs.parquet --to curated --preset coyo
  alignserve evaluate photos/ --template 'a photo of a {label}'

exit codes:
  0  success
  1  some inputs failed, or some requests of bench, or a source cannot be read in full; the others are written
  2  invalid command line, or an extra is not installed
  3  the server cannot be reached, is busy or not ready, or did not answer in time: try again
  4  the request was refused, an input cannot be read or the output not written: trying again will not help
  5  the server failed
  130  interrupted; 143 if by SIGTERM
  141  the output pipe was closed

environment (options override it):
  ALIGNSERVE_TARGET              --server; ALIGNSERVE_SERVER is an older name
  ALIGNSERVE_API_KEY             the key itself; --api-key-file names a file instead
  ALIGNSERVE_TLS                 true or false: --tls
  ALIGNSERVE_ROOT_CERTIFICATES   --ca-file
  ALIGNSERVE_CLIENT_CERTIFICATE  --certificate-file
  ALIGNSERVE_CLIENT_KEY          --certificate-key-file
"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser.

    Its namespace has the name of the command in `command`, and in `usage_error` a function that exits with
    the usage of that command.
    """
    top = SuggestingParser(
        prog="alignserve",
        description="Embed images and texts, and classify images, on an alignserve server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"alignserve {__version__}")
    _add_connection(top)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_info(commands)
    _add_health(commands)
    _add_embed(commands)
    _add_classify(commands)
    _add_compare(commands)
    _add_embed_query(commands)
    _add_stream(commands)
    _add_batch(commands)
    protos.add_arguments(
        _add_command(
            commands, "protos", "write the API's .proto files, for stubs in any language", connects=False
        )
    )
    _bench.add_arguments(_add_command(commands, "bench", "measure a server under load"))
    embed_dataset.add_arguments(
        _add_command(commands, "embed-dataset", "embed datasets of any size, and lose no row", servers=True)
    )
    verify_vectors.add_arguments(_add_command(commands, "verify-vectors", verify_vectors.SUMMARY))
    migrate_vectors.add_arguments(_add_command(commands, "migrate-vectors", migrate_vectors.SUMMARY))
    compact_vectors.add_arguments(
        _add_command(commands, "compact-vectors", compact_vectors.SUMMARY, connects=False)
    )
    index.add_arguments(_add_command(commands, "index", "make photos, texts or their embeddings searchable"))
    search.add_arguments(
        _add_command(commands, "search", "search a store of embeddings by text, image, or both")
    )
    curate.add_arguments(_add_command(commands, "curate", "measure and filter pairs of images and texts"))
    evaluate.add_arguments(_add_command(commands, "evaluate", evaluate.SUMMARY))
    return top


def _add_connection(parser: argparse.ArgumentParser, *, again: bool = False, servers: bool = False) -> None:
    # The same options are accepted before and after the command; defaults of the latter must not override
    # values of the former.
    def default(value: object) -> Any:
        return argparse.SUPPRESS if again else value

    group = parser.add_argument_group("connection")
    address = (
        "address of the server, or a URL such as https://HOST (default: ALIGNSERVE_TARGET, or "
        "127.0.0.1:50051)"
    )
    if servers:
        group.add_argument(
            "--server",
            metavar="HOST:PORT",
            action="append",
            dest="servers",
            help=f"{address}; for several, repeat it or separate them by commas",
        )
    else:
        group.add_argument("--server", metavar="HOST:PORT", default=default(default_target()), help=address)
    group.add_argument(
        "--timeout-seconds",
        metavar="S",
        type=numbers.positive,
        default=default(30.0),
        help="maximum wait for an answer (default: 30); embed and stream have no overall limit",
    )
    group.add_argument(
        "--priority",
        choices=PRIORITIES,
        default=default(None),
        help="bulk is for work that can wait for interactive work (default: interactive; bulk for "
        "batch, curate, embed-dataset and evaluate)",
    )
    group.add_argument(
        "--wait-seconds",
        metavar="S",
        type=numbers.positive,
        default=default(0.0),
        help="wait up to this long for the server to become ready (default: do not wait)",
    )
    group.add_argument("--tls", action="store_true", default=default(False), help="encrypt the connection")
    group.add_argument(
        "--ca-file",
        metavar="FILE",
        type=Path,
        default=default(None),
        help="PEM file with the certificate authorities to trust; implies --tls",
    )
    group.add_argument(
        "--certificate-file",
        metavar="FILE",
        type=Path,
        default=default(None),
        help="PEM file with this client's certificate, if the server requires one; implies --tls",
    )
    group.add_argument(
        "--certificate-key-file",
        metavar="FILE",
        type=Path,
        default=default(None),
        help="PEM file with its private key",
    )
    group.add_argument(
        "--api-key-file",
        metavar="FILE",
        type=Path,
        default=default(None),
        help="file with the API key (default: the key in ALIGNSERVE_API_KEY, if set)",
    )
    group.add_argument(
        "--header",
        metavar="KEY=VALUE",
        type=_header,
        action="append",
        default=[],
        dest="more_headers"
        if again
        else "headers",  # otherwise those after the command would replace those before it
        help="metadata to send with every call; may be repeated",
    )


def _add_info(commands: Any) -> None:
    parser = _add_command(commands, "info", "print the server's model and limits")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_health(commands: Any) -> None:
    parser = _add_command(commands, "health", "check whether the server is ready; exits with 0 if it is")
    parser.add_argument(
        "--wait",
        metavar="S",
        type=numbers.positive,
        default=argparse.SUPPRESS,
        dest="wait_seconds",
        help="the same as --wait-seconds",
    )


def _add_embed(commands: Any) -> None:
    parser = _add_command(commands, "embed", "embed images and texts")
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="*",
        type=Path,
        help="image file, or - for stdin; before --text",
    )
    parser.add_argument(
        "--text", metavar="TEXT", nargs="+", action="extend", default=[], help="text; may be repeated"
    )
    parser.add_argument(
        "--texts-file", metavar="FILE", help="texts, one per line, after those of --text; - for stdin"
    )
    _add_truncate(parser)
    _add_dtype(parser)
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--output", metavar="OUT", help="write JSON Lines, one line per input; - for stdout")
    output.add_argument(
        "--npy",
        metavar="OUT",
        type=Path,
        help="save (inputs, dimension) in input order; the row of an input that failed is NaN, or 0 for int8 "
        "and binary",
    )
    _add_resume(parser)


def _add_classify(commands: Any) -> None:
    parser = _add_command(commands, "classify", "score images against labels (zero-shot)")
    parser.add_argument(
        "image",
        metavar="IMAGE",
        nargs="*",
        type=Path,
        help="image file, or - for stdin; before --label",
    )
    _add_labels(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_compare(commands: Any) -> None:
    parser = _add_command(commands, "compare", "compare images with texts, pair by pair")
    parser.add_argument(
        "image", metavar="IMAGE", nargs="*", type=Path, help="image file, or - for stdin; before --text"
    )
    parser.add_argument(
        "--text",
        metavar="TEXT",
        nargs="+",
        action="extend",
        default=[],
        help="a text for each image; or one text for all images, or several for one image",
    )
    parser.add_argument(
        "--pairs-file", metavar="FILE", help="pairs, one per line: image file, tab, text; - for stdin"
    )
    _add_truncate(parser)
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--output", metavar="OUT", help="write JSON Lines, one line per pair; - for stdout")
    _add_resume(parser)


def _add_embed_query(commands: Any) -> None:
    parser = _add_command(
        commands, "embed-query", "embed a query of several images and texts, such as a photo plus a word"
    )
    add_terms(parser)
    _add_truncate(parser)
    _add_dtype(parser)
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--npy", metavar="OUT", type=Path, help="save (1, dimension)")


def _add_truncate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--truncate", action="store_true", help="truncate texts that are too long")


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=get_args(Dtype),
        default="float32",
        help="data type of embeddings; binary is the signs, eight in each number (default: float32)",
    )


def _add_stream(commands: Any) -> None:
    parser = _add_command(commands, "stream", "embed or classify folders of images")
    parser.add_argument(
        "path", metavar="PATH", nargs="*", type=Path, help="image file, folder of image files, or - for stdin"
    )
    _add_labels(parser)
    _add_dtype(parser)
    parser.add_argument("--ordered", action="store_true", help="write results in the order of the files")
    parser.add_argument(
        "--window", metavar="N", type=numbers.count, default=32, help="images in flight (default: 32)"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--output",
        metavar="OUT",
        default="-",
        help="write JSON Lines, one line per image (default: - for stdout)",
    )
    output.add_argument(
        "--npy",
        metavar="OUT",
        type=Path,
        help="save (images, dimension) in file order, and the file names in OUT.txt",
    )
    _add_resume(parser)


def _add_batch(commands: Any) -> None:
    parser = _add_command(commands, "batch", "answer a file of requests in the form of OpenAI's batches")
    parser.set_defaults(default_priority="bulk")
    parser.add_argument(
        "requests",
        metavar="IN",
        type=Path,
        help="JSON Lines with custom_id, method, url and body",
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        help="file for the answers, in the order of the requests; OUT.state.json is written too",
    )
    parser.add_argument(
        "--error-file",
        metavar="FILE",
        type=Path,
        help="file for the requests that failed (default: they are in OUT)",
    )
    parser.add_argument(
        "--window",
        metavar="N",
        type=numbers.count,
        default=64,
        help="texts and images in flight (default: 64)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue an earlier run with the same files; requests that have an answer are not sent again",
    )


def _add_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue an earlier run with the same --output; failed inputs are sent again",
    )


def _add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--label",
        metavar="LABEL",
        nargs="+",
        action="append",
        default=[],
        help="candidate labels; may be repeated",
    )
    parser.add_argument("--labels-file", metavar="FILE", help="labels, one per line; - for stdin")
    parser.add_argument(
        "--template", action="append", default=[], help="prompt with {label} in it; several are averaged"
    )
    parser.add_argument(
        "--top-k", metavar="N", type=int, default=0, help="only the best N labels (default: all)"
    )


def _add_command(
    commands: Any, name: str, summary: str, *, connects: bool = True, servers: bool = False
) -> argparse.ArgumentParser:
    # Any: argparse's type of `commands` is private.
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
    )
    if connects:
        _add_connection(parser, again=True, servers=servers)
    parser.set_defaults(usage_error=parser.error, default_priority="interactive")
    return parser


def _header(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"'{text}' is not KEY=VALUE")
    return key, value
