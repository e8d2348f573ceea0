"""The parts of a lab: hosts, their systems and GPUs, and the models that the hub publishes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lab.hosts.errors import LabError

LABS: Final = Path(__file__).parents[1] / "labs"
NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,23}")
MAX_HOSTS: Final = 200  # addresses .11 to .210 of the lab's /24


class Gpus(BaseModel):
    """The cards of one host, by the catalogue's name of the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    count: int = Field(ge=0, le=16)


class Host(BaseModel):
    """One virtual host."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str
    gpus: Gpus | None = None
    network_admin: bool = False
    """Whether it may change addresses and rules of its own network namespace, which no other host shares."""


class Links(BaseModel):
    """Speed of the lab's links, in Mbit/s each way; without a number as fast as this machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uplink_mbit: int | None = Field(default=None, ge=1)
    """Of the services' link, which all hosts share: hub, package cache, vendor repository."""
    host_mbit: int | None = Field(default=None, ge=1)
    """Of each host's link."""


class Description(BaseModel):
    """A whole lab, as written in ``lab/labs/*.yml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hosts: dict[str, Host] = Field(min_length=1, max_length=MAX_HOSTS)
    models: list[str] = []
    links: Links = Links()
    engine: Literal["real", "simulated"] = "real"
    """The installed engine: SGLang with the CPU plug-in, or the simulated one instead."""

    @field_validator("hosts")
    @classmethod
    def _host_names(cls, hosts: dict[str, Host]) -> dict[str, Host]:
        for name in hosts:
            if not NAME.fullmatch(name):
                raise ValueError(f"host name {name!r}: expected lower-case letters, digits and dashes")
        return hosts


def check_name(name: str) -> str:
    """Return a lab's name, or raise :class:`LabError` if it cannot be one (it names a directory)."""
    if not NAME.fullmatch(name):
        raise LabError(
            f"lab name {name!r}: expected lower-case letters, digits and dashes, a letter first, at most 24"
        )
    return name


def load(name: str, file: Path | None = None) -> Description:
    """Read ``lab/labs/NAME.yml``, or ``file``.

    Raises:
        LabError: the file does not exist, or does not describe a lab.
    """
    path = file or LABS / f"{name}.yml"
    try:
        return Description.model_validate(yaml.safe_load(path.read_text()))
    except FileNotFoundError:
        known = ", ".join(sorted(entry.stem for entry in LABS.glob("*.yml")))
        raise LabError(
            f"no lab description {path}: known labs are {known}; give another with --file"
        ) from None
    except yaml.YAMLError as error:
        raise LabError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise LabError(f"{path}: {where}: {first['msg']}") from None
