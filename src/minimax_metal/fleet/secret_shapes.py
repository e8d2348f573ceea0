"""What secrets look like in texts: names before a value, headers, URLs, and shapes of known makes.

Every pattern is linear in time: each repetition is bounded, and none can match the same characters in two ways.
"""

from __future__ import annotations

import re
from typing import Final

MASK: Final = "***"

_WORD: Final = (
    r"(?:api[-_ ]?key|admin[-_]?key|access[-_]?key(?:[-_]?id)?|secret[-_]?key|private[-_]?key|account[-_]?key|"
    r"subscription[-_]?key|auth[-_]?pass|auth[-_]?token|security[-_]?token|token|secret|passwor[dt]|(?<!no)passwd|"
    r"passphrase|credentials?|pwd|virtual[-_]?auth|requirepass|masterauth)"
)
_NAME: Final = rf"(?:{_WORD}(?<!token)s?|token)"
_NOTHING: Final = r"(?!(?:None|null|nil|true|false|undefined|\*\*\*|[\d.]{1,6})(?:[\s\"',;)}\]]|$)|[\"']{2})"
_VALUE: Final = (
    r"(?:\\?\"(?:[^\"\\\n]|\\[^\"\n]){1,8192}\\?\"?|\\?'(?:[^'\\\n]|\\[^'\n]){1,8192}\\?'?|"
    r"[^\s\"',;&<>(){}\[\]]{3,8192})"
)
_PLAIN: Final = r"[^\s\"',;&<>(){}\[\]]{3,8192}"


def _masking(pattern: str, flags: int = re.IGNORECASE) -> re.Pattern[str]:
    return re.compile(pattern, flags)


PATTERNS: Final[tuple[re.Pattern[str], ...]] = (
    # Keys as blocks of text, whole ones and those that were cut.
    _masking(
        r"()-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
        r".{0,65536}?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)",
        re.DOTALL,
    ),
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
    _masking(rf"({_NAME}(?:\\?[\"']?[ \t]{{0,8}}(?::=|=>|=)|\\?[\"'][ \t]{{0,8}}:)[ \t]{{0,8}}){_NOTHING}{_VALUE}"),
    # NAME: VALUE, where the value is quoted, is all of the line or has a digit: else it is a sentence
    _masking(
        rf"({_NAME}[ \t]{{0,8}}:[ \t]{{0,8}}(?:!!?\w{{1,16}}[ \t]{{1,4}})?){_NOTHING}"
        rf"(?:(?=\\?[\"']){_VALUE}|{_PLAIN}(?=[ \t]{{0,8}}(?:$|[\r\n,}}\]\"'&;]))|(?=[^\s\d]{{0,512}}\d){_PLAIN})"
    ),
    # --name VALUE, also as two words of a list, and configuration files that part by space
    _masking(rf"(--?[\w-]{{0,64}}?{_NAME}\\?[\"']?,?[ \t]{{1,8}}){_NOTHING}{_VALUE}"),
    _masking(rf"(\b(?:auth_pass|requirepass|masterauth|machine\s{{1,4}}\S{{1,255}}\s{{1,4}}login\s{{1,4}}\S{{1,255}}\s{{1,4}}password|login\s{{1,4}}\S{{1,255}}\s{{1,4}}password)[ \t]{{1,8}}){_NOTHING}[^\s\"']{{1,8192}}"),
    _masking(r"((?:^|\s)(?:-u|--user|--proxy-user)[ =]{1,4}[\"']?[^\s:\"']{1,255}:)[^\s\"']{1,1024}"),
    # URLs: user and password, a token in the user's place, signatures
    _masking(r"(://[^/\s:@\"']{0,255}:)[^/\s@\"']{1,1024}(?=@)"),
    _masking(r"(://)[^/\s:@\"']{16,1024}(?=@)"),
    _masking(
        r"([?&](?:key|sig|signature|auth|code|policy|x-amz-(?:signature|credential|security-token)|"
        r"x-goog-(?:signature|credential))=)[^\s&\"'#]{3,8192}"
    ),
    # Shapes of known makes
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
    r"(?:^|_)(?:api_?key|admin_?key|access_?key|secret_?key|private_?key|account_?key|token|secret|password|passwort|"
    r"passwd|passphrase|pass|pwd|credential|virtual_?auth|auth_?key|authorization|cookie|worker_key|client_key)s?$"
)


def is_secret_name(name: str) -> bool:
    """Return whether a variable, an option or a key of that name holds a secret; ``apiKey`` as ``api-key``."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name[:200]).replace("-", "_").replace(".", "_")
    return _SECRET_NAME.search(split.casefold()) is not None


def without_secrets(text: str) -> str:
    """Return a text in which everything that looks like a secret is masked."""
    for pattern in PATTERNS:
        text = pattern.sub(lambda found: found.group(1) + MASK, text)
    return text
