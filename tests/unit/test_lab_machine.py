"""The resources that this machine needs before hosts boot."""

from __future__ import annotations

import ctypes
import os

import pytest

from lab.hosts import machine
from lab.hosts.errors import LabError


def test_hosts_that_would_be_refused_their_watches_are_refused_before_they_boot() -> None:
    machine.check_inotify(10, in_use=40, limit=128)
    machine.check_inotify(0, in_use=500, limit=128)  # all of them run already
    with pytest.raises(LabError) as caught:
        machine.check_inotify(20, in_use=40, limit=128)
    assert str(caught.value) == (
        "found fs.inotify.max_user_instances 128 and 40 in use, expected room for 20 more hosts (7 each): "
        "sysctl -w fs.inotify.max_user_instances=512"
    )


def test_instances_in_use_are_counted() -> None:
    before = machine.inotify_in_use("self")
    handle = ctypes.CDLL(None).inotify_init1(os.O_CLOEXEC)
    try:
        assert machine.inotify_in_use("self") == before + 1
    finally:
        os.close(handle)
