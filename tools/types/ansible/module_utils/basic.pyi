"""What the modules use of Ansible's own base (2.19)."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

class AnsibleModule:
    params: dict[str, Any]
    check_mode: bool
    tmpdir: str
    def __init__(
        self,
        argument_spec: Mapping[str, Any],
        *,
        add_file_common_args: bool = False,
        supports_check_mode: bool = False,
    ) -> None: ...
    def exit_json(self, **result: Any) -> NoReturn: ...
    def fail_json(self, msg: str, **result: Any) -> NoReturn: ...
    def get_bin_path(
        self, arg: str, required: bool = False, opt_dirs: Sequence[str] | None = None
    ) -> str | None: ...
    def atomic_move(self, src: str, dest: str) -> None: ...
    def load_file_common_arguments(
        self, params: Mapping[str, Any], path: str | None = None
    ) -> dict[str, Any]: ...
    def set_fs_attributes_if_different(self, file_args: Mapping[str, Any], changed: bool) -> bool: ...
