"""How workers of pytest-xdist share the tests: by file or folder, and one runs all that need torch."""

from __future__ import annotations

import os
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# Tests of these folders share a server, an installation, a download or a slow import: one worker runs each.
_WHOLE_FOLDERS = ("tests/client/search/", "tests/contract/", "tests/deploy/", "tests/hostile/")
# These import torch, and share checkpoints. One worker runs them all, so that the others need not import it
# to collect them: that takes seven seconds and half a gigabyte.
_WITH_TORCH = ("tests/model/", "tests/gpu/", "tests/unit/model/runtimes/")
# The longest come first, so that no worker is left with them at the end.
_LONGEST_FIRST = (
    *_WITH_TORCH,
    "tests/hostile/",
    "tests/deploy/",
    "tests/contract/",
    "tests/client/search/",
    "tests/integration/",
)

_TAKES_TORCH = "takes_torch"
_TORCH_WORKER = pytest.StashKey[str]()


def choose_torch_worker(node: Any) -> None:
    """Tells the first worker that it runs the tests that need torch, and all others that they do not.

    All workers collect them where workers would otherwise not agree on the rest.
    """
    name = node.gateway.id
    is_first = node.config.stash.setdefault(_TORCH_WORKER, name) == name
    node.workerinput[_TAKES_TORCH] = is_first or _selects_torch(node.config)


def _selects_torch(config: pytest.Config) -> bool:
    """Returns whether an argument names tests that need torch, or an option may select only them."""
    paths = (config.invocation_params.dir / argument.partition("::")[0] for argument in config.args)
    return (
        config.getoption("lf", default=False)
        or config.getoption("stepwise", default=False)
        or any(f"{os.path.relpath(path, config.rootpath)}/".startswith(_WITH_TORCH) for path in paths)
    )


def is_left_to_another(config: pytest.Config, path: str) -> bool:
    """Returns whether another worker runs what is at a path, which is relative to the repository's root."""
    takes_torch: bool = getattr(config, "workerinput", {}).get(_TAKES_TORCH, True)
    return not takes_torch and f"{path}/".startswith(_WITH_TORCH)


def turn(nodeid: str) -> int:
    """Returns a number by which tests are sorted."""
    folders = (number for number, each in enumerate(_LONGEST_FIRST) if nodeid.startswith(each))
    return next(folders, len(_LONGEST_FIRST))


class Scheduling(LoadScopeScheduling):
    """Gives each worker whole files, and whole folders where their tests share fixtures."""

    assigned_work: dict[Any, dict[str, dict[str, bool]]]
    registered_collections: dict[Any, list[str]]

    def schedule(self) -> None:
        """Also gives the worker that collected most, so everything, the first turn."""
        if self.collection is None:
            nodes = sorted(self.nodes, key=lambda node: -len(self.registered_collections[node]))
            self.registered_collections = {node: self.registered_collections[node] for node in nodes}
            self.assigned_work = {node: self.assigned_work[node] for node in nodes}
        super().schedule()

    def _check_nodes_have_same_collection(self) -> bool:
        everything = next(iter(self.registered_collections.values()))
        without_torch = [nodeid for nodeid in everything if not nodeid.startswith(_WITH_TORCH)]
        if all(each in (everything, without_torch) for each in self.registered_collections.values()):
            return True
        return super()._check_nodes_have_same_collection()

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(_WITH_TORCH):
            return "torch"
        return next((each for each in _WHOLE_FOLDERS if nodeid.startswith(each)), nodeid.split("::")[0])

    def _assign_work_unit(self, node: Any) -> None:
        collected = set(self.registered_collections[node])
        scopes = (scope for scope, tests in self.workqueue.items() if collected.issuperset(tests))
        if (scope := next(scopes, None)) is None:
            node.shutdown()
            return
        self.workqueue.move_to_end(scope, last=False)
        super()._assign_work_unit(node)
