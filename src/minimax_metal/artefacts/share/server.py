"""The nginx that serves a host's pieces to its fleet, and nothing to anybody else."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from minimax_metal.artefacts.manifest import FILE, FOLDER
from minimax_metal.artefacts.part import PARTS
from minimax_metal.artefacts.request import Request
from minimax_metal.artefacts.share.log import LISTING, LOG, PLACE
from minimax_metal.artefacts.share.settings import Share
from minimax_metal.errors import UserError

_PLAIN = re.compile(r"[A-Za-z0-9/._@+=:,~-]+")
WORKERS: Final = 4
"""Processes: one that waits for a cold disk holds the others' pieces up no longer."""

_CONFIGURATION: Final = """\
worker_processes {workers};
pid {folder}/nginx.pid;
error_log stderr warn;
events {{
  worker_connections 1024;
}}
http {{
  access_log off;
  server_tokens off;
  default_type application/octet-stream;
  sendfile on;
  sendfile_max_chunk 2m;
  tcp_nopush on;
  keepalive_timeout 75s;
  keepalive_requests 1000000;
  client_max_body_size 1k;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  limit_conn_zone $server_port zone=uploads:1m;
  limit_conn_status 503;
  limit_conn_log_level info;
  server {{
{listen}
    root /;
    secure_link $http_x_share_signature,$http_x_share_expires;
    secure_link_md5 "{secret} $secure_link_expires $uri $remote_addr {secret}";
    if ($secure_link = "") {{ return 403; }}
    if ($secure_link = "0") {{ return 410; }}
{allow}
    deny all;
    location = /log {{ try_files "{staging}/{place}/{log}" =404; }}
    location = /listing {{ try_files "{staging}/{place}/{listing}" =404; }}
    location = /manifest {{ try_files "{final}/{folder_name}/{manifest}" =404; }}
    location ~ "^/files/([0-9a-f]{{32}})/(.+)$" {{
      limit_conn uploads {uploads};
{rate}      try_files "{final}/$2" "{staging}/$2" "{staging}/{folder_name}/{parts}/$1" =404;
    }}
    location / {{ return 404; }}
  }}
}}
"""


def addresses_of(name: str) -> list[str]:
    """Return a host's addresses; [] when its name is not known (yet)."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return sorted({str(address[4][0]).partition("%")[0] for address in found})


def configuration(request: Request, share: Share, secret: str, folder: Path, allowed: Iterable[str]) -> str:
    """Return the configuration.

    Args:
        request: names the model's directories.
        share: port, limits.
        secret: the fleet's.
        folder: where nginx keeps its process id and what it needs no room for.
        allowed: addresses and networks that may ask.

    Raises:
        UserError: a path can't be written in a configuration.
    """
    for path in (request.path, request.staging, folder):
        if _PLAIN.fullmatch(str(path)) is None:
            raise UserError(
                f"found a path {str(path)!r}, expected letters, digits and /._@+=:,~- only; move the model "
                "or set model_weights_share to false"
            )
    networks = sorted({str(ipaddress.ip_network(one, strict=False)) for one in allowed})
    listen = [f"    listen {share.port} reuseport;"]
    if any(":" in network for network in networks):
        listen.append(f"    listen [::]:{share.port} ipv6only=on reuseport;")
    # A limit of all together: nginx knows one for each answer, and at most so many are given at a time.
    rate = f"      limit_rate {max(1, share.rate // share.uploads)};\n" if share.rate else ""
    return _CONFIGURATION.format(
        workers=WORKERS,
        folder=folder,
        listen="\n".join(listen),
        secret=secret,
        allow="\n".join(f"    allow {network};" for network in networks),
        staging=request.staging,
        final=request.path,
        place=PLACE,
        log=LOG,
        listing=LISTING,
        folder_name=FOLDER,
        manifest=FILE,
        parts=PARTS,
        uploads=share.uploads,
        rate=rate,
    )


def write(
    request: Request, target: Path, resolve: Callable[[str], Sequence[str]] = addresses_of
) -> list[str]:
    """Write the configuration for a request, readable by its owner only; return the peers without address.

    Raises:
        UserError: the request shares nothing, or the secret is not there.
    """
    share = request.share
    if share is None:
        raise UserError("the request names nobody to share with; run playbooks/weights.yml again")
    allowed, unknown = list(share.allow), []
    for peer in share.peers:
        found = resolve(peer.address)
        allowed += found
        if not found:
            unknown.append(peer.name)
    text = configuration(request, share, share.secret(), target.parent, allowed)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600)
    temporary.write_text(text, encoding="ascii")
    temporary.replace(target)
    return unknown
