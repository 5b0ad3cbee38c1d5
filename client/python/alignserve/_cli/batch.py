"""The command `alignserve batch`: answers a file of requests in OpenAI's batch form."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from alignserve._batch.output import Outputs
from alignserve._batch.run import Batch, prepare, run
from alignserve._batch.source import Source
from alignserve._cli.connection import connected
from alignserve._cli.progress import Progress
from alignserve.errors import AlignserveError

OK, SOME_FAILED = 0, 1  # as `cli` has them

Say = Callable[[str], None]  # to people, on stderr


def run_batch(args: argparse.Namespace, say: Say) -> int:
    """Writes an answer for every request, and says the account.

    Raises:
        AlignserveError: The server cannot be reached or refuses the work.
        OSError: A file cannot be read or written.
        ValueError: The input or an earlier output is not usable.
    """
    _check_distinct(args)
    with (
        Source(args.requests) as source,
        Outputs(args.out, args.error_file, resume=args.resume) as outputs,
    ):
        batch = prepare(source, outputs)
        before = outputs.account.done
        if before:
            say(f"{before} of {batch.survey.requests} were done before")
        if batch.is_complete:
            outputs.finish(outputs.earlier())  # a run may have been killed just before it
        else:
            _answer(batch, args, say)
        say(f"{outputs.account}{_of_blanks(batch.survey.blank)}")
        return SOME_FAILED if outputs.account.failed else OK


def _answer(batch: Batch, args: argparse.Namespace, say: Say) -> None:
    left = batch.survey.requests - batch.outputs.account.done
    with connected(args) as client:
        progress = Progress(left, sys.stderr)
        try:
            run(
                batch,
                client,
                window=args.window,
                on_answer=lambda answer: progress.advance(failed=bool(answer.reason)),
            )
        except (KeyboardInterrupt, AlignserveError, OSError):
            progress.finish()
            say(f"stopped: {progress.summary()}; run the same command with --resume to do the rest")
            raise
        finally:
            progress.finish()
        say(progress.summary())


def _check_distinct(args: argparse.Namespace) -> None:
    """Exits if a file is to be read and written, or written for two purposes."""
    paths = [args.requests, args.out, *([args.error_file] if args.error_file else [])]
    if len({path.resolve() for path in paths}) < len(paths) or any(
        one.exists() and other.exists() and one.samefile(other)
        for at, one in enumerate(paths)
        for other in paths[:at]
    ):
        args.usage_error("IN, OUT and --error-file must be different files")


def _of_blanks(count: int) -> str:
    return f"; {count} blank {'line' if count == 1 else 'lines'} skipped" if count else ""
