"""What identifies a store: its format, its engine and the model of its embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from alignserve.search.errors import OtherModelError, StoreError

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
    """

    engine: str
    fingerprint: str
    model: str
    embedding_dimension: int

    def to_json(self) -> str:
        """Returns the content of `store.json`."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Identity:
        """Reads `store.json`.

        Args:
            text: Its content.
            where: Of the store, for messages.

        Raises:
            StoreError: It describes no store, or one of a later version.
        """
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise StoreError(f"{where} is not a store of alignserve: its store.json has another format")
        if found.get("version") != VERSION:
            raise StoreError(
                f"the store {where} has version {found.get('version')}, and this alignserve reads version {VERSION}; "
                "update alignserve"
            )
        return cls._of(found, where)

    def check_model(self, fingerprint: str, where: str) -> None:
        """Raises `OtherModelError` if the fingerprint is another model's."""
        if fingerprint != self.fingerprint:
            raise OtherModelError(
                f"the store {where} has embeddings of model {self.model!r} with fingerprint {self.fingerprint}, "
                f"not {fingerprint}; use a server of that model, or index into a new store"
            )

    @classmethod
    def _of(cls, found: Mapping[str, Any], where: str) -> Identity:
        texts = [found.get(name) for name in ("engine", "fingerprint", "model")]
        dimension = found.get("embedding_dimension")
        if not all(isinstance(text, str) for text in texts) or not isinstance(dimension, int) or dimension < 1:
            raise StoreError(f"the store.json of {where} is damaged; restore it, or index into a new store")
        engine, fingerprint, model = map(str, texts)
        return cls(engine, fingerprint, model, dimension)
