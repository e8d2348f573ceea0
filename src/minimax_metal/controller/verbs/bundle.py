"""``metal bundle``: everything that a fleet downloads, in one directory with a manifest.

Exit status: 0 done; 1 ``verify`` found damage; 2 something to fix.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minimax_metal.common.errors import UserError
from minimax_metal.controller.bundle import serve
from minimax_metal.controller.bundle_store import signature, store
from minimax_metal.controller.project import find_project
from minimax_metal.controller.verbs.plan import add_arguments, make_plans
from minimax_metal.plan.model import Plan, plain

EPILOG = """\
examples:
  metal bundle export /mnt/disk/bundle --inventory inventories/my-fleet --sign-key KEY  # with an uplink
  metal bundle export /mnt/disk/bundle --model MiniMax-M2.5 --gpu H20 --count 4 --platform debian13
  metal bundle verify /mnt/disk/bundle
  metal bundle import /mnt/disk/bundle --to /srv/bundle                     # or serve it from the disk
  metal bundle serve /srv/bundle --allow 10.0.0.0/24 --variables inventories/my-fleet/group_vars/all/b.yml
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="metal bundle",
        description="Collect everything a fleet downloads in one directory, for sites without an uplink.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    export = verbs.add_parser(
        "export", help="download what the hosts need into a directory; resumes after an interruption"
    )
    export.add_argument("directory", type=Path)
    export.add_argument(
        "--without",
        action="append",
        default=[],
        choices=("wheels", "packages", "pythons", "weights"),
        help="leave a part out (repeatable)",
    )
    export.add_argument("--dry-run", action="store_true", help="only list what would be downloaded")
    export.add_argument(
        "--vendor-key",
        metavar="FILE=FINGERPRINT",
        help="signing key of a mirror that signs NVIDIA's packages itself",
    )
    export.add_argument(
        "--sign-key",
        type=Path,
        metavar="FILE",
        help="SSH key that signs the manifest (ssh-keygen -Y sign); without it the bundle has no signature",
    )
    add_arguments(export)
    verify = verbs.add_parser("verify", help="read every byte and compare it with the manifest")
    verify.add_argument("directory", type=Path)
    verify.add_argument(
        "--remove",
        action="store_true",
        help="remove damaged files, so that the next export or import fetches them again",
    )
    _add_trust(verify)
    bring = verbs.add_parser(
        "import", help="copy a bundle and verify each file; resumes after an interruption"
    )
    bring.add_argument("directory", type=Path)
    bring.add_argument("--to", type=Path, required=True, metavar="DIRECTORY", help="directory to copy to")
    _add_trust(bring)
    server = verbs.add_parser("serve", help="serve it to the fleet until interrupted")
    server.add_argument("directory", type=Path)
    _add_trust(server)
    server.add_argument("--listen", default="0.0.0.0:8643", metavar="ADDRESS:PORT", help="(%(default)s)")
    server.add_argument("--url", help="name under which hosts reach this machine; by default its host name")
    server.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="NETWORK",
        help="network that may connect, such as 10.0.0.0/24 (repeatable, at least one)",
    )
    server.add_argument(
        "--user", metavar="NAME", help=f"user to serve as when started by root (default: {serve.NOBODY})"
    )
    server.add_argument(
        "--frozen",
        action="store_true",
        help="also write metal_frozen_sources: hosts accept the bundle's package lists after they expire",
    )
    server.add_argument(
        "--variables", type=Path, metavar="FILE", help="file to write the one variable to that hosts need"
    )
    return parser


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--signers",
        type=Path,
        metavar="FILE",
        help=f"public keys (lines of .pub files) of trusted signers; default: {signature.SIGNERS}",
    )
    parser.add_argument(
        "--accept-unsigned",
        action="store_true",
        help="use a bundle that no known key signed; an import notes this beside the manifest",
    )


def main(argv: Sequence[str]) -> int:
    """Run ``metal bundle``; return its exit status."""
    arguments = _parser().parse_args(list(argv))
    verbs = {"export": _export, "verify": _verify, "import": _import, "serve": _serve}
    return verbs[arguments.verb](arguments)


def _say(line: str) -> None:
    print(line, flush=True)


def _export(arguments: argparse.Namespace) -> int:
    from minimax_metal.controller.bundle.export import Export

    if os.geteuid() == 0:
        print(
            "metal bundle: running as root, so answers from mirrors are parsed with root's rights; "
            f"an ordinary user who can write to {arguments.directory} is enough",
            file=sys.stderr,
        )
    plans = make_plans(arguments)
    project = find_project()
    if project is None:
        raise UserError(
            "found no requirements/ beside the package, expected the project's checkout; run it from there"
        )
    directory = arguments.directory.absolute()
    export = Export(
        directory=directory,
        plans=plans,
        requirements=project / "requirements",
        say=_say,
        pull=_pull,
        without=frozenset(arguments.without),
        vendor_key=arguments.vendor_key,
        sign_key=arguments.sign_key,
    )
    wanted = export.resolve()
    need, count = export.check_room(), len(export.items)
    weights = 0 if "weights" in export.without else sum(one.bytes for one in wanted.weights)
    _say(f"{count} files, {need / 1e9:.2f} GB to fetch; weights {weights / 1e9:.1f} GB")
    if arguments.dry_run:
        return 0
    export.fetch(wanted)
    pulled = export.fetch_weights(wanted)
    bundle = export.finish(wanted, pulled)
    signed = "signed" if bundle.signature else "without a signature (--sign-key)"
    _say(
        f"{bundle.directory}: {len(bundle.files)} files, {bundle.size / 1000000000.0:.2f} GB, complete, "
        f"{signed}"
    )
    return 0


