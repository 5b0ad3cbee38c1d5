"""Validates the images and texts of one call together, so that one error names the invalid ones of both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import TypeAlias, TypeVar

from alignserve_server.batching.call import ItemPath
from alignserve_server.errors import InvalidArgument, merged

_T = TypeVar("_T")

Place: TypeAlias = tuple[int, int]  # of an item in its request; errors are in the order of places


class JointValidation:
    """The validation of a call's images and texts."""

    def __init__(self) -> None:
        self._modalities_left = 2
        self._errors: list[tuple[Place, InvalidArgument]] = []
        self._is_complete = asyncio.get_running_loop().create_future()

    def at(self, places: Sequence[Place]) -> ModalityValidation:
        """Returns the part for the items of one modality, which are at the given places."""
        return ModalityValidation(self, places)

    async def complete(self, embedding: Awaitable[_T]) -> _T:
        """Awaits the embeddings of one modality; if they fail, waits until the other is checked as well.

        Only then: a call that held room in one queue while it waits for room in the other could wait for a
        call that does the opposite.

        Raises:
            InvalidArgument: There are errors; names the invalid items of both modalities, in the order of
                places.
        """
        with suppress(InvalidArgument):  # its traceback would keep the items that are valid
            return await embedding
        await self._is_complete
        raise merged([error for _, error in sorted(self._errors, key=lambda placed: placed[0])])

    def _note(self, errors: list[tuple[Place, InvalidArgument]]) -> None:
        """Notes the errors of one modality. Raises `InvalidArgument` if there are any of either."""
        self._errors += errors
        self._modalities_left -= 1
        if not self._modalities_left:
            self._is_complete.set_result(None)
        if self._errors:
            raise merged([error for _, error in self._errors])


class ModalityValidation:
    """The validation of a call's items of one modality."""

    def __init__(self, joint: JointValidation, places: Sequence[Place]) -> None:
        self._joint = joint
        self._places = places

    def all_valid(self, answers: Sequence[_T | InvalidArgument], path: ItemPath) -> list[_T]:
        """Returns the results if no error is known, without waiting for the other modality.

        Raises:
            InvalidArgument: There are errors, of which these are not all; see `JointValidation.complete` and
                `errors.all_valid`.
        """
        errors = [
            (place, answer.under(path(position)))
            for position, (place, answer) in enumerate(zip(self._places, answers, strict=True))
            if isinstance(answer, InvalidArgument)
        ]
        valid = [answer for answer in answers if not isinstance(answer, InvalidArgument)]
        if errors:
            answers, valid = (), []  # the traceback would keep them
        self._joint._note(errors)
        return valid
