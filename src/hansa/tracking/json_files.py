"""Files of JSON as a run folder has them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hansa.core.errors import InputError


def json_text(value: Any, indent: int | None = None) -> str:
    """Standard JSON, which knows no NaN and no infinity: they become null. NumPy scalars and arrays become numbers and lists."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_json_file(path: Path) -> Any:
    """The content of a JSON file. Raises :class:`InputError` where it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; give the folder of a run that wrote it") from error
    except (ValueError, OSError) as error:
        raise InputError(
            f"damaged file {path}: it is not JSON ({error}); restore it from a backup, or run the job again"
        ) from error
