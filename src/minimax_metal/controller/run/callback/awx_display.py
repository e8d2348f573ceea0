"""The callback that ansible-runner reads, with tags of tasks and without sensitive data.

ansible-runner loads a callback of this name from the directory ``AWX_LIB_DIRECTORY``. This one derives from
its own and

* adds the tags of a task, which determine its stage,
* removes arguments and facts before anything is written, even to a private directory,
* stops between two plays, or two batches of one, if the file ``METAL_STOP_FILE`` exists.
"""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible_runner.display_callback.callback import awx_display as original

from minimax_metal.common.redact import slim

DOCUMENTATION = """
    name: awx_display
    type: stdout
    short_description: Events of a play for ansible-runner, with tags and without secrets
    version_added: "0.1"
    description:
      - Tells ansible-runner what happens in a play.
    extends_documentation_fragment:
      - default_callback
    requirements:
      - Set as stdout in config
"""


class CallbackModule(original.CallbackModule):  # type: ignore[misc]  # its base has no types
    """The runner's callback, with reduced events."""

    CALLBACK_NAME = "awx_display"

    @contextlib.contextmanager
    def capture_event_data(self, event: str, **event_data: Any) -> Iterator[None]:
        """Pass on the reduced result."""
        for key in ("res", "diff"):
            value = event_data.get(key)
            if key in event_data:
                event_data[key] = slim(value) if isinstance(value, Mapping) else None
        event_data.pop("event_loop", None)
        with super().capture_event_data(event, **event_data):
            yield

    def set_task(self, task: Any, local: bool = False) -> None:
        """Add the tags of a task, including those of its blocks, plays and roles."""
        super().set_task(task, local)
        context = {"tags": sorted({str(tag) for tag in task.tags})}
        (original.event_context.add_local if local else original.event_context.add_global)(**context)

    def clear_task(self, local: bool = False) -> None:
        """Forget the tags with the task."""
        super().clear_task(local)
        context: dict[str, Any] = {"tags": None}
        (original.event_context.remove_local if local else original.event_context.remove_global)(**context)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Continue with the next play or batch, unless the user asked to stop before it."""
        stop = os.environ.get("METAL_STOP_FILE")
        if stop and Path(stop).exists():
            raise KeyboardInterrupt
        super().v2_playbook_on_play_start(play)
