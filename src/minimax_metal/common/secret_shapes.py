"""Patterns of secrets in texts: names before a value, headers, URLs, and known token formats.

Every pattern is linear in time: each repetition is bounded, and none can match the same characters in two
ways.
"""

from __future__ import annotations

import re
from typing import Final

MASK: Final = "***"

_WORD: Final = (
    r"(?:api[-_ ]?key|admin[-_]?key|access[-_]?key(?:[-_]?id)?|secret[-_]?key|private[-_]?key|account[-_]?key|"
    r"subscription[-_]?key|(?:encryption|signing|license|master|shared|client|worker)[-_]?key|psk|"
    r"auth[-_]?pass|auth[-_]?token|security[-_]?token|token|secret|passwor[dt]|(?<!no)passwd|"
    r"passphrase|sshpass|(?<=[-_])pass|(?<![A-Za-z])pass(?=[ \t]{0,8}=)|(?<![A-Za-z])(?:pw|jwt)(?=[ \t]{0,8}=)|"
    r"credentials?|pwd|virtual[-_]?auth|requirepass|masterauth)"
)
_NAME: Final = rf"(?:{_WORD}(?<!token)s?|token)"
_NOTHING: Final = r"(?!(?:None|null|nil|true|false|undefined|\*\*\*|[\d.]{1,6})(?:[\s\"',;)}\]]|$)|[\"']{2})"
_VALUE: Final = (
    r"(?:(?:&quot;|&#\d{2};|[ubrUBR]{1,2}(?=[\"'])){0,1})(?:\\?\"(?:[^\"\\\n]|\\[^\"\n]){1,8192}\\?\"?|\\?'(?:[^'\\\n]|\\[^'\n]){1,8192}\\?'?|"
    r"[^\s\"',;&<>(){}\[\]]{3,8192})"
)
_PLAIN: Final = r"[^\s\"',;&<>(){}\[\]]{3,8192}"


def _masking(pattern: str, flags: int = re.IGNORECASE) -> re.Pattern[str]:
    return re.compile(pattern, flags)


