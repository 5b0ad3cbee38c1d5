"""The command line of `alignserve`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from alignserve import __version__, _bench
from alignserve._cli.suggest import SuggestingParser
from alignserve._environment import default_target
from alignserve._terms import PRIORITIES

_EPILOG = """\
examples:
  alignserve info
  alignserve health --wait 60
  alignserve classify cat.jpg --label cat dog --template 'a photo of a {label}'
  alignserve embed cat.jpg dog.jpg --text 'a cat' 'a dog'
  alignserve embed cat.jpg --npy vectors.npy
  alignserve --server gpu-box:50051 stream photos/ --output vectors.jsonl
  alignserve --server gpu-box:50051 stream photos/ --output vectors.jsonl --resume
  alignserve bench --concurrency 1,8,64

exit codes:
  0  all is well
  1  some inputs failed, or requests of bench; the others are written
  2  the command line is wrong
  3  no server, one that is busy or not ready, or no answer in time: worth trying again
  4  the request was refused, or an input cannot be read: trying again will not help
  5  the server failed
  130  interrupted
  141  the reader of the output went away

environment, over which options win:
  ALIGNSERVE_TARGET              --server; ALIGNSERVE_SERVER is an older name
  ALIGNSERVE_API_KEY             the key itself, and not a file as for --api-key-file
  ALIGNSERVE_TLS                 true or false: --tls
  ALIGNSERVE_ROOT_CERTIFICATES   --ca-file
  ALIGNSERVE_CLIENT_CERTIFICATE  --certificate-file
  ALIGNSERVE_CLIENT_KEY          --certificate-key-file
"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser.

    The namespace that it fills has the name of the command in `command`, and in `usage_error` what ends the
    program with the usage of that command.
    """
    top = SuggestingParser(
        prog="alignserve",
        description="Embeds images and texts and classifies images, on an alignserve server.",
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
    _add_stream(commands)
    _bench.add_arguments(_add_command(commands, "bench", "measure a server under load"))
    return top


def _add_connection(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    # The same options stand before and after the command; those after it must not undo those before.
    def default(value: object) -> Any:
        return argparse.SUPPRESS if again else value

    group = parser.add_argument_group("connection")
    group.add_argument(
        "--server",
        metavar="HOST:PORT",
        default=default(default_target()),
        help="address of the server, or a URL such as https://HOST (default: ALIGNSERVE_TARGET, else "
        "127.0.0.1:50051)",
    )
    group.add_argument(
        "--timeout-seconds",
        metavar="S",
        type=_positive_float,
        default=default(30.0),
        help="longest wait for an answer (default: 30); embed and stream have no limit as a whole",
    )
    group.add_argument(
        "--priority",
        choices=PRIORITIES,
        default=default("interactive"),
        help="bulk is for work that can wait while others' is served (default: interactive)",
    )
    group.add_argument(
        "--wait-seconds",
        metavar="S",
        type=_positive_float,
        default=default(0.0),
        help="first wait up to this long until the server is ready (default: do not wait)",
    )
    group.add_argument("--tls", action="store_true", default=default(False), help="encrypt the connection")
    group.add_argument(
        "--ca-file",
        metavar="FILE",
        type=Path,
        default=default(None),
        help="certificates, in PEM, of the authorities that the server's may come from; includes --tls",
    )
    group.add_argument(
        "--certificate-file",
        metavar="FILE",
        type=Path,
        default=default(None),
        help="this client's certificate, in PEM, where the server asks for one; includes --tls",
    )
    group.add_argument(
        "--certificate-key-file",
        metavar="FILE",
        type=Path,
        default=default(None),
        help="its private key, in PEM",
    )
    group.add_argument(
        "--api-key-file",
        metavar="FILE",
        type=Path,
        default=default(None),
        help="file with the API key (default: the key in ALIGNSERVE_API_KEY, if that is set)",
    )
    group.add_argument(
        "--header",
        metavar="KEY=VALUE",
        type=_header,
        action="append",
        default=[],
        dest="more_headers" if again else "headers",  # or those after the command would replace the others
        help="send this metadata with every call; may be repeated",
    )


def _add_info(commands: Any) -> None:
    parser = _add_command(commands, "info", "print the model and the limits of the server")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_health(commands: Any) -> None:
    parser = _add_command(commands, "health", "ask whether the server is ready; exits with 0 if it is")
    parser.add_argument(
        "--wait",
        metavar="S",
        type=_positive_float,
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
        "--texts-file", metavar="FILE", help="texts, one a line, after those of --text; - for stdin"
    )
    parser.add_argument("--truncate", action="store_true", help="cut texts that are too long")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--output", metavar="OUT", help="write JSON Lines, one line an input; - for stdout")
    output.add_argument(
        "--npy",
        metavar="OUT",
        type=Path,
        help="save (inputs, dimension) float32 in input order; the row of an input that failed is NaN",
    )
    _add_resume(parser)


def _add_classify(commands: Any) -> None:
    parser = _add_command(commands, "classify", "score images against labels (zero-shot)")
    parser.add_argument(
        "image",
        metavar="IMAGE",
        nargs="*",
        type=Path,
        help="image file, or - for stdin; files come before --label",
    )
    _add_labels(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_stream(commands: Any) -> None:
    parser = _add_command(commands, "stream", "embed or classify folders of images")
    parser.add_argument(
        "path", metavar="PATH", nargs="*", type=Path, help="image file, folder of such, or - for stdin"
    )
    _add_labels(parser)
    parser.add_argument("--ordered", action="store_true", help="write in the order of the files")
    parser.add_argument(
        "--window", metavar="N", type=_positive_int, default=32, help="images in flight (default: 32)"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--output",
        metavar="OUT",
        default="-",
        help="JSON Lines, one line an image (default: - for stdout)",
    )
    output.add_argument(
        "--npy",
        metavar="OUT",
        type=Path,
        help="save (images, dimension) float32 in file order, and the names in OUT.txt",
    )
    _add_resume(parser)


def _add_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on where an earlier run with the same --output stopped; what failed is done again",
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
    parser.add_argument("--labels-file", metavar="FILE", help="labels, one a line; - for stdin")
    parser.add_argument(
        "--template", action="append", default=[], help="prompt with {label} in it; several are averaged"
    )
    parser.add_argument(
        "--top-k", metavar="N", type=int, default=0, help="only the best N labels (default: all)"
    )


def _add_command(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    # Any: argparse names the type of `commands` privately.
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
    )
    _add_connection(parser, again=True)
    parser.set_defaults(usage_error=parser.error)
    return parser


def _positive_int(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value


def _header(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"'{text}' is not KEY=VALUE")
    return key, value
