"""The items of a task, told apart by a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def items_fingerprint(items: Sequence[Mapping[str, Any]]) -> str:
    """sha256 of the items of a task in their order; what JSON cannot say goes by its text."""
    digest = hashlib.sha256()
    for item in items:
        text = json.dumps(item, sort_keys=True, ensure_ascii=False, default=str)
        digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
