"""What identifies a store: its format, its engine and the model of its embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from alignserve.search.errors import NoStoreError, OtherModelError, StoreError

FORMAT = "alignserve-store"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """What a store is, and whose embeddings it has.

    Attributes:
        engine: Such as `lancedb`.
        fingerprint: Of the model.
        model: Its id, for people.
        embedding_dimension: Of its vectors.
        compaction: Digest of how its vectors were made compact; empty if they were not.
    """

    engine: str
    fingerprint: str
    model: str
    embedding_dimension: int
    compaction: str = ""

    def as_json(self) -> dict[str, Any]:
        """Returns the content of `store.json`."""
        stated = {name: value for name, value in asdict(self).items() if name != "compaction" or value}
        return {"format": FORMAT, "version": VERSION, **stated}

    @classmethod
    def of(cls, document: str | bytes | None, place: str) -> Identity:
        """Reads an identity.

        Args:
            document: In JSON; `None` if there is none.
            place: Of the store, for messages.

        Raises:
            NoStoreError: It is something else.
            StoreError: It is damaged, or of a later version.
        """
        try:
            found = json.loads(document or "null")
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise NoStoreError(f"{place} is not a store of alignserve; choose another place")
        if found.get("version") != VERSION:
            raise StoreError(
                f"the store {place} has version {found.get('version')}, and this alignserve reads version "
                f"{VERSION}; update alignserve"
            )
        return _checked(found, place)

    def check_model(self, fingerprint: str, place: str) -> None:
        """Raises `OtherModelError` if the fingerprint is another model's."""
        if fingerprint != self.fingerprint:
            raise OtherModelError(
                f"the store {place} has embeddings of model {self.model!r}, fingerprint "
                f"{self.fingerprint}, not {fingerprint}; use a server of that model, or index a new store"
            )


def _checked(found: Mapping[str, Any], place: str) -> Identity:
    texts = [found.get(name) for name in ("engine", "fingerprint", "model")]
    texts.append(found.get("compaction", ""))
    dimension = found.get("embedding_dimension")
    are_texts = all(isinstance(text, str) for text in texts)
    if not are_texts or not isinstance(dimension, int) or dimension < 1:
        raise StoreError(
            f"the identity of the store {place} is damaged; restore it, or index into a new store"
        )
    engine, fingerprint, model, compaction = map(str, texts)
    return Identity(engine, fingerprint, model, dimension, compaction)
