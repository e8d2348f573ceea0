"""What the lookup plugins use of their base (2.19)."""

from typing import Any

class LookupBase:
    _loader: Any
    _templar: Any
