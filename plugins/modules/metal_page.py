#!/usr/bin/python
"""Read one page over HTTP, no more of it than was asked for."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
---
module: metal_page
short_description: Read one page over HTTP, with limits of size and time
description:
  - Like C(ansible.builtin.uri) with C(return_content), which reads all that a server sends into memory.
  - The server's entry in C(~/.netrc) is sent to that server only; Ansible's own modules send it on after a
    redirect. A redirect from https to http is not followed.
  - An unavailable page is not a failure.
options:
  url:
    description: URL of the page.
    type: str
    required: true
  accept:
    description: The header of that name.
    type: str
    default: "*/*"
  limit_bytes:
    description: A larger page is not returned.
    type: int
    default: 16777216
  timeout_seconds:
    description: Time limit for the whole page.
    type: int
    default: 20
  dest:
    description: A file that gets the page's bytes, completely or not at all. In check mode it is not written.
    type: path
extends_documentation_fragment: [ansible.builtin.files]
author:
  - The minimax-metal authors
"""

EXAMPLES = r"""
- name: Read the index
  minimax.metal.metal_page:
    url: https://index.example.net/simple/packaging/
  register: page
"""

RETURN = r"""
status:
  description: The answer's status; -1 if there is none.
  returned: always
  type: int
content:
  description: The page; empty if it is unavailable.
  returned: always
  type: str
url:
  description: The requested URL.
  returned: always
  type: str
msg:
  description: Why it is unavailable.
  returned: always
  type: str
"""

import os
import tempfile
import time
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import fetch_url

REDIRECTS = 5


def origin_of(url: str) -> tuple[str, str, int | None]:
    """Return scheme, host and port of a URL.

    Raises:
        ValueError: it is not one.
    """
    parts = urlsplit(url)
    return parts.scheme.lower(), (parts.hostname or "").lower(), parts.port


def ask(module: AnsibleModule, seconds: float) -> tuple[IO[bytes] | None, dict[str, Any], int]:
    """Return the answer, what is known of it, and its status, after redirects."""
    url = module.params["url"]
    home = origin_of(url)
    module.params["follow_redirects"] = "none"  # fetch_url reads it there
    for _hop in range(REDIRECTS + 1):
        here = origin_of(url)
        if here[0] not in {"http", "https"} or (home[0] == "https" and here[0] != "https"):
            raise ValueError(f"a redirect to {here[0]}://{here[1]}")
        answer, info = fetch_url(
            module,
            url,
            headers={"Accept": module.params["accept"]},
            timeout=seconds,
            use_netrc=here == home,
        )
        status = int(info.get("status") or -1)
        if status not in {301, 302, 303, 307, 308} or not info.get("location"):
            return answer, info, status
        url = urljoin(url, info["location"].strip())
    raise ValueError(f"more than {REDIRECTS} redirects")


def keep(module: AnsibleModule, content: bytes) -> bool:
    """Write the bytes of a page to the file that was asked for; return whether something changed."""
    dest = Path(module.params["dest"])
    there = None
    if dest.is_file():
        with dest.open("rb") as file:
            there = file.read(len(content) + 1)
    changed = there != content
    if changed and not module.check_mode:
        handle, name = tempfile.mkstemp(dir=module.tmpdir)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        module.atomic_move(name, str(dest))
    if dest.exists():
        changed = module.set_fs_attributes_if_different(
            module.load_file_common_arguments(module.params), changed
        )
    return changed


def main() -> None:
    """Ask and return."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "accept": {"type": "str", "default": "*/*"},
            "limit_bytes": {"type": "int", "default": 16 << 20},
            "timeout_seconds": {"type": "int", "default": 20},
            "dest": {"type": "path"},
        },
        add_file_common_args=True,
        supports_check_mode=True,
    )
    limit, seconds = module.params["limit_bytes"], module.params["timeout_seconds"]
    deadline = time.monotonic() + seconds
    answer, status, said, content = None, -1, "", b""
    try:
        answer, info, status = ask(module, seconds)
        said = str(info.get("msg") or "")
        if status != 200 and not said.startswith("Request failed"):
            said = f"Request failed: {said}"
    except ValueError as error:
        said = str(error)
    # Read what is available, not a full block: a server that sends a byte now and then must not block it.
    read = getattr(answer, "read1", getattr(answer, "read", None))
    try:
        while status == 200 and read is not None and (block := read(1 << 16)):
            content += block
            if len(content) > limit or time.monotonic() > deadline:
                status, said = -1, f"more than {limit} bytes, or {seconds} s"
    except (OSError, ValueError) as error:
        status, said = -1, str(error)
    text = content.decode("utf-8", "replace") if status == 200 else ""
    changed = status == 200 and module.params["dest"] is not None and keep(module, content)
    module.exit_json(changed=changed, status=status, content=text, msg=said[:400], url=module.params["url"])


if __name__ == "__main__":
    main()
