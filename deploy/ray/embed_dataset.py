"""`alignserve embed-dataset` on the machines of a Ray cluster.

    python -m deploy.ray.embed_dataset SOURCE... --to FOLDER --workers 4

It is the same command, with the same output, account and `--resume`; only the source files are shared out to
actors of Ray, each of which does one file after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import logging
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import count
from typing import Any

import ray
from alignserve import AsyncClient, cli
from alignserve._cli import embedding_job
from alignserve._cli.connection import client_options, server_names
from alignserve.datasets.embedding import EmbedOptions, RowCounter, embed
from alignserve.datasets.faults import ModelChangedError, RunError
from alignserve.datasets.output import OutputFolder
from alignserve.datasets.records import ShardRecord
from alignserve.datasets.servers import DIRECT, Servers
from alignserve.datasets.sinks import Sink
from alignserve.datasets.source import Dataset
from alignserve.errors import AlignserveError
from ray.exceptions import RayActorError, RayTaskError

from deploy.ray import job_command

_MAX_DEATHS = 5  # of a worker at the same source file
_POLL_SECONDS = 1.0  # between questions to a worker about its rows

_log = logging.getLogger("alignserve")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; an invalid command line raises `SystemExit(2)`."""
    ours, args = job_command.parsed(
        "embed-dataset", "deploy.ray.embed_dataset", "Embed a dataset on the machines of a Ray cluster.", argv
    )
    if args.folder is None:
        args.usage_error("the job needs --to FOLDER")
    return cli.run_command(functools.partial(_run, ours=ours), args)


def _run(args: argparse.Namespace, ours: argparse.Namespace) -> int:
    workers = job_command.join_cluster(ours)
    clients = [client_options(args, name) for name in server_names(args)]
    return embedding_job.run(args, functools.partial(embed_on_ray, workers, clients))


async def embed_on_ray(
    workers: int,
    clients: Sequence[Mapping[str, Any]],
    dataset: Dataset,
    output: OutputFolder,
    sink: Sink,
    servers: Servers,
    options: EmbedOptions,
    *,
    counter: RowCounter | None = None,
) -> None:
    """Embeds the rows that an output does not have yet, as `embed` does, on workers of a Ray cluster.

    Ray starts a worker again that dies, with its machine or without; its file goes on behind the last shard
    that is on the disk.

    Args:
        workers: Number of workers; one file is done by one of them.
        clients: The arguments of `AsyncClient` for each server.
        dataset: The rows.
        output: Where they go; the caller holds its lock.
        sink: Writes the files of a shard.
        servers: Those of the caller, whose model all workers must find.
        options: How to embed.
        counter: Told about rows and shards.

    Raises:
        AlignserveError: The servers do not answer or refuse, or workers die again and again at the same file.
        ModelChangedError: A server has another model than the run began with.
        OSError: The output cannot be written.
    """
    job = ray.put((dataset, output.folder, sink, clients, servers.info.fingerprint, options))
    kind: Any = ray.remote(max_restarts=-1, num_cpus=1, scheduling_strategy="SPREAD")(_Worker)
    actors = [kind.remote([job]) for _ in range(min(workers, len(dataset.files)))]
    files = _Files(len(dataset.files), counter or RowCounter())
    tasks = [asyncio.create_task(files.give_to(actor)) for actor in actors]
    try:
        await asyncio.gather(*tasks)
    except RayTaskError as error:
        raise error.cause from error
    finally:
        for task in tasks:
            task.cancel()
        for actor in actors:
            ray.kill(actor)


