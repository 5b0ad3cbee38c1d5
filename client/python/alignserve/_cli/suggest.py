"""A command-line parser that suggests corrections for mistyped commands, flags and choices."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

_INVALID_CHOICE = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)")
_LIKENESS = 0.7  # of the same letters in the same order; at 0.6, `--address` is told as `--failures`


class SuggestingParser(argparse.ArgumentParser):
    """Like argparse's parser, but its errors suggest the closest match."""

    # Any: argparse's own signature, which has overloads by namespace.
    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parses the arguments; reports an unknown flag before it makes argparse misread the rest."""
        words = list(sys.argv[1:] if args is None else args)
        commands = self._commands()
        command = next((commands[word] for word in words if word in commands), None)
        parsers = [self, command] if command else [self, *commands.values()]
        known = {flag for parser in parsers for flag in parser._option_string_actions}
        for word in words:
            if word == "--":
                break
            flag = word.partition("=")[0]
            if flag.startswith("--") and " " not in flag and flag not in known:
                (command or self).error(f"unknown option {flag}{_suggestion(flag, known)}")
        return super().parse_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Exits with the usage and the message."""
        if found := _INVALID_CHOICE.search(message):
            message += _suggestion(found[1], re.findall(r"[\w-]+", found[2]))
        super().error(message)

    def _commands(self) -> dict[str, SuggestingParser]:
        groups = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return {name: parser for group in groups for name, parser in group.choices.items()}


def _suggestion(word: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(word, sorted(known), 1, _LIKENESS)
    return f"; did you mean {nearest[0]}?" if nearest else ""
