"""Finds wordings that do not read as native English: `python -m tests.contract.wording [PATH …]`.

The rules, and the paths that follow them, are in wording.toml. Without a path, checks those paths
and the recent commit subjects. Exits with 1 if a rule is broken.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from bisect import bisect
from collections import Counter
from collections.abc import Iterator

from tests.processes import ROOT

BREAK = "¶"  # replaces code between two pieces of prose, so that no rule matches across it
CONFIG = tomllib.loads((ROOT / "tests/contract/wording.toml").read_text())
RULES = [(re.compile(rule["find"], re.IGNORECASE), rule["advice"]) for rule in CONFIG["rules"]]
_PROSE = re.compile(r"\.(py|md|proto|ya?ml|json)$|(^|/)(Makefile|Dockerfile|run)$")
_INLINE_CODE = re.compile(r"`[^`\n]*`|\S*\w[_/.]\w\S*")
_PYTHON_PROSE = {"COMMENT", "STRING", "FSTRING_MIDDLE"}  # before 3.12 an f-string is a STRING
_PYTHON_QUOTES = re.compile(r"^(#+|[rbfu]*[\"']+)|[\"']+$", re.IGNORECASE)


def find(prose: str, place: str) -> Iterator[str]:
    """Yields 'place:line: words: advice' for each broken rule; a match may run across lines."""
    prose = _INLINE_CODE.sub(lambda code: re.sub(r"\S", BREAK, code[0]), prose)
    words = list(re.finditer(r"\S+", prose))
    text, starts = "", []
    for word in words:
        starts.append(len(text))
        text += word[0] + " "
    for rule, advice in RULES:
        for match in rule.finditer(text):
            start = words[bisect(starts, match.start()) - 1].start()
            line = prose.count("\n", 0, start) + 1
            yield f"{place}:{line}: {match[0].strip(f'{BREAK} ')}: {advice}"


def prose_of(name: str, text: str) -> str:
    """Returns the prose of a file on the lines where the file has it."""
    if name.endswith(".py"):
        return _python_prose(text)
    if name.endswith((".md", ".json")):  # a paragraph, list item, heading, table cell or value is one piece
        return re.sub(r'^\s*$|^\s*(?:[-*#]|\d\.)+ |\||"', f" {BREAK} ", text, flags=re.MULTILINE)
    return re.sub(r"^\s*(?://|#)+", " ", text, flags=re.MULTILINE)


def _python_prose(text: str) -> str:
    lines = text.splitlines()
    prose = [BREAK] * len(lines)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if tokenize.tok_name[token.type] in _PYTHON_PROSE and " " in token.string:
            first, column = token.start[0] - 1, token.start[1]
            content = _PYTHON_QUOTES.sub("", token.string).split("\n")
            # Only a comment or string that begins its line continues the one above it.
            if lines[first][:column].strip():
                content[0] = f"{prose[first]} {BREAK} {content[0]}"
            prose[first : first + len(content)] = content
    return "\n".join(prose)


def check(*paths: str) -> list[str]:
    """Returns what the rules find in the tracked files below these paths."""
    names = [name for name in _git("ls-files", "--", *paths) if _PROSE.search(name)]
    names = [name for name in names if not name.startswith(tuple(CONFIG["skipped"]))]
    texts = {name: (ROOT / name).read_text() for name in names if (ROOT / name).exists()}
    return [found for name, text in texts.items() for found in find(prose_of(name, text), name)]


def check_commits() -> list[str]:
    """Returns what the rules find in commit subjects after `commits_since`, if this clone has it."""
    subjects = _git("log", "--format=%s", f"{CONFIG['commits_since']}..")
    return [found for subject in subjects for found in find(subject, f"commit '{subject}'")]


def _git(*arguments: str) -> list[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.contract.wording", description=__doc__)
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files or folders, from the root")
    parser.add_argument("--totals", action="store_true", help="print counts by folder, not the places")
    arguments = parser.parse_args()
    found = check(*arguments.paths) if arguments.paths else check(*CONFIG["paths"]) + check_commits()
    folders = Counter("/".join(line.split(":")[0].split("/")[:3]) for line in found).most_common()
    lines = [f"{count:5} {folder}" for folder, count in folders] if arguments.totals else found
    print("\n".join([*lines, f"{len(found)} wordings to change"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
