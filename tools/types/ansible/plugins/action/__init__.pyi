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
    def _make_tmp_path(self) -> str: ...
    def _remove_tmp_path(self, tmp_path: str | None) -> None: ...
    def _transfer_file(self, local_path: str, remote_path: str) -> str: ...
    def _fixup_perms2(self, remote_paths: tuple[str, ...]) -> None: ...
