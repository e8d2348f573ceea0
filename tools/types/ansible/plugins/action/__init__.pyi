"""What the action plugins use of their base (2.19)."""

from collections.abc import Mapping
from typing import Any, ClassVar

class ActionBase:
    TRANSFERS_FILES: ClassVar[bool]
    _VALID_ARGS: ClassVar[frozenset[str]]
    _task: Any
    _connection: Any
    _loader: Any
    _templar: Any
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]: ...
    def _execute_module(
        self,
        module_name: str | None = None,
        module_args: Mapping[str, Any] | None = None,
        tmp: str | None = None,
        task_vars: dict[str, Any] | None = None,
    ) -> dict[str, Any]: ...
    def _low_level_execute_command(self, cmd: str) -> dict[str, Any]: ...
