"""The part of Hugging Face's protocol that ``huggingface_hub`` 1.33 and 2.4 use to download a model.

Read in the client's source (``hf_api.py``, ``file_download.py``, ``utils/_http.py``) and, for parts that the
client ignores, in the hub's public API description (https://huggingface.co/docs/hub/api).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from lab.hub.files import file_response
from lab.hub.store import Entry, GatedError, NotFoundError, Snapshot, Store

PAGE = 1000
"""Entries on one page of a tree listing; the hub's own number."""

TITLE, DATE = "Publish", "2026-01-01T00:00:00.000Z"
"""Of every commit: a client may show it but never decides by it."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def routes(store: Store, page: int = PAGE) -> list[Route]:
    """Return the protocol's routes; a tree listing comes in pages of ``page`` entries."""

    def snapshot(request: Request) -> Snapshot:
        parts = request.path_params
        if not store.admits("huggingface", parts["repository"], request.headers.get("authorization")):
            raise GatedError(parts["repository"])
        return store.snapshot("huggingface", parts["repository"], parts.get("revision", "main"))

    async def model(request: Request) -> Response:
        found = snapshot(request)
        blobs = request.query_params.get("blobs", "").lower() == "true"
        return JSONResponse(
            {
                "_id": found.commit[:24],
                "id": found.repository,
                "modelId": found.repository,
                "author": found.repository.partition("/")[0],
                "sha": found.commit,
                "createdAt": DATE,
                "lastModified": DATE,
                "private": False,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": ["safetensors"],
                "library_name": "transformers",
                "pipeline_tag": "text-generation",
                "siblings": [
                    {"rfilename": entry.path} | (_blob(entry) if blobs else {})
                    for entry in found.files.values()
                ],
                "usedStorage": sum(entry.size for entry in found.files.values()),
            }
        )

    async def tree(request: Request) -> Response:
        found = snapshot(request)
        query = request.query_params
        listed = _below(
            found, request.path_params.get("path", ""), query.get("recursive", "").lower() == "true"
        )
        size = min(int(query.get("limit", page)), page)
        start = int(query.get("cursor", 0))
        headers = {}
        if start + size < len(listed):
            following = {**query, "cursor": start + size}
            headers["Link"] = f'<{request.url.replace(query=urlencode(following))}>; rel="next"'
        return JSONResponse(listed[start : start + size], headers=headers)

    async def refs(request: Request) -> Response:
        found = snapshot(request)
        branches = store.branches("huggingface", found.repository)
        return JSONResponse(
            {
                "branches": [
                    {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
                    for name, commit in branches.items()
                ],
                "tags": [],
                "converts": [],
            }
        )

    async def resolve(request: Request) -> Response:
        found = snapshot(request)
        entry = found.file(request.path_params["path"])
        headers = {"X-Repo-Commit": found.commit, "Accept-Ranges": "bytes"}
        if not entry.large:
            return file_response(
                store.object(entry.sha256), entry.path, {**headers, "ETag": f'"{entry.etag}"'}
            )
        # Large files are on another server; the client keeps the headers of the first answer.
        headers |= {"X-Linked-Etag": f'"{entry.etag}"', "X-Linked-Size": str(entry.size)}
        name = quote(entry.path.rpartition("/")[2])
        # The client follows a redirect on the same host before it reads the commit: the redirect has it too.
        target = request.url.replace(
            path=f"/huggingface-cdn/{entry.sha256}/{name}", query=f"commit={found.commit}"
        )
        return RedirectResponse(str(target), 302, headers)

    async def cdn(request: Request) -> Response:
        sha256 = request.path_params["sha256"]
        headers = {"ETag": f'"{sha256}"', "X-Repo-Commit": request.query_params.get("commit", "")}
        return file_response(store.object(sha256), request.path_params["name"], headers)

    api = "/api/models/{repository:path}"
    both = ["GET", "HEAD"]
    return [
        # The longer ones first: a repository's id contains a slash, as any "path" may.
        Route(api + "/revision/{revision}", _answer(model), methods=both),
        Route(api + "/tree/{revision}", _answer(tree), methods=both),
        Route(api + "/tree/{revision}/{path:path}", _answer(tree), methods=both),
        Route(api + "/refs", _answer(refs), methods=both),
        Route(api, _answer(model), methods=both),
        Route("/huggingface-cdn/{sha256}/{name}", _answer(cdn), methods=both),
        Route("/{repository:path}/resolve/{revision}/{path:path}", _answer(resolve), methods=both),
    ]


def _answer(handler: Handler) -> Handler:
    """Turn a missing object into the hub's 404, whose headers tell the client what was missing."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except NotFoundError as error:
            headers = {"X-Error-Code": f"{error.what}NotFound", "X-Error-Message": str(error)}
            if error.commit:
                headers["X-Repo-Commit"] = error.commit
            return JSONResponse({"error": str(error)}, 404, headers)
        except GatedError as error:
            status = 403 if "authorization" in request.headers else 401
            text = f"Access to model {error} is restricted."
            return JSONResponse(
                {"error": text}, status, {"X-Error-Code": "GatedRepo", "X-Error-Message": text}
            )
        except ValueError as error:
            return JSONResponse({"error": f"bad query: {error}"}, 400)

    return answer


def _blob(entry: Entry) -> dict[str, Any]:
    """Return the hub's data on a file's bytes for a model's description."""
    lfs = {"sha256": entry.sha256, "size": entry.size, "pointerSize": 134}
    return {"size": entry.size, "blobId": entry.oid} | ({"lfs": lfs} if entry.large else {})


def _below(found: Snapshot, folder: str, recursive: bool) -> list[dict[str, Any]]:
    """Return the entries of a tree listing: files below ``folder``, and its folders.

    Raises:
        NotFoundError: there is no such folder.
    """
    prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
    paths = [path for path in found.files if path.startswith(prefix)]
    if prefix and not paths:
        raise NotFoundError("Entry", folder, found.commit)
    listed: dict[str, dict[str, Any]] = {}
    for path in paths:
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            name = prefix + "/".join(parts[:depth])
            listed.setdefault(name, {"type": "directory", "oid": "0" * 40, "size": 0, "path": name})
        if recursive or len(parts) == 1:
            entry = found.files[path]
            lfs = {"oid": entry.sha256, "size": entry.size, "pointerSize": 134}
            listed[path] = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path} | (
                {"lfs": lfs} if entry.large else {}
            )
    return list(listed.values())
