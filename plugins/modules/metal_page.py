#!/usr/bin/python
"""Read one page over HTTP, no more of it than was asked for."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
---
module: metal_page
short_description: Reads one page over HTTP, with a limit of bytes and of time
description:
  - As C(ansible.builtin.uri) with C(return_content), which reads whatever a server sends into memory.
  - It only reads, and is the same in check mode. A page that can't be had is not a failure.
options:
  url:
    description: What is asked.
    type: str
    required: true
  accept:
    description: The header of that name.
    type: str
    default: "*/*"
  limit_bytes:
    description: A page with more is not returned.
    type: int
    default: 16777216
  timeout_seconds:
    description: How long the whole page may take.
    type: int
    default: 20
author:
  - The minimax-metal authors
"""

EXAMPLES = r"""
- name: The index is asked
  metal_page:
    url: https://index.example.net/simple/packaging/
  register: page
"""

RETURN = r"""
status:
  description: The status of the answer; -1 where there is none.
  returned: always
  type: int
content:
  description: The page; empty where it can't be had.
  returned: always
  type: str
msg:
  description: Why it can't be had.
  returned: always
  type: str
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import fetch_url


def main():
    """Ask and return."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "accept": {"type": "str", "default": "*/*"},
            "limit_bytes": {"type": "int", "default": 16 << 20},
            "timeout_seconds": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    limit, seconds = module.params["limit_bytes"], module.params["timeout_seconds"]
    deadline = time.monotonic() + seconds
    answer, info = fetch_url(
        module, module.params["url"], headers={"Accept": module.params["accept"]}, timeout=seconds
    )
    status, said, content = int(info.get("status") or -1), str(info.get("msg") or ""), b""
    # What is there, not a full block: a server that sends a byte now and then is not waited for.
    read = getattr(answer, "read1", getattr(answer, "read", None))
    try:
        while status == 200 and read is not None and (block := read(1 << 16)):
            content += block
            if len(content) > limit or time.monotonic() > deadline:
                status, said = -1, f"more than {limit} bytes, or {seconds} s"
    except (OSError, ValueError) as error:
        status, said = -1, str(error)
    text = content.decode("utf-8", "replace") if status == 200 else ""
    module.exit_json(changed=False, status=status, content=text, msg=said[:400])


if __name__ == "__main__":
    main()
