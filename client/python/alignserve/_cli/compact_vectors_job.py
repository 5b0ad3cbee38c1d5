"""Measures what compact vectors lose, and writes them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from alignserve._cli.output import complain
from alignserve._cli.progress import Progress
from alignserve._cli.render import table
from alignserve.search import compact
from alignserve.search.compact import Compaction
from alignserve.search.compacting import Sample, draw, fit, measure
from alignserve.search.rewriting import begun, rewrite
from alignserve.search.vectors import VectorFolder

OK, REFUSED = 0, 4


def run(args: argparse.Namespace) -> int:
    """Measures and writes compact vectors; returns the exit code, 4 if the recall is too low."""
    folder = VectorFolder.open(args.folder)
    folder.require_originals()
    section = begun(args.to, "compact") if args.resume else None
    if section is not None:
        compaction = Compaction.load(args.to)
        section = {**section, **_asked(args)}  # other options than before are refused by name
    else:
        compaction, section = _fitted(args, folder)
    measured = [figures["recall_at_10"] or 0.0 for figures in section["recall"].values()]
    if (lowest := min(measured)) < args.min_recall:
        print(_report(section))
        return _refused(
            f"recall@10 {lowest:.3f} is below --min-recall {args.min_recall:g}; nothing was written"
        )
    progress = Progress(folder.rows, sys.stderr)
    ledger = rewrite(
        folder,
        args.to,
        lambda vectors, _: compaction.encode(vectors),
        manifest=_manifest(folder, compaction, section),
        metadata={"fingerprint": compaction.fingerprint, "dtype": compaction.dtype},
        files={compact.FILE: compaction.to_bytes()},
        resume=args.resume,
        on_rows=progress.advance_by,
    )
    progress.finish()
    print(json.dumps(section, indent=1) if args.json else _report(section))
    print(f"alignserve: {ledger.summary()}", file=sys.stderr)
    return OK


def _fitted(args: argparse.Namespace, folder: VectorFolder) -> tuple[Compaction, dict[str, Any]]:
    texts = VectorFolder.open(args.texts) if args.texts else None
    sample = draw(folder, texts, count=args.sample, queries=args.queries, seed=args.seed)
    compaction = fit(
        sample,
        folder.fingerprint,
        args.dtype,
        dimensions=args.dimensions,
        rotation=_rotation(args),
        seed=args.seed,
    )
    recall = measure(folder, compaction, sample.held_out)
    return compaction, {
        **_asked(args),
        "dimensions": compaction.dimensions,
        "file": "compaction.npz",
        "digest": compaction.digest(),
        "bytes_per_vector": {
            "before": folder.bytes_per_vector,
            "after": compaction.bytes_per_vector,
        },
        "fitted_to": {name: len(vectors) for name, vectors in sample.fitted.items()},
        "recall": {direction: figures.as_data() for direction, figures in recall.items()},
        "not_measured": _not_measured(folder, sample),
    }


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "dtype": args.dtype,
        "rotation": _rotation(args),
        "sample": args.sample,
        "texts": str(args.texts) if args.texts else None,
        "seed": args.seed,
        **({"dimensions": args.dimensions} if args.dimensions else {}),
    }


def _rotation(args: argparse.Namespace) -> Any:
    return args.rotation or ("itq" if args.dtype == "binary" else "pca" if args.dimensions else "none")


def _not_measured(folder: VectorFolder, sample: Sample) -> list[str]:
    return [
        f"{name}_to_{target}"
        for target in folder.modalities
        for name in ("image", "text")
        if name not in sample.held_out
    ]


def _manifest(folder: VectorFolder, compaction: Compaction, section: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "job": "compact",
        "model": {
            "id": folder.model,
            "fingerprint": compaction.fingerprint,
            "embedding_dimension": compaction.dimensions,
        },
        "dtype": compaction.dtype,
        "columns": folder.schema.names,
        "compact": {**section, "model_fingerprint": folder.fingerprint},
    }


def _report(section: Mapping[str, Any]) -> str:
    rows = [
        (
            direction.replace("_to_", " → "),
            _share(figures["recall_at_10"]),
            _share(figures["recall_at_10_reranked"]),
            str(figures["queries"]),
            str(figures["rows"]),
        )
        for direction, figures in section["recall"].items()
    ]
    header = ("direction", "recall@10", "re-ranked", "queries", "rows")
    sizes = section["bytes_per_vector"]
    lines = [
        f"{sizes['before']} bytes per vector → {sizes['after']}: {section['dtype']}, "
        f"{section['dimensions']} dimensions, rotation {section['rotation']}",
        "",
        table(header, rows, right=(1, 2, 3, 4)),
    ]
    lines += [
        f"{direction.replace('_to_', ' → ')} was not measured: there are no such queries; see --texts"
        for direction in section["not_measured"]
    ]
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _refused(message: str) -> int:
    complain(message)
    return REFUSED