class _Files:
    """The source files that are left, handed out one by one."""

    def __init__(self, total: int, counter: RowCounter) -> None:
        self._left = deque(range(total))
        self._counter = counter

    async def give_to(self, actor: Any) -> None:  # Any: Ray's handle has no types
        """Lets a worker do files until none is left, and ends it.

        Raises:
            RayTaskError: The worker has failed, but lives.
            AlignserveError: It died again and again at the same file.
        """
        while self._left:
            await self._do(actor, self._left.popleft())
        ray.kill(actor)  # another one, whose machine is lost, may wait for its place

    async def _do(self, actor: Any, number: int) -> None:
        """Lets a worker do a file, also if it dies meanwhile.

        The file stays with it: after a break of the network it may still be doing it.
        """
        for deaths in count(1):
            done = asyncio.ensure_future(_answer(actor.embed_file.remote(number)))
            try:
                await self._follow(actor, done)
            except RayActorError as error:
                _log.warning("a worker died at source file %d: %s", number, error)
                if deaths == _MAX_DEATHS:
                    raise AlignserveError(
                        f"a worker died {deaths} times at source file {number}; see its logs, or leave the "
                        f"file out: {error}"
                    ) from error
                await _answer(actor.ready.options(max_task_retries=-1).remote())
            else:
                return
            finally:
                done.cancel()

    async def _follow(self, actor: Any, done: asyncio.Future[Any]) -> None:
        """Waits until a worker has done its file, and counts its rows meanwhile."""
        while not done.done():
            await asyncio.wait([done], timeout=_POLL_SECONDS)
            if done.done():
                await done
            rows, failed, records = await _answer(actor.take_counts.remote())
            for position in range(rows):
                self._counter.row(failed=position < failed)
            for record in records:
                self._counter.committed(record)


async def _answer(reference: Any) -> Any:
    return await reference


class _Counts(RowCounter):
    """Counts rows and shards until they are taken."""

    def __init__(self) -> None:
        self._rows = self._failed = 0
        self._records: list[ShardRecord] = []

    def row(self, *, failed: bool) -> None:
        self._rows += 1
        self._failed += failed

    def committed(self, record: ShardRecord) -> None:
        self._records.append(record)

    def take(self) -> tuple[int, int, list[ShardRecord]]:
        """Returns how many rows and failed rows there are, and the shards, since the last time."""
        taken = self._rows, self._failed, self._records
        self._rows, self._failed, self._records = 0, 0, []
        return taken


class _Worker:
    """Embeds source files of a dataset, one at a time, and can be asked for counts meanwhile."""

    def __init__(self, job: list[Any]) -> None:
        """Takes a list with a reference: Ray may drop the object of an argument before a restart."""
        given = ray.get(job[0])
        self._dataset, self._folder, self._sink, self._clients, self._fingerprint, self._options = given
        self._counts = _Counts()
        self._turn = asyncio.Lock()

    async def embed_file(self, number: int) -> None:
        """Embeds what is left of a source file.

        Raises:
            AlignserveError: The servers do not answer, or refuse.
            ModelChangedError: They have another model than the run began with.
            OSError: The output cannot be written.
        """
        async with self._turn:  # after a break of the network, the driver asks for a file that is being done
            await self._embed_file(number)

    async def ready(self) -> None:
        """Returns once the worker runs."""

    async def take_counts(self) -> tuple[int, int, list[ShardRecord]]:
        """Returns what was done since the last call: rows, failed rows, and shards."""
        return self._counts.take()

    async def _embed_file(self, number: int) -> None:
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(AsyncClient(retry=DIRECT, **options))
                for options in self._clients
            ]
            servers = await Servers.connect(clients)
            if servers.info.fingerprint != self._fingerprint:
                raise ModelChangedError(
                    f"{clients[0].target} has a model of fingerprint {servers.info.fingerprint}, not "
                    f"{self._fingerprint}; embeddings of two models cannot be compared"
                )
            output = OutputFolder.join(self._folder)
            try:
                await embed(
                    self._dataset,
                    output,
                    self._sink,
                    servers,
                    self._options,
                    files=[number],
                    counter=self._counts,
                )
            except RunError as error:
                raise error.error from None  # it can be sent to the driver


if __name__ == "__main__":
    sys.exit(main())