PATTERNS: Final[tuple[re.Pattern[str], ...]] = (
    # PEM key blocks, complete or cut off. A new beginning ends the previous block, so the same characters are
    # not read once for each of a thousand beginnings.
    _masking(
        r"()-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
        r"(?:(?!-----BEGIN ).){0,65536}?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z|(?=-----BEGIN ))",
        re.DOTALL,
    ),
    _masking(r"()-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----[A-Za-z0-9+/=\s\\]{0,65536}", 0),
    # Headers: to the end of the line, or of the quoted text.
    _masking(
        r"((?:proxy-)?authorization\\?[\"']?\s{0,4}[:=]\s{0,4}\\?[\"']?"
        r"(?:(?:basic|bearer|token|apikey|digest|negotiate)\s{1,4})?)(?!\*\*\*)[^\n\"'\\]{3,8192}"
    ),
    _masking(r"(\b(?:set-)?cookie\\?[\"']?\s{0,4}:\s{0,4}\\?[\"']?)(?!\*\*\*)[^\n\"'\\]{3,8192}"),
    _masking(r"(\b(?:bearer|basic)[ \t]{1,4})(?=[^\s]{0,512}[\d=+/_.-])[A-Za-z0-9._~+/=-]{8,8192}"),
    # YAML blocks: NAME: | and the lines below it.
    _masking(rf"({_NAME}[\"']?[ \t]{{0,4}}:[ \t]{{0,4}}[|>][+\-\d]{{0,3}}[ \t]{{0,4}}\n)(?:[ \t][^\n]{{0,8192}}(?:\n|\Z)){{1,80}}"),
    # NAME=VALUE, NAME := VALUE, 'NAME' => VALUE, "NAME": VALUE
    _masking(rf"({_NAME}(?:\\?[\"']?[ \t]{{0,8}}(?::=|=>|->|=|%3[dD])|\\?[\"'][ \t]{{0,8}}:)[ \t]{{0,8}}){_NOTHING}{_VALUE}"),
    # NAME: VALUE, if the value is quoted, fills the line or has a digit: otherwise it is a sentence
    _masking(
        rf"({_NAME}[ \t]{{0,8}}:[ \t]{{0,8}}(?:!!?\w{{1,16}}[ \t]{{1,4}})?){_NOTHING}"
        rf"(?:(?=\\?[\"']){_VALUE}|{_PLAIN}(?=[ \t]{{0,8}}(?:$|[\r\n,}}\]\"'&;]))|(?=[^\s\d]{{0,512}}\d){_PLAIN})"
    ),
    # Combined into one, because each search for a name takes time: NAME: with the value alone on the next
    # line, indented; lists, NAME: [VALUE, VALUE], except of numbers; NAME and VALUE in a table; NAME VALUE,
    # if it looks like one.
    _masking(
        rf"({_NAME}(?:(?P<below>[\"']?:[ \t]{{0,8}}\r?\n[ \t]{{1,80}})|(?P<list>\\?[\"']?[ \t]{{0,8}}[:=][ \t]{{0,8}}\[)|"
        rf"(?P<table>\t{{1,8}})|[ \t]{{1,8}}))"
        rf"(?(below){_NOTHING}(?:(?=[\"']){_VALUE}|[^\s\"',;&<>(){{}}\[\]:]{{3,8192}})(?=[ \t\r]{{0,8}}(?:\n|\Z))|"
        rf"(?(list)(?![\s\d,.-]{{0,512}}\])[^\]]{{1,8192}}|(?(table){_NOTHING}{_PLAIN}|"
        rf"(?=[^\s\d]{{0,512}}\d)(?=[^\sA-Za-z]{{0,512}}[A-Za-z])[^\s\"',;:&<>(){{}}\[\]]{{12,8192}}(?=\s|\Z))))"
    ),
    # <name>VALUE</name>
    _masking(rf"(<{_NAME}>)[^<]{{1,8192}}"),
    _masking(r"(\bsshpass[ \t]{1,8}-p[ \t]{0,8})[^\s]{1,8192}"),
    # --name VALUE, also as two list items, and configuration files separated by spaces
    _masking(rf"((?<![\w-])--?[\w-]{{0,64}}?{_NAME}\\?[\"']?,?[ \t]{{1,8}}){_NOTHING}{_VALUE}"),
    _masking(rf"(\b(?:auth_pass|requirepass|masterauth|machine\s{{1,4}}\S{{1,255}}\s{{1,4}}login\s{{1,4}}\S{{1,255}}\s{{1,4}}password|login\s{{1,4}}\S{{1,255}}\s{{1,4}}password)[ \t]{{1,8}}){_NOTHING}[^\s\"']{{1,8192}}"),
    _masking(r"((?:^|\s)(?:-u|--user|--proxy-user)[ =]{1,4}[\"']?[^\s:\"']{1,255}:)[^\s\"']{1,1024}"),
    # URLs: user and password, a token as the user, signatures
    _masking(r"(://[^/\s:@\"']{0,255}:)[^/\s@\"']{1,1024}(?=@)"),
    _masking(r"(://)[^/\s:@\"']{16,1024}(?=@)"),
    _masking(
        r"([?&](?:key|sig|signature|auth|code|policy|x-amz-(?:signature|credential|security-token)|"
        r"x-goog-(?:signature|credential))=)[^\s&\"'#]{3,8192}"
    ),
    # Known token formats
    _masking(
        r"()\b(?:hf_[A-Za-z0-9]{16,256}|ms-[0-9a-f]{8}-[0-9a-f-]{20,40}|gh[pousr]_[A-Za-z0-9]{20,256}|"
        r"github_pat_\w{20,256}|glpat-[\w-]{16,256}|(?:AKIA|ASIA)[A-Z0-9]{16}\b|AIza[\w-]{30,64}|"
        r"ya29\.[\w-]{20,2048}|xox[abeprs]-[\w-]{10,256}|sk-[\w-]{16,256}|nvapi-[\w-]{20,256}|"
        r"npm_[A-Za-z0-9]{30,64}|pypi-[\w-]{30,512}|AGE-SECRET-KEY-1[A-Z0-9]{20,128}|"
        r"eyJ[\w-]{8,8192}\.eyJ[\w-]{8,8192}\.[\w-]{8,8192})",
        0,
    ),
)  # fmt: skip

_SECRET_NAME: Final = re.compile(
    r"(?:(?:^|_)(?:api_?key|admin_?key|access_?key|secret_?key|private_?key|account_?key|token|secret|pass|pwd|"
    r"credential|virtual_?auth|auth_?key|authorization|cookie|worker_key|client_key|jwt|psk|"
    r"(?:encryption|signing|license|master|shared)_?key)|password|passwort|passwd|passphrase|sshpass)s?"
    r"(?:_(?:\d{1,3}|value|hash|base|old|new|previous|primary|secondary))?$"
)


_ANY_NAME: Final = re.compile(_NAME, re.IGNORECASE)
"""A text without any such name is not searched for each form."""


def is_secret_name(name: str) -> bool:
    """Return whether a variable, option or key of that name holds a secret; ``apiKey`` counts as ``api-key``."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name[:200]).replace("-", "_").replace(".", "_")
    return _SECRET_NAME.search(split.casefold()) is not None


def without_secrets(text: str) -> str:
    """Return a text with everything masked that looks like a secret."""
    named = _ANY_NAME.search(text) is not None
    for pattern in PATTERNS:
        if named or _NAME not in pattern.pattern:
            text = pattern.sub(lambda found: found.group(1) + MASK, text)
    return text
