"""HTTP requests to the gateway about its workers, and to a worker about its requests in flight.

Standard library only. No proxy and no redirects: both are the fleet's own addresses.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.metrics import MOST, samples
from minimax_metal.common.web import fetch

ASK_SECONDS: Final = 10.0
MOST_BYTES: Final = 16 * 2**20
"""Maximum bytes of an answer: it may come from anybody."""
RUNNING: Final = ("sglang:num_running_reqs", "sglang:num_queue_reqs")


@dataclass(frozen=True, slots=True)
class Registered:
    """A worker as the gateway sees it."""

    url: str
    status: str
    """smg's: pending, ready, not_ready, failed, draining."""
    load: int
    """Requests that the gateway has in flight on it."""
    model: str | None


class Web:
    """HTTP with one key."""

    def __init__(self, key: str | None, ca_file: Path | None) -> None:
        self.key = key
        try:
            self.context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        except OSError as error:
            raise UserError(f"{ca_file}: no CA certificate: {error}; fix the file") from None

    def get(self, url: str, seconds: float = ASK_SECONDS) -> tuple[int, bytes]:
        """Return status and body of a GET.

        Raises:
            OSError: no answer, or not in time; ``ConnectionRefusedError`` if nothing listens.
        """
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return fetch(url, seconds=seconds, limit=MOST_BYTES, headers=headers, context=self.context)


class Gateway:
    """A running gateway's own API."""

    def __init__(self, url: str, web: Web) -> None:
        self.url = url
        self.web = web

    def workers(self) -> dict[str, Registered]:
        """Return the gateway's workers, by URL.

        Raises:
            UserError: it does not answer, or not as a gateway does.
        """
        try:
            status, body = self.web.get(f"{self.url}/workers")
        except OSError as error:
            raise UserError(
                f"nothing answers at the gateway {self.url}: {error}; check systemctl status sglang-gateway"
            ) from None
        if status in {401, 403}:
            raise UserError(
                f"the gateway {self.url} rejects the admin key ({status}); run playbooks/gateway.yml"
            )
        try:
            found = [_registered(entry) for entry in read_json(body)["workers"]] if status == 200 else None
        except (ValueError, KeyError, TypeError):
            found = None
        if found is None:
            raise UserError(
                f"{self.url}/workers answered {status} without a list of workers; is it a gateway?"
            )
        return {worker.url: worker for worker in found}


def _registered(entry: dict[str, Any]) -> Registered:
    return Registered(
        url=str(entry["url"]).rstrip("/"),
        status=str(entry.get("status") or ("ready" if entry["is_healthy"] else "not_ready")),
        load=_count(entry["load"]),
        model=entry.get("model_id"),
    )


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST:
        raise ValueError(f"{value!r} is not a count")
    return int(value)


def in_flight(web: Web, url: str) -> int | None:
    """Return a worker's number of running or waiting requests, from all clients; None if it does not report
    it.

    It is 0 if nothing listens on the worker's port. ``/v1/loads`` is tried first, then the metrics, which the
    engine shows without a key (both: SGLang 0.5.23).
    """
    try:
        status, body = web.get(f"{url}/v1/loads")
        if status == 200:
            loads = read_json(body)["loads"]
            return sum(_count(load["num_running_reqs"]) + _count(load["num_waiting_reqs"]) for load in loads)
        status, body = web.get(f"{url}/metrics")
    except ConnectionRefusedError:
        return 0
    except (OSError, ValueError, KeyError, TypeError):
        return None
    text = body.decode("utf-8", "replace") if status == 200 else ""
    counts = [int(one.value) for one in samples(text, "sglang:") if one.name in RUNNING]
    return sum(counts) if counts else None
