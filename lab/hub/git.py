"""Branches in git's smart HTTP protocol (gitprotocol-http(5)); there is nothing to clone."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from lab.hub.store import DEFAULT_BRANCH, NotFoundError, Store


def routes(store: Store) -> list[Route]:
    """Return the route of the reference advertisement; a repository on both sites has both branch sets."""

    async def refs(request: Request) -> Response:
        repository = request.path_params["repository"]
        branches: dict[str, str] = {}
        for site, default in DEFAULT_BRANCH.items():
            try:
                store.snapshot(site, repository, default)
            except NotFoundError:
                continue
            if not store.admits(site, repository, request.headers.get("authorization")):
                return PlainTextResponse("a token, please\n", 401)
            branches |= store.branches(site, repository)
        if not branches:
            return PlainTextResponse("no such repository\n", 404)
        first = min(branches)
        lines = [f"{branches[first]} HEAD\0symref=HEAD:refs/heads/{first} agent=lab\n"]
        lines += [f"{commit} refs/heads/{name}\n" for name, commit in sorted(branches.items())]
        body = _line("# service=git-upload-pack\n") + "0000" + "".join(map(_line, lines)) + "0000"
        return Response(body, media_type="application/x-git-upload-pack-advertisement")

    return [Route("/{repository:path}.git/info/refs", refs, methods=["GET"])]


def _line(text: str) -> str:
    """Return a pkt-line: four hex digits of its length, then the text."""
    return f"{len(text.encode()) + 4:04x}{text}"
