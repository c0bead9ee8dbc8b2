"""One JSON line per event on standard error. User text never enters a log."""

import json
import logging
import sys
import time
from typing import Any

FIELDS = "fano_fields"


def log_event(logger: logging.Logger, event: str, level: int = logging.INFO, **fields: object) -> None:
    """Log ``event`` with its fields."""
    logger.log(level, event, extra={FIELDS: fields})


def configure_logging(level: str) -> None:
    """Send every logger's records to standard error, one JSON object a line. Replaces earlier handlers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # These tell of each request of theirs (a checkpoint's download) or of each connection; ours tell enough.
    for name in ("httpx", "uvicorn", "urllib3", "filelock", "faiss.loader"):
        logging.getLogger(name).setLevel(logging.WARNING)


class JsonFormatter(logging.Formatter):
    """time, level, logger and event, then the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update(getattr(record, FIELDS, {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)