def _pull(plan: Plan, target: Path) -> None:
    from minimax_metal.controller.bundle.export import scratch
    from minimax_metal.host.weights.commands import main as weights

    if plan.weights is None or plan.model is None:
        raise UserError(f"found no source of weights for {plan.host}, expected metal_weights_source; set it")
    request: dict[str, Any] = {
        "path": str(target),
        "name": plan.model.served_name,
        "revision": plan.model.revision,
        "adopt": [],
        **_stated(plan, plain(plan.weights.sources)),
    }
    with scratch() as temporary:
        path = Path(temporary) / "request.json"
        path.write_text(json.dumps(request), encoding="utf-8")
        status = weights(["pull", "--request", str(path)])
    if status:
        raise UserError(
            f"found that the weights of {plan.model.served_name} could not be pulled (status "
            f"{status}, reported above), expected all of them; run the command again: it resumes; or "
            "leave them out with --without weights"
        )


def _stated(plan: Plan, sources: Any) -> dict[str, Any]:
    """Resolve the files of a model as a run does: the bundle's manifest will list them for others."""
    from minimax_metal.controller.bundle.export import scratch
    from minimax_metal.controller.statements.resolving import resolve
    from minimax_metal.controller.statements.wishes import Wish
    from minimax_metal.host.weights.request import Source

    assert plan.model is not None  # noqa: S101  the caller looked
    repository, revision = plan.model.repositories["huggingface"], plan.model.revision
    with scratch() as nowhere:
        wish = Wish(repository, revision, tuple(Source.parse(one, revision) for one in sources))
        found = resolve(wish, Path(nowhere), keep=False)
    if found.proof is None:
        raise UserError(
            f"found no source that publishes the hashes of {repository} at {revision}, expected the "
            "hub or a source of metal_weights_source to "
            f"({'; '.join(found.warnings) or 'no answer'}); check the connection to it, or leave the "
            "weights out with --without weights"
        )
    _say(f"weights of {repository}: {found.proof}")
    return {
        "sources": [one.as_dict() for one in found.sources],
        "proof": found.proof.as_dict(),
        "bytes": sum(entry.size for entry in found.proof.files),
    }


def _verify(arguments: argparse.Namespace) -> int:
    bundle = store.read(arguments.directory, arguments.signers)
    trust = store.trusted(bundle, arguments.accept_unsigned)
    bad = []
    for file, found in store.damaged(bundle):
        bad.append(file)
        print(f"{file.path}: found {found}", file=sys.stderr)
    if not bad:
        _say(f"{bundle.directory}: {len(bundle.files)} files, {bundle.size / 1e9:.2f} GB, verified, {trust}")
        return 0
    remedy = "they were removed:" if arguments.remove else "verify it with --remove, then"
    if arguments.remove:
        store.remove(bundle, bad)
    print(
        f"metal bundle: found {len(bad)} of {len(bundle.files)} files of {bundle.directory} damaged, "
        f"expected none; {remedy} export or import it again, which fetches only these",
        file=sys.stderr,
    )
    return 1


def _import(arguments: argparse.Namespace) -> int:
    source, target = arguments.directory.absolute(), arguments.to.absolute()
    if source == target or source in target.parents or target in source.parents:
        raise UserError(
            f"found --to {target} inside {source} or around it, expected a separate directory; name one"
        )
    found = store.read(source, arguments.signers)
    trust = store.trusted(found, arguments.accept_unsigned)
    bundle = store.copy(found, target, _say, trust)
    _say(f"{bundle.directory}: {len(bundle.files)} files, {bundle.size / 1e9:.2f} GB, verified, {trust}")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    host, port = serve.address(arguments.listen)
    serve.networks(arguments.allow)
    bundle = store.read(arguments.directory, arguments.signers)
    trust = store.trusted(bundle, arguments.accept_unsigned)
    url = (arguments.url or serve.own_url(host, port)).rstrip("/")
    if arguments.variables:
        serve.written(arguments.variables, url, arguments.frozen)
        _say(f"{arguments.variables}: metal_mirrors: {url}")
    _say(
        f"{bundle.directory}: {len(bundle.files)} files of {bundle.created}, {trust}; for hosts: "
        f"metal_mirrors: {url}"
    )
    return serve.run(bundle, host, port, arguments.allow, arguments.user)
