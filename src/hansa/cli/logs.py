"""Where the logs of a server or a client go: one JSON object a line, on standard error."""

from __future__ import annotations

import json
import logging
import re
import sys
import time

from hansa.cli.printable import printable_lines

FIELDS = ("run", "round", "client", "task")
"""What an entry names besides its message, where it is about one (``logging``'s ``extra``)."""

_SECRET = re.compile(r"-----BEGIN.*?(?:-----END[^-]*-----|\Z)|hansa-[A-Za-z0-9_-]{64,}", re.DOTALL)


def without_secrets(text: str) -> str:
    """The text without keys, certificates and join tokens, wherever they came from."""
    return _SECRET.sub("(withheld)", text)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(without_secrets(super().format(record)))


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "from": record.name,
            "message": without_secrets(record.getMessage()),
        }
        entry |= {name: record.__dict__[name] for name in FIELDS if name in record.__dict__}
        if record.exc_info:
            entry["traceback"] = without_secrets(self.formatException(record.exc_info))
        return json.dumps(entry)


def to_stderr(level: str, as_json: bool = False) -> None:
    """Log from ``level`` on: for people on a terminal as plain lines, else as JSON, and there too where that is wanted."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain("%(asctime)s %(message)s", "%H:%M:%S") if sys.stderr.isatty() and not as_json else _Json())
    logger = logging.getLogger("hansa")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
