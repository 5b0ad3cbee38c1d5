"""Compact vectors: fewer dimensions and fewer bytes in each, and the same for queries.

compaction = Compaction.load(Path("compact"))
with Client() as client:
    query = compaction.encode(client.embed_text(["a red bag"]))[0]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignserve.search.array_file import content_of, digest_of, pack, restored, unpack
from alignserve.search.rotation import Rotation
from alignserve.search.vectors import normalized

CompactDtype: TypeAlias = Literal["float32", "float16", "int8", "binary"]

FILE = "compaction.npz"
"""In the folder of the vectors: what their queries need."""

_FORMAT, _VERSION = "alignserve-compaction", 1


@dataclass(frozen=True, slots=True, eq=False)
class Compaction:
    """How vectors are made compact. Vectors and queries go the same way, and are compared afterwards.

    Attributes:
        dtype: Of the result. float16 and int8 are compared by cosine; binary, the signs, by Hamming distance.
        rotation: Applied before that.
        model_fingerprint: Of the model that made the vectors.
    """

    dtype: CompactDtype
    rotation: Rotation
    model_fingerprint: str

    @property
    def dimensions(self) -> int:
        """Returns the number of elements of a compact vector."""
        return int(self.rotation.matrix.shape[1])

    @property
    def bytes_per_vector(self) -> int:
        """Returns the size of a compact vector."""
        return int(self.encode(np.zeros((1, len(self.rotation.matrix)), np.float32)).nbytes)

    @property
    def fingerprint(self) -> str:
        """Returns what tells these vectors from others.

        Without a rotation it is the model's fingerprint, since the server's own embeddings in this data type
        compare with them. With one, queries must be rotated too, and the fingerprint says so.
        """
        if self.rotation.kind == "none":
            return self.model_fingerprint
        return f"{self.model_fingerprint}+{self.rotation.kind}{self.dimensions}-{self.digest()[:12]}"

    def encode(self, vectors: NDArray[Any]) -> NDArray[Any]:
        """Returns compact vectors, of images, texts or composed queries.

        Args:
            vectors: (n, dim) of the model, of any length but 0.

        Returns:
            (n, dimensions) of length 1 in float32 or float16, or in int8 with a largest element of 127
            or -127; for binary (n, dimensions / 8) uint8, eight signs in each, as the server packs them.
        """
        return self.quantize(self.rotate(vectors))

    def quantize(self, rotated: NDArray[np.float32]) -> NDArray[Any]:
        """Returns compact vectors, as `encode` does, of vectors that have been rotated."""
        if self.dtype == "binary":
            return np.packbits(rotated > 0, axis=1)
        if self.dtype == "int8":
            largest = np.abs(rotated).max(axis=1, keepdims=True)
            return np.rint(rotated * (127 / np.where(largest > 0, largest, 1))).astype(np.int8)
        return normalized(rotated).astype(self.dtype)

    def rotate(self, vectors: NDArray[Any]) -> NDArray[np.float32]:
        """Returns (n, dimensions) rotated vectors, not quantized.

        A query in this form finds more among decoded bits than its own bits do by Hamming distance.
        """
        return self.rotation.apply(normalized(vectors))

    def decode(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """Returns (n, dimensions) vectors of length 1 whose dot products rank as the compact vectors do."""
        if self.dtype == "binary":
            bits = np.unpackbits(codes, axis=1, count=self.dimensions)
            return normalized(bits.astype(np.float32) * 2 - 1)
        return normalized(codes)

    def digest(self) -> str:
        """Returns the SHA-256 of the rotation, in hexadecimal."""
        return digest_of(self.rotation.kind, self._arrays())

    def to_bytes(self) -> bytes:
        """Returns the content of the file that `load` reads."""
        about = {
            "format": _FORMAT,
            "version": _VERSION,
            "dtype": self.dtype,
            "rotation": self.rotation.kind,
            "model_fingerprint": self.model_fingerprint,
            "digest": self.digest(),
        }
        return pack(about, self._arrays())

    @classmethod
    def load(cls, path: Path) -> Compaction:
        """Reads the compaction of a folder of compact vectors, or its file.

        Raises:
            VectorsError: The file is missing, damaged, or of another version; queries cannot be mapped.
        """
        file = path / FILE if path.is_dir() else path
        return cls.from_bytes(content_of(file), file)

    @classmethod
    def from_bytes(cls, content: bytes, name: object) -> Compaction:
        """Reads what `to_bytes` returned; `name` is for messages.

        Raises:
            VectorsError: It is damaged or of another version.
        """
        about, arrays = unpack(content, name, _FORMAT, _VERSION)
        return restored(
            name,
            about,
            lambda: cls(
                about["dtype"], Rotation(about["rotation"], arrays["matrix"]), about["model_fingerprint"]
            ),
        )

    def _arrays(self) -> dict[str, NDArray[np.float32]]:
        return {"matrix": self.rotation.matrix}
