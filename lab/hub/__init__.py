"""A model hub for the lab: Hugging Face's protocol and ModelScope's, from published files.

``python -m lab.hub --root DIR --host A --port P`` serves; :class:`lab.hub.store.Store` publishes. README.md
describes what it stands for and what it cannot show.
"""

from lab.hub.store import Store

__all__ = ["Store"]
