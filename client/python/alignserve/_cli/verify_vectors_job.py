"""Embeds a sample of stored vectors again, and reports how far they have drifted."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from alignserve._cli.connection import connected
from alignserve._cli.render import table
from alignserve._cli.row_inputs_job import rows_with_inputs
from alignserve.datasets.row import Row
from alignserve.search import open_store
from alignserve.search.entries import draw_entries, is_store
from alignserve.search.inputs import embed_again, rows_from_folder
from alignserve.search.vectors import VectorFolder, sample_rows
from alignserve.search.verification import StoredSample, Verification, verify

OK, NOT_VERIFIED = 0, 1


def run(args: argparse.Namespace) -> int:
    """Prints the report; returns 0 if every vector of the sample is the server's, and 1 otherwise."""
    drawn = _drawn_from_store(args) if is_store(args.vectors) else _drawn_from_folder(args)
    rows = rows_with_inputs(args, drawn.keys, drawn.kept)
    with connected(args) as client:
        info = client.model_info()
        embedded = embed_again(client, rows, drawn.modalities)
        found = verify(drawn.stored, embedded, info.fingerprint, bound=args.min_cosine)
    print(json.dumps(found.as_data(), indent=1) if args.json else _report(found))
    print(f"alignserve: {_last_line(found)}", file=sys.stderr)
    return OK if found.is_success else NOT_VERIFIED


@dataclass(frozen=True, slots=True)
class _Drawn:
    stored: StoredSample
    keys: Sequence[str]
    kept: Callable[[], Iterator[Row]]
    modalities: Sequence[str]


def _drawn_from_folder(args: argparse.Namespace) -> _Drawn:
    folder = VectorFolder.open(Path(args.vectors))
    numbers = sample_rows(folder.rows, args.sample, args.seed)

    def kept() -> Iterator[Row]:
        return rows_from_folder(folder, numbers, image_column=args.image_column, image_root=args.image_root)

    return _Drawn(StoredSample.of(folder, numbers), folder.keys(numbers), kept, folder.modalities)


def _drawn_from_store(args: argparse.Namespace) -> _Drawn:
    with closing(open_store(args.vectors)) as store:
        sample = draw_entries(store, args.sample, args.seed)
    keys = [entry.key for entry in sample.entries]
    return _Drawn(sample.stored(), keys, sample.kept_inputs, sample.modalities)


def _report(found: Verification) -> str:
    rows = [
        (
            name,
            str(drift.compared),
            f"{drift.min:.5f}",
            f"{drift.p1:.5f}",
            f"{drift.median:.5f}",
            str(drift.below),
        )
        for name, drift in found.drift.items()
    ]
    header = ("vectors", "compared", "min cosine", "p1", "median", f"below {found.bound:g}")
    mapped = f", mapped from {found.mapped_from}" if found.mapped_from else ""
    lines = [
        f"stored fingerprint  {found.stored_fingerprint or '-'}{mapped}",
        f"server's            {found.server_fingerprint}",
        "",
        table(header, rows, right=(1, 2, 3, 4, 5)),
    ]
    lines += [f"below {found.bound:g}: {key}" for key in found.drifted]
    lines += [f"not embedded again: {example}" for example in found.examples]
    return "\n".join(lines)


def _last_line(found: Verification) -> str:
    lost = sum(found.lost.values())
    parts = [
        f"{found.verdict}: {found.sampled} of {found.rows} rows drawn, {found.compared} vectors compared"
    ]
    parts.append(f"{found.below} below {found.bound:g}")
    if lost:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.lost.items())
        parts.append(f"{lost} could not be embedded again ({reasons})")
    if found.stored_fingerprint != found.server_fingerprint:
        parts.append("the fingerprints differ")
    return "; ".join(parts)
