"""The files of answers: a line for each request, in order, which a killed run leaves whole but for the last.

Every line names its request by number, so the files themselves say what has been answered. A small file,
`OUT.state.json`, says to which input and of which model the answers are.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from alignserve._batch.answers import Answer
from alignserve._batch.source import Survey

_FORMAT = {"format": "alignserve-batch", "version": 1}
_NAME_CHARACTERS = 12  # of the input's digest, which name the batch in ids
_HEAD = re.compile(rb'\{"id":"batch_req_([0-9a-f]{12})_(\d{1,18})","custom_id":')
_OK = b',"response":{"status_code":200,'  # in a custom_id, its quotes would be escaped


@dataclass(frozen=True, slots=True)
class Job:
    """What the answers are of.

    Attributes:
        input_sha256: Of the file of requests.
        requests: How many it has.
        model_id: Of the server.
        fingerprint: Of the model.
        has_error_file: Whether failed requests are in a file of their own.
    """

    input_sha256: str
    requests: int
    model_id: str
    fingerprint: str
    has_error_file: bool

    @property
    def name(self) -> str:
        """The name of the batch, in ids: the same for the same input."""
        return self.input_sha256[:_NAME_CHARACTERS]


@dataclass(slots=True)
class Account:
    """How many requests were answered, and how many failed for which reason."""

    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def done(self) -> int:
        """The number of lines."""
        return self.answered + self.failed.total()

    def enter(self, reason: str) -> None:
        """Counts a line; the reason is empty if its request succeeded."""
        if reason:
            self.failed[reason] += 1
        else:
            self.answered += 1

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.failed.items()))
        return f"{self.done} requests = {self.answered} answered + {self.failed.total()} failed" + (
            f" ({reasons})" if reasons else ""
        )


class Outputs:
    """The output file and, if it is wanted, the error file, locked against other runs.

    Attributes:
        account: Of the lines in the files.
    """

    def __init__(self, out: Path, error_file: Path | None, *, resume: bool) -> None:
        """Opens or creates the files, and changes nothing in them.

        Raises:
            OSError: A file cannot be opened.
            ValueError: Another run writes them, or they have content and are not resumed.
        """
        self._paths = [out] if error_file is None else [out, error_file]
        self._state_path = out.with_name(f"{out.name}.state.json")
        self.account = Account()
        with ExitStack() as opened:
            self._files = [_Lines(path, opened) for path in self._paths]
            for file in self._files:
                if file.size and not resume:
                    raise ValueError(
                        f"{file.path} is not empty; continue with --resume, or remove it to start again"
                    )
            self._opened = opened.pop_all()

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    @property
    def folder(self) -> Path:
        """The folder of the output file."""
        return self._state_path.parent

    @property
    def has_error_file(self) -> bool:
        """Whether failed requests go to a file of their own."""
        return len(self._files) > 1

    @property
    def is_begun(self) -> bool:
        """Whether there are lines of an earlier run."""
        return any(file.size for file in self._files)

    def earlier(self) -> Job:
        """Returns what the answers of an earlier run are of.

        Raises:
            OSError: The file that says so cannot be read.
            ValueError: It is missing or damaged.
        """
        try:
            found = json.loads(self._state_path.read_bytes())
            return Job(**found["job"])
        except FileNotFoundError:
            raise ValueError(
                f"{self._paths[0]} was not written by `alignserve batch`: there is no {self._state_path.name}"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{self._state_path} is damaged; remove the output to start again") from None

    def check_resumes(self, survey: Survey) -> None:
        """Checks that an earlier run read the same input, and wrote the same kinds of files.

        Raises:
            OSError, ValueError: It did not, or did not say.
        """
        earlier = self.earlier()
        if earlier.input_sha256 != survey.sha256:
            raise ValueError(
                f"{self._paths[0]} has answers to another input, or the input has changed since; write to "
                "another file, or remove it to start again"
            )
        if earlier.has_error_file != self.has_error_file:
            change = "with --error-file and its name" if earlier.has_error_file else "without --error-file"
            raise ValueError(f"{self._paths[0]} was begun differently; resume it {change}")

    def check_model(self, fingerprint: str) -> None:
        """Checks that an earlier run used the same model.

        Raises:
            OSError, ValueError: It used another one.
        """
        earlier = self.earlier()
        if earlier.fingerprint != fingerprint:
            raise ValueError(
                f"{self._paths[0]} has embeddings of another model, of fingerprint {earlier.fingerprint}; "
                f"the server's is {fingerprint}; write to another file"
            )

    def take_stock(self, survey: Survey) -> None:
        """Counts the lines of the files into `account`, and removes what is incomplete.

        These are the last line, if it is cut off, and lines behind a missing one, which only a crash of the
        machine can leave.

        Raises:
            OSError: A file cannot be read.
            ValueError: A file has lines of something else.
        """
        name = survey.sha256[:_NAME_CHARACTERS].encode()
        readers = [file.lines(name) for file in self._files]
        ends = [0] * len(readers)
        heads = [next(reader, None) for reader in readers]
        while True:
            expected = self.account.done + 1
            at = next((at for at, head in enumerate(heads) if head and head.number == expected), None)
            if at is None:
                break
            head = heads[at]
            assert head is not None  # noqa: S101 — just found
            self.account.enter(head.reason)
            ends[at] = head.end
            heads[at] = next(readers[at], None)
        for file, end in zip(self._files, ends, strict=True):
            file.truncate(end)

    def begin(self, job: Job) -> None:
        """Writes what the answers are of, before the first of them."""
        self._write_state(job, "running")

    def write(self, answer: Answer) -> None:
        """Appends the answer to the next request, so that a killed run leaves it.

        Raises:
            OSError: It cannot be written; then a part of it may have been.
        """
        is_error = bool(answer.reason) and self.has_error_file
        self._files[int(is_error)].append(answer.line)
        self.account.enter(answer.reason)

    def finish(self, job: Job) -> None:
        """Writes all lines to the disk, and that the files are complete.

        Raises:
            OSError: Something cannot be written.
            RuntimeError: There is not a line for every request, which would be a bug.
        """
        if self.account.done != job.requests:
            raise RuntimeError(f"{self.account.done} lines for {job.requests} requests")
        for file in self._files:
            file.sync()
        self._write_state(job, "complete")

    def _write_state(self, job: Job, state: str) -> None:
        content: dict[str, Any] = {**_FORMAT, "state": state, "job": asdict(job)}
        if state == "complete":
            content |= {"answered": self.account.answered, "failed": dict(self.account.failed)}
        draft = self._state_path.with_name(f"{self._state_path.name}.draft")
        with draft.open("w") as file:
            json.dump(content, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._state_path)


@dataclass(frozen=True, slots=True)
class _Head:
    """A line that an earlier run wrote.

    Attributes:
        number: Of its request.
        reason: Why the request failed; empty if it did not.
        end: Position behind the line.
    """

    number: int
    reason: str
    end: int


class _Lines:
    """A file of answers."""

    def __init__(self, path: Path, opened: ExitStack) -> None:
        self.path = path
        self._file = opened.enter_context(path.open("ab", buffering=0))
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process
        except BlockingIOError:
            raise ValueError(f"{path} is being written by another run") from None

    @property
    def size(self) -> int:
        """The size in bytes."""
        return os.fstat(self._file.fileno()).st_size

    def lines(self, name: bytes) -> Iterator[_Head]:
        """Yields what the whole lines are, of a batch with this name."""
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                found = _HEAD.match(line)
                if found is None or found[1] != name:
                    raise ValueError(f"line {number} of {self.path} was not written for this input")
                yield _Head(int(found[2]), _reason(line), end)

    def truncate(self, size: int) -> None:
        """Cuts the file, unless it has this size."""
        if size != self.size:
            os.truncate(self.path, size)

    def append(self, line: bytes) -> None:
        """Writes a line."""
        rest = memoryview(line)
        while rest:
            rest = rest[self._file.write(rest) :]

    def sync(self) -> None:
        """Writes the file to the disk."""
        os.fsync(self._file.fileno())


def _reason(line: bytes) -> str:
    if _OK in line:
        return ""
    found = json.loads(line)
    error = found["error"] or found["response"]["body"]["error"]
    reason: str = error["code"]
    return reason
