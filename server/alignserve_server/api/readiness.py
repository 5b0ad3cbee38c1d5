"""Whether calls can be served now: the state of the server, which each door shows in its own way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum

from alignserve_server.errors import ModelLoading, ModelStalled, ShuttingDown


class State(Enum):
    """Where the server is in its life."""

    LOADING = "loading"
    READY = "ready"
    STALLED = "stalled"
    DRAINING = "draining"  # on its way out, still serving
    STOPPING = "stopping"

    @property
    def word(self) -> str:
        """How it is shown, one of `metrics.STATES`: to whoever looks, what drains and what stops are one."""
        return _WORDS.get(self, self.value)


_WORDS = {State.READY: "serving", State.STOPPING: "draining"}


class Readiness:
    """The state of the server. Changing it waits for nobody."""

    def __init__(self, tell: Callable[[str], object] = lambda _: None) -> None:
        """Begins with loading; `tell` takes the word for each state that follows."""
        self._tell = tell
        self.state = State.LOADING
        self.changed = asyncio.Event()  # set, and replaced by a new one, with the next change

    def enter(self, state: State) -> None:
        """Changes the state. There is no way back from draining, nor from stopping."""
        if self.state is State.STOPPING or (self.state is State.DRAINING and state is not State.STOPPING):
            return
        self.state = state
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()
        self._tell(state.word)

    def check(self) -> None:
        """Passes if a call that comes now can be served. A draining server still serves those that come.

        Raises:
            ModelLoading, ModelStalled: It cannot, for now.
            ShuttingDown: It cannot any more.
        """
        self.check_model()
        if self.state is State.STOPPING:
            raise ShuttingDown()

    def check_model(self) -> None:
        """Passes if what has been accepted can be served, which a stopping server still does.

        Raises:
            ModelLoading, ModelStalled: It cannot, for now.
        """
        if self.state is State.LOADING:
            raise ModelLoading("the model is loading; retry after the delay", retry_delay_seconds=1.0)
        if self.state is State.STALLED:
            raise model_stalled()


def model_stalled() -> ModelStalled:
    """Returns the answer to calls while nothing moves."""
    return ModelStalled("the model is stuck; retry on another server", retry_delay_seconds=5.0)
