"""The part of ModelScope's protocol that ``modelscope`` 1.40 (``modelscope_hub`` 0.5) uses to download a
model.

Read in the client's source: ``modelscope_hub/_legacy_api.py`` and ``_download.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lab.hub.files import file_response
from lab.hub.store import GatedError, NotFoundError, Snapshot, Store

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def routes(store: Store) -> list[Route]:
    """Return the protocol's routes."""

    def snapshot(request: Request) -> Snapshot:
        revision = request.query_params.get("Revision", "master")
        repository = request.path_params["repository"]
        if not store.admits("modelscope", repository, request.headers.get("authorization")):
            raise GatedError(repository)
        return store.snapshot("modelscope", request.path_params["repository"], revision)

    async def model(request: Request) -> Response:
        found = snapshot(request)
        organisation, _, name = found.repository.partition("/")
        return _success({"Id": 1, "Path": organisation, "Name": name, "Revision": "master", "Visibility": 5})

    async def revisions(request: Request) -> Response:
        found = snapshot(request)
        branches = [
            {"Revision": name, "CreatedAt": 0} for name in store.branches("modelscope", found.repository)
        ]
        return _success({"RevisionMap": {"Branches": branches, "Tags": []}})

    async def files(request: Request) -> Response:
        found = snapshot(request)
        recursive = request.query_params.get("Recursive", "").lower() == "true"
        # The hub itself leaves the commit's id empty here, and sends its first digits.
        latest = {"Id": "", "ShortId": found.commit[:8]}
        below = _below(found, request.query_params.get("Root", ""), recursive)
        return _success({"Files": below, "LatestCommitter": latest})

    async def file(request: Request) -> Response:
        found = snapshot(request)
        entry = found.file(request.query_params.get("FilePath", ""))
        headers = {"ETag": f'"{entry.sha256}"', "X-Linked-ETag": f'"{entry.sha256}"'}
        # The hub answers a range with 200 and a correct Content-Range (modelscope/modelscope_hub issue 50).
        return file_response(store.object(entry.sha256), entry.path, headers, slices_as_ok=True)

    api = "/api/v1/models/{repository:path}"
    both = ["GET", "HEAD"]
    return [
        # The longer ones first: a repository's id contains a slash.
        Route(api + "/repo/files", _answer(files), methods=both),
        Route(api + "/repo", _answer(file), methods=both),
        Route(api + "/revisions", _answer(revisions), methods=both),
        Route(api, _answer(model), methods=both),
    ]


def _success(data: dict[str, Any]) -> Response:
    return JSONResponse(
        {"Code": 200, "Data": data, "Message": "success", "RequestId": "lab", "Success": True}
    )


def _answer(handler: Handler) -> Handler:
    """Turn a missing object into ModelScope's 404."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except NotFoundError as error:
            body = {"Code": 10010205001, "Message": str(error), "RequestId": "lab", "Success": False}
            return JSONResponse(body, 404)
        except GatedError as error:
            text = f"no right to read {error}"
            return JSONResponse(
                {"Code": 10010202403, "Message": text, "RequestId": "lab", "Success": False}, 403
            )

    return answer


def _below(found: Snapshot, root: str, recursive: bool) -> list[dict[str, Any]]:
    """Return the files below ``root`` and its folders, as ``repo/files`` lists them."""
    prefix = f"{root.strip('/')}/" if root.strip("/") else ""
    listed: dict[str, dict[str, Any]] = {}
    for path, entry in found.files.items():
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            folder = prefix + "/".join(parts[:depth])
            listed.setdefault(folder, {"Type": "tree", "Path": folder, "Name": parts[depth - 1], "Size": 0})
        if recursive or len(parts) == 1:
            listed[path] = {
                "Type": "blob",
                "Path": path,
                "Name": parts[-1],
                "Size": entry.size,
                "Sha256": entry.sha256,
                "IsLFS": entry.large,
                "Mode": "33188",
                "Revision": found.commit,
            }
    return list(listed.values())
