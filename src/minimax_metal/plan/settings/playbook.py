"""The settings of the playbooks: rollouts and rollbacks, removal, locks, keys, acceptance."""

from dataclasses import dataclass
from typing import Final

from minimax_metal.plan.settings.declared import (
    PLAYBOOK,
    SECONDS,
    SHARE,
    Bounds,
    declared,
    number,
    other,
    switch,
    text,
    texts,
    whole,
)

PREFIX: Final = "metal_"


@dataclass(frozen=True)
class PlaybookSettings:
    """What a run of a playbook is told, by variables of hosts or with ``-e``."""

    host_timeout_seconds: int = whole(
        400,
        "Time a host may take to be read before it is given up and the others go on, in seconds.",
        Bounds(1, 86_400, "timeout"),
    )
    lock_break: bool = switch(
        False, "Take the fleet lock from another run. Only after you have made sure that the run is dead."
    )
    serve_serial: int | str | tuple[int | str, ...] = other(
        "batches",
        "100%",
        "Hosts whose engines `serve.yml` starts at the same time: a number, a share or a list.",
    )
    rollout_batches: tuple[int | str, ...] = other(
        "batches",
        (1, "25%", "100%"),
        "Sizes of the batches of a rollout: numbers of hosts or shares. The last one repeats.",
    )
    rollout_min_ready: int | str = other(
        "share",
        "50%",
        "Replicas of each model that stay in service: a number, or a share that is rounded down.",
    )
    rollout_on_failure: str = text(
        "stop",
        "Reaction to a failed host: `stop` leaves hosts that are already changed on the new release, "
        "`revert` returns them to the previous one.",
        ("stop", "revert"),
    )
    rollout_drain_seconds: int = whole(
        300, "Time running requests get to finish before an engine is stopped, in seconds.", SECONDS
    )
    rollout_trial_requests: int = whole(
        64, "Trial requests sent to a changed host before clients reach it. 0 sends none.", Bounds(0, 100_000)
    )
    rollout_soak_seconds: int = whole(
        60, "Time a changed host is watched under clients' load, in seconds. 0 skips it.", SECONDS
    )
    rollout_soak_errors: float = number(
        0.01,
        "How much the share of failed answers may rise during the soak. 0.01 is one percentage point.",
        SHARE,
    )
    rollout_soak_latency: float = number(
        2.0,
        "How many times as long the first token and the following ones may take during the soak.",
        Bounds(0.1, 1_000),
    )
    rollout_soak_requests: int = whole(
        20, "Answers needed during the soak before latencies are compared.", Bounds(1, 1_000_000)
    )
    rollout_stop_file: str | None = text(
        None, "File on the controller. Once it exists, the rollout stops before the next batch."
    )
    rollback_to: str = text(
        "previous", "Release to roll back to: `previous`, a number, a digest or a whole name."
    )
    keep_releases: int = whole(
        3,
        "Releases each host keeps. The one in force, and the one a run began from, always stay.",
        Bounds(1, 1_000),
    )
    remove: bool = switch(False, "Confirm that `remove.yml` may remove the product from the hosts.")
    remove_weights: tuple[str, ...] = texts(
        (), "Models whose weights `remove.yml` deletes, by name. Other weights stay."
    )
    remove_caches: bool = switch(False, "Have `remove.yml` delete caches: compiled kernels and downloads.")
    remove_records: bool = switch(False, "Have `remove.yml` delete release records and reports.")
    remove_driver: bool = switch(False, "Have `remove.yml` purge the NVIDIA driver and CUDA.")
    remove_gateway: bool = switch(False, "Have `remove.yml` remove the gateway.")
    remove_artefact_cache: bool = switch(False, "Have `remove.yml` remove the fleet's package cache.")
    keys_do: str = text(
        "start",
        "Step of a key rotation: `start` makes new keys valid beside the old ones, `finish` ends the old "
        "ones, `take-back` returns to them.",
        ("start", "finish", "take-back"),
    )
    keys_names: tuple[str, ...] = texts(
        (),
        "Keys to change: `api_key`, `admin_api_key`, `gateway_admin_key`. Empty: all of them.",
        ("api_key", "admin_api_key", "gateway_admin_key"),
    )
    share_secret_do: str = text(
        "renew",
        "Step for the secret by which hosts share a pull: `renew` makes a new one and keeps the old one "
        "valid for a day, `drop` ends the old one now.",
        ("renew", "drop"),
    )
    secrets_directory: str | None = text(
        None,
        "Directory on the controller for keys and certificates. By default `secrets` beside the inventory.",
    )
    secure_logging: bool = switch(
        True, "Keep secrets out of Ansible's output. Set to false for debugging only."
    )
    acceptance_directory: str | None = text(
        None, "Directory on the controller for the acceptance report. By default `accept/HOST`."
    )
    acceptance_stop_engine: bool = switch(
        False, "Stop the engine during acceptance, for the checks that need the GPUs' memory."
    )
    acceptance_anonymise: bool = switch(
        False, "Remove serial numbers, addresses and host names from the acceptance report and bundle."
    )
    acceptance_only: tuple[str, ...] = texts((), "Acceptance checks to run. Empty: all.")
    acceptance_skip: tuple[str, ...] = texts((), "Acceptance checks to leave out.")


PLAYBOOK_SETTINGS: Final = declared(PlaybookSettings, PREFIX, PLAYBOOK)
