"""What the modules use of Ansible's own client for HTTP (2.19)."""

from collections.abc import Mapping
from typing import IO, Any

from ansible.module_utils.basic import AnsibleModule

def fetch_url(
    module: AnsibleModule,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: float = 10,
    use_netrc: bool = True,
) -> tuple[IO[bytes] | None, dict[str, Any]]: ...
