"""Fits a map from an old model to a new one, measures it, and writes the mapped vectors."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignserve._cli.connection import connected
from alignserve._cli.output import complain
from alignserve._cli.progress import Progress
from alignserve._cli.render import table
from alignserve._cli.row_inputs_job import rows_with_inputs
from alignserve.datasets.row import Row
from alignserve.search import migration
from alignserve.search.inputs import embed_again, rows_from_folder
from alignserve.search.migration import Fitted, OrthogonalMap, Pairs, choose
from alignserve.search.pairing import pairs_by_embedding, pairs_by_key
from alignserve.search.rewriting import begun, rewrite
from alignserve.search.vectors import (
    COLUMNS,
    VectorFolder,
    VectorsError,
    normalized,
    sample_rows,
    vectors_of,
)

OK, REFUSED = 0, 4

_RECALL_HEADER = ("direction", "recall@10", "half mapped", "unmapped", "queries", "rows")


def run(args: argparse.Namespace) -> int:
    """Fits, measures and writes, and returns the exit code: 4 if the map is not good enough."""
    old = VectorFolder.open(args.old)
    old.require_floats()
    section = begun(args.to, "migration") if args.resume else None
    if section is not None:
        fitted = OrthogonalMap.load(args.to / migration.FILE)
    else:
        fitted, section = _fitted(args, old)
    if not section["is_good_enough"]:
        print(json.dumps(section, indent=1) if args.json else _report(section))
        message = (
            f"recall@10 is below --min-recall {args.min_recall:g}: embed the rows again with the new model"
        )
        if not args.force:
            return _refused(f"{message}, or write the mapped vectors all the same with --force")
        complain(message)
    progress = Progress(old.rows, sys.stderr)
    dtype = old.numpy_dtype
    ledger = rewrite(
        old,
        args.to,
        lambda vectors, modality: fitted.apply(vectors, modality).astype(dtype),
        manifest=_manifest(old, section),
        metadata={
            "fingerprint": fitted.new_fingerprint,
            "model": section["new"]["model"],
            "mapped_from": fitted.old_fingerprint,
            "map": section["digest"],
        },
        files={migration.FILE: fitted.to_bytes()},
        resume=args.resume,
        on_rows=progress.advance_by,
    )
    progress.finish()
    if section["is_good_enough"]:
        print(json.dumps(section, indent=1) if args.json else _report(section))
    complain(ledger.summary())
    return OK


def _fitted(args: argparse.Namespace, old: VectorFolder) -> tuple[OrthogonalMap, dict[str, Any]]:
    pairs, model, fingerprint = _from_folder(args, old) if args.paired else _from_server(args, old)
    if fingerprint == old.model_fingerprint:
        raise ValueError(f"{args.old} has the fingerprint {fingerprint} already; there is nothing to map")
    found = choose(pairs, old.fingerprint, fingerprint, seed=args.seed, texts=_texts(args, fingerprint))
    new_dimension = next(iter(pairs.values())).new.shape[1]
    is_good_enough = found.evaluation.worst_recall >= args.min_recall
    return found.map, {
        "state": "mapped",
        "old": {"model": old.model, "fingerprint": old.fingerprint, "embedding_dimension": old.dimension},
        "new": {"model": model, "fingerprint": fingerprint, "embedding_dimension": new_dimension},
        "file": "map.npz",
        "digest": found.map.digest(),
        **_measured(found),
        "min_recall": args.min_recall,
        "is_good_enough": is_good_enough,
    }


def _measured(found: Fitted) -> dict[str, Any]:
    return {
        "form": found.map.form.name,
        "candidates": dict(found.candidates),
        "fitted_to": dict(found.pairs),
        "held_out": dict(found.held_out),
        **found.evaluation.as_data(),
        "recall_unmapped": found.unmapped.as_data()["recall"] if found.unmapped else None,
    }


def _from_folder(args: argparse.Namespace, old: VectorFolder) -> tuple[Mapping[str, Pairs], str, str]:
    new = VectorFolder.open(args.paired)
    new.require_originals()
    return pairs_by_key(old, new, args.sample, args.seed), new.model, new.fingerprint


def _from_server(args: argparse.Namespace, old: VectorFolder) -> tuple[Mapping[str, Pairs], str, str]:
    numbers = sample_rows(old.rows, args.sample, args.seed)

    def kept() -> Iterator[Row]:
        return rows_from_folder(old, numbers, image_column=args.image_column, image_root=args.image_root)

    rows = rows_with_inputs(args, old.keys(numbers), kept)
    with connected(args) as client:
        info = client.model_info()
        pairs, failed = pairs_by_embedding(old, numbers, embed_again(client, rows, old.modalities))
    if failed:
        complain(f"{len(failed)} of the sample could not be embedded; the first: {failed[0].key}")
    return pairs, info.model_id, info.fingerprint


def _texts(args: argparse.Namespace, fingerprint: str) -> NDArray[np.float32] | None:
    if args.texts is None:
        return None
    texts = VectorFolder.open(args.texts)
    texts.require_originals()
    if texts.fingerprint != fingerprint or "text" not in texts.modalities:
        raise VectorsError(f"{args.texts} has no vectors of texts by the new model, {fingerprint}")
    table = texts.take(sample_rows(texts.rows, args.sample, args.seed), [COLUMNS["text"]])
    return normalized(vectors_of(table.column(0))[1])


def _manifest(old: VectorFolder, section: Mapping[str, Any]) -> dict[str, Any]:
    new = section["new"]
    return {
        "job": "migrate",
        "model": {
            "id": new["model"],
            "fingerprint": new["fingerprint"],
            "embedding_dimension": new["embedding_dimension"],
        },
        "dtype": str(old.numpy_dtype),
        "columns": old.schema.names,
        "migration": section,
    }


def _report(section: Mapping[str, Any]) -> str:
    half, unmapped = section["recall_half_mapped"], section["recall_unmapped"]
    recalls = [
        (
            direction.replace("_to_", " → "),
            f"{figures['recall_at_10']:.3f}",
            f"{half[direction]['recall_at_10']:.3f}",
            f"{unmapped[direction]['recall_at_10']:.3f}" if unmapped else "-",
            str(figures["queries"]),
            str(figures["rows"]),
        )
        for direction, figures in section["recall"].items()
    ]
    cosines = [
        (name, f"{found['min']:.4f}", f"{found['p1']:.4f}", f"{found['median']:.4f}")
        for name, found in section["cosine"].items()
    ]
    lines = [
        f"{section['old']['fingerprint']} → {section['new']['fingerprint']}, map {section['digest'][:12]}, "
        f"{section['form']}",
        "",
        table(_RECALL_HEADER, recalls, right=(1, 2, 3, 4, 5)),
        "",
        table(("mapped and new", "min cosine", "p1", "median"), cosines, right=(1, 2, 3)),
    ]
    if not any(direction.startswith("text_") for direction in section["recall"]):
        lines.append("text → image was not measured: there are no texts; see --texts")
    return "\n".join(lines)


def _refused(message: str) -> int:
    complain(f"{message}; nothing was written")
    return REFUSED
