"""The nginx that serves a host's pieces, only to its fleet."""

from __future__ import annotations

import ipaddress
import re
import secrets as random
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from minimax_metal.common.errors import UserError
from minimax_metal.common.files import write_atomic
from minimax_metal.host.weights import share_keys as keys
from minimax_metal.host.weights.manifest import FOLDER
from minimax_metal.host.weights.part import PARTS
from minimax_metal.host.weights.request import Request
from minimax_metal.host.weights.share_log import ANNOUNCED, LISTING, LOG, PLACE, announce
from minimax_metal.host.weights.share_settings import Share

_PLAIN = re.compile(r"[A-Za-z0-9/._@+=:,~-]+")
WORKERS: Final = 4
"""Processes: one that waits for a cold disk does not delay the others' pieces."""
CONNECTIONS: Final = 64
"""Maximum connections per address: a host of the fleet has about six."""
PIECES_EACH: Final = 6
"""Maximum pieces sent to one address in parallel; a pull requests four."""

_CONFIGURATION: Final = """\
worker_processes {workers};
pid {folder}/nginx.pid;
error_log stderr warn;
events {{
  worker_connections 4096;
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
  client_header_timeout 5s;
  client_body_timeout 5s;
  client_header_buffer_size 2k;
  large_client_header_buffers 2 4k;
  send_timeout 15s;
  reset_timedout_connection on;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  limit_conn_zone $server_port zone=uploads:1m;
  limit_conn_zone $binary_remote_addr zone=each:2m;
  limit_conn_zone $binary_remote_addr zone=connections:2m;
  limit_conn_status 503;
  limit_conn_log_level info;
  map $http_x_share_key $share_secret {{
{secrets}
  }}
  server {{
{listen}
    root /;
    max_ranges 1;
    limit_conn connections {connections};
    if ($request_method != GET) {{ return 405; }}
    secure_link $http_x_share_signature,$http_x_share_expires;
    secure_link_md5 "$share_secret $secure_link_expires $uri $remote_addr $share_secret";
    if ($secure_link = "") {{ return 403; }}
    if ($secure_link = "0") {{ return 410; }}
{allow}
    deny all;
    location = /log {{ try_files "{staging}/{place}/{log}" =404; }}
    location = /listing {{ try_files "{staging}/{place}/{listing}" =404; }}
    location = /manifest {{ try_files "{folder}/{announced}" "{final}/{folder_name}/{announced}" =404; }}
    location ~ "^/files/([0-9a-f]{{32}})/(.+)$" {{
      limit_conn connections {connections};
      limit_conn uploads {uploads};
      limit_conn each {each};
{rate}      try_files "{final}/$2" "{staging}/$2" "{staging}/{folder_name}/{parts}/$1" =404;
    }}
    location / {{ return 404; }}
  }}
}}
"""


def addresses_of(name: str) -> list[str]:
    """Return a host's addresses; [] if its name is not known (yet)."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return sorted({str(address[4][0]).partition("%")[0] for address in found})


def configuration(
    request: Request, share: Share, fleet: Sequence[str], folder: Path, allowed: Iterable[str]
) -> str:
    """Return the configuration.

    Args:
        request: names the model's directories.
        share: port, limits.
        fleet: the fleet's secrets, the current one first.
        folder: where nginx stores its process id and other small files.
        allowed: addresses and networks that may connect.

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
    # A slow reader is detected by the data left in the buffer: with one of 1 MB, 15 s for a third of it.
    more = "reuseport sndbuf=1m"
    listen = [f"    listen {share.port} {more};"]
    if any(":" in network for network in networks):
        listen.append(f"    listen [::]:{share.port} ipv6only=on {more};")
    # The name of the secret in a request; an unknown name is checked against a secret that nobody knows.
    names = {keys.name_of(secret): secret for secret in fleet} | {'""': fleet[0]}
    known = [*names.items(), ("default", random.token_hex(32))]
    # A limit for all together: nginx has one per answer, and sends at most so many in parallel.
    rate = f"      limit_rate {max(1, share.rate // share.uploads)};\n" if share.rate else ""
    return _CONFIGURATION.format(
        workers=WORKERS,
        folder=folder,
        listen="\n".join(listen),
        secrets="\n".join(f"    {name} {secret};" for name, secret in known),
        allow="\n".join(f"    allow {network};" for network in networks),
        staging=request.staging,
        final=request.path,
        place=PLACE,
        log=LOG,
        listing=LISTING,
        folder_name=FOLDER,
        announced=ANNOUNCED,
        connections=CONNECTIONS,
        each=PIECES_EACH,
        parts=PARTS,
        uploads=share.uploads,
        rate=rate,
    )


def write(
    request: Request, target: Path, resolve: Callable[[str], Sequence[str]] = addresses_of
) -> list[str]:
    """Write the configuration for a request, readable by its owner only; return the peers without address.

    Raises:
        UserError: the request shares nothing, or the secret is missing.
    """
    share = request.share
    if share is None:
        raise UserError("the request names no host to share with; run playbooks/weights.yml again")
    allowed, unknown = list(share.allow), []
    for peer in share.peers:
        found = resolve(peer.address)
        allowed += found
        if not found:
            unknown.append(peer.name)
    fleet = share.secrets()
    text = configuration(request, share, fleet, target.parent, allowed)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, text, mode=0o600)
    announce(request.path, target.with_name(ANNOUNCED), share.me, fleet)
    return unknown
