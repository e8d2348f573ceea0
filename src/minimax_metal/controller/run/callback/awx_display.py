"""What ansible-runner listens to, with a task's tags, without what nobody may read.

ansible-runner loads a callback of this name from the directory ``AWX_LIB_DIRECTORY``. This one is its own and

* adds the tags of a task, of which a stage is known,
* leaves out arguments and facts before anything is written, though it be to a private directory,
* stops between two plays, or two batches of one, when the file ``METAL_STOP_FILE`` is there.
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
    """The runner's callback, with less in its events."""

    CALLBACK_NAME = "awx_display"

    @contextlib.contextmanager
    def capture_event_data(self, event: str, **event_data: Any) -> Iterator[None]:
        """Hand on what is slim of a result."""
        for key in ("res", "diff"):
            value = event_data.get(key)
            if key in event_data:
                event_data[key] = slim(value) if isinstance(value, Mapping) else None
        event_data.pop("event_loop", None)
        with super().capture_event_data(event, **event_data):
            yield

    def set_task(self, task: Any, local: bool = False) -> None:
        """Add the tags of a task, those of its blocks, plays and roles among them."""
        super().set_task(task, local)
        context = {"tags": sorted({str(tag) for tag in task.tags})}
        (original.event_context.add_local if local else original.event_context.add_global)(**context)

    def clear_task(self, local: bool = False) -> None:
        """Forget the tags with the task."""
        super().clear_task(local)
        context: dict[str, Any] = {"tags": None}
        (original.event_context.remove_local if local else original.event_context.remove_global)(**context)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Go on with the next play or batch, unless somebody asked to stop before it."""
        stop = os.environ.get("METAL_STOP_FILE")
        if stop and Path(stop).exists():
            raise KeyboardInterrupt
        super().v2_playbook_on_play_start(play)
