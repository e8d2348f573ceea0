"""Every route of the engine by who may use it; a path that is not listed is closed.

From SGLang 0.5.23 (``tests/contract/test_keys.py`` walks the installed engine's own table and fails on a
route that is missing here). Paths are compared completely, with the value that the engine's router compares
(``scope["path"]``, percent-decoded by the server). A trailing slash, a second slash, another case or ``;x``
makes another path: closed.
"""

from __future__ import annotations

import re
from enum import Enum


class Access(Enum):
    """Who may use a route."""

    OPEN = "open"
    """Anybody: probes and metrics, no prompts."""
    CLIENTS = "clients"
    MANAGERS = "managers"
    CLOSED = "closed"


GET, POST, PUT, BOTH = ("GET",), ("POST",), ("POST", "PUT"), ("GET", "POST")

OPEN: dict[str, tuple[str, ...]] = {
    "/health": GET,
    "/health_generate": GET,
    "/metrics": GET,
    "/metrics/": GET,
    "/ready": GET,
}
CLIENTS: dict[str, tuple[str, ...]] = {
    "/": GET,
    "/api/chat": POST,
    "/api/generate": POST,
    "/api/show": POST,
    "/api/tags": GET,
    "/classify": PUT,
    "/close_session": BOTH,
    "/detokenize": POST,
    "/encode": PUT,
    "/generate": PUT,
    "/get_load": GET,
    "/get_model_info": GET,
    "/get_server_info": GET,
    "/invocations": POST,
    "/model_info": GET,
    "/open_session": BOTH,
    "/parse_function_call": POST,
    "/ping": GET,
    "/separate_reasoning": POST,
    "/server_info": GET,
    "/tokenize": POST,
    "/v1/chat/completions": POST,
    "/v1/classify": POST,
    "/v1/completions": POST,
    "/v1/decisions": POST,
    "/v1/detokenize": POST,
    "/v1/embeddings": POST,
    "/v1/loads": GET,
    "/v1/messages": POST,
    "/v1/messages/count_tokens": POST,
    "/v1/models": GET,
    "/v1/models/{model:path}": GET,
    "/v1/rerank": PUT,
    "/v1/responses": POST,
    "/v1/responses/{response_id}": GET,
    "/v1/responses/{response_id}/cancel": POST,
    "/v1/score": POST,
    "/v1/systemone": POST,
    "/v1/tokenize": POST,
    "/vertex_generate": POST,
}
MANAGERS: dict[str, tuple[str, ...]] = {
    "/abort_request": POST,
    "/add_external_corpus": POST,
    "/begin_weight_update": POST,
    "/configure_logging": BOTH,
    "/continue_generation": POST,
    "/destroy_weights_update_group": POST,
    "/dump_expert_distribution_record": BOTH,
    "/end_weight_update": POST,
    "/flush_cache": BOTH,
    "/freeze_gc": BOTH,
    "/get_hicache_l3_cache_layout": GET,
    "/get_remote_instance_transfer_engine_info": GET,
    "/get_weights_by_name": BOTH,
    "/hicache/storage-backend": ("DELETE", "GET", "PUT"),
    "/hicache/storage-backend/clear": POST,
    "/init_weights_send_group_for_remote_instance": POST,
    "/init_weights_update_group": POST,
    # In a router that the middleware of 0.5.23 does not check: the clients' key would open it.
    "/is_scaling_elastic_ep": GET,
    "/list_external_corpora": GET,
    "/load_lora_adapter": POST,
    "/load_lora_adapter_from_tensors": POST,
    "/pause_generation": POST,
    "/pd_role_switch": POST,
    "/release_memory_occupation": BOTH,
    "/remote_instance_transfer_engine_info": GET,
    "/remove_external_corpus": POST,
    "/resume_memory_occupation": BOTH,
    "/scale_elastic_ep": POST,
    "/send_weights_to_remote_instance": POST,
    "/set_internal_state": PUT,
    "/set_trace_level": BOTH,
    "/slow_down": BOTH,
    "/start_expert_distribution_record": BOTH,
    "/start_profile": BOTH,
    "/stop_expert_distribution_record": BOTH,
    "/stop_profile": BOTH,
    "/unload_lora_adapter": POST,
    "/update_weight_version": POST,
    "/update_weights_from_disk": POST,
    "/update_weights_from_distributed": POST,
    "/update_weights_from_ipc": POST,
    "/update_weights_from_tensor": POST,
    "/weights_checker": BOTH,
}
CLOSED: dict[str, tuple[str, ...]] = {
    # No MiniMax model processes audio. The second is a WebSocket, which no key check of the engine covers.
    "/v1/audio/transcriptions": POST,
    "/v1/realtime": ("WEBSOCKET",),
    # The engine's own API documentation, with pages that load scripts from elsewhere.
    "/docs": GET,
    "/docs/oauth2-redirect": GET,
    "/openapi.json": GET,
    "/redoc": GET,
}

TABLE = {Access.OPEN: OPEN, Access.CLIENTS: CLIENTS, Access.MANAGERS: MANAGERS}

SHOWS_KEYS = frozenset({"/server_info", "/get_server_info"})
"""Paths whose answer contains the launch arguments, including keys (read in 0.5.23, http_server.py)."""


def _pattern(path: str) -> re.Pattern[str]:
    """Compile a path of the table to what the engine's router matches."""
    parts = re.split(r"\{(\w+(?::path)?)\}", path)
    words = [
        (".+" if part.endswith(":path") else "[^/]+") if number % 2 else re.escape(part)
        for number, part in enumerate(parts)
    ]
    return re.compile("".join(words), re.DOTALL)


_FIXED = {
    path: (access, ways) for access, paths in TABLE.items() for path, ways in paths.items() if "{" not in path
}
# Longest first: a response's own path before a catch-all.
_PATTERNS = [
    (_pattern(path), (access, ways))
    for access, paths in TABLE.items()
    for path, ways in sorted(paths.items(), key=lambda one: -len(one[0]))
    if "{" in path
]


def access_to(path: str) -> tuple[Access, frozenset[str]]:
    """Return who may use a path, and by which methods; HEAD wherever GET is allowed."""
    found = _FIXED.get(path) or next((one for pattern, one in _PATTERNS if pattern.fullmatch(path)), None)
    if found is None:
        return Access.CLOSED, frozenset()
    access, ways = found
    return access, frozenset(ways) | ({"HEAD"} if "GET" in ways else set())
