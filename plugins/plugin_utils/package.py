"""Put the package of this collection on Python's path: plugins and package are always of one version.

Plugins that run on the controller import this before ``minimax_metal``. So an installed collection needs
nothing in Ansible's environment but the dependencies in ``meta/requirements.txt``.
"""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
from pathlib import Path

SOURCE = str(Path(__file__).resolve().parents[2] / "src")

if SOURCE not in sys.path:
    sys.path.insert(0, SOURCE)
