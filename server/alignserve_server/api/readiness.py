"""The state of the server, which decides whether calls are served. Each door reports it in its own way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum

from alignserve_server.errors import ModelLoading, ModelStalled, ShuttingDown


class State(Enum):
    """A stage in the life of the server."""

    LOADING = "loading"
    READY = "ready"
    STALLED = "stalled"
    DRAINING = "draining"  # about to stop, still serving
    STOPPING = "stopping"

    @property
    def word(self) -> str:
        """Its public name, one of `metrics.STATES`; stopping is shown as draining."""
        return _WORDS.get(self, self.value)


_WORDS = {State.READY: "serving", State.STOPPING: "draining"}


class Readiness:
    """The state of the server. Changing it never blocks."""

    def __init__(self, publish: Callable[[str], object] = lambda _: None) -> None:
        """Starts as loading; `publish` is called with the word for each later state."""
        self._publish = publish
        self.state = State.LOADING
        self.changed = asyncio.Event()  # the next change sets it and replaces it with a new one

    def enter(self, state: State) -> None:
        """Changes the state. Draining can only be followed by stopping, and stopping is final."""
        if self.state is State.STOPPING or (self.state is State.DRAINING and state is not State.STOPPING):
            return
        self.state = state
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()
        self._publish(state.word)

    def check(self) -> None:
        """Does nothing if a new call can be served. A draining server still serves new calls.

        Raises:
            ModelLoading, ModelStalled: It cannot be served yet or for now.
            ShuttingDown: The server no longer takes calls.
        """
        self.check_model()
        if self.state is State.STOPPING:
            raise ShuttingDown()

    def check_wanted(self) -> None:
        """Does nothing if callers should send new calls here. A draining server wants them to go elsewhere.

        Raises:
            ModelLoading, ModelStalled, ShuttingDown: They should not.
        """
        self.check()
        if self.state is State.DRAINING:
            raise ShuttingDown()

    def check_model(self) -> None:
        """Does nothing if accepted work can be served. A stopping server still serves it.

        Raises:
            ModelLoading, ModelStalled: It cannot be served yet or for now.
        """
        if self.state is State.LOADING:
            raise ModelLoading("the model is loading; retry after the delay", retry_delay_seconds=1.0)
        if self.state is State.STALLED:
            raise model_stalled()


def model_stalled() -> ModelStalled:
    """Returns the error that calls get while the model makes no progress."""
    return ModelStalled("the model is stuck; retry on another server", retry_delay_seconds=5.0)
