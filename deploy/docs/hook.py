"""Adds every page of the repository to the site, at its path in the repository.

Links between pages therefore work on the site as they do on a code host. Links to anything else, such as a
manifest, lead to the source on the code host.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from deploy.docs import proto_reference
from deploy.docs.pages import ROOT, SOURCE, pages

_PICTURES = ("deploy/grafana/*.png", "*/docs/*.webp", "server/recipes/*/*.svg")
# A link or an image, without its title. One link's target may be in the text of an enclosing link.
_LINK = re.compile(r"\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replaces the pages of `docs_dir` with those of the repository, and adds the proto reference."""
    for file in list(files):
        if file.abs_src_path and Path(file.abs_src_path).is_relative_to(config.docs_dir):
            files.remove(file)
    pictures = (path for pattern in _PICTURES for path in ROOT.glob(pattern))
    for path in [*pages(), *pictures]:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    files.append(File.generated(config, "protos/reference.md", content=proto_reference.reference()))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: object) -> str:
    """Points links to files that are not pages to the code host."""
    folder = PurePosixPath(page.file.src_uri).parent

    def rewritten(link: re.Match[str]) -> str:
        target = link["target"]
        path = os.path.normpath(folder / target)
        if "://" in target or files.get_file_from_path(path) or not (ROOT / path).exists():
            return link[0]  # includes broken links, which MkDocs reports
        return f"]({SOURCE}/{path}{link['anchor'] or ''})"

    parts = re.split(f"({_FENCE.pattern})", markdown, flags=_FENCE.flags)
    return "".join(part if part.startswith("```") else _LINK.sub(rewritten, part) for part in parts)
