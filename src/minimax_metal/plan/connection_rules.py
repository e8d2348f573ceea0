"""Rules for messages of Ansible, OpenSSH, sudo, Python and shells: pattern, cause, remedy.

Sources: OpenSSH portable 9.x (``sshconnect.c``, ``sshconnect2.c``, ``readconf.c``, ``authfile.c``,
``misc.c``, ``channels.c``), sudo 1.9 (``plugins/sudoers/logging.c``, ``check.c``; ``src/tgetpass.c``),
sudo-rs 0.2, ansible-core 2.19 (``plugins/connection/ssh.py``, ``plugins/become/sudo.py``,
``plugins/action/__init__.py``, ``cli/__init__.py``, ``parsing/vault/__init__.py``), and the reports that the
tests name.

A name or a path taken from a message may end up in a command that a user types, so the patterns match
harmless characters only.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Final

DEFAULTS: Final = {
    "host": "HOST", "name": "HOST", "user": "USER", "file": "FILE", "port": "22", "why": "no reason given",
    "seconds": "some", "version": "an old version", "methods": "publickey", "python": "/usr/bin/python3",
    "path": "the directory for temporary files", "what": "it", "variable": "a variable", "login": "USER",
}  # fmt: skip
"""Text for a value that the message does not contain."""

_NAME: Final = r"[\w.:%-]{1,255}"
_PATH: Final = r"[\w./~+@:=%-]{1,400}"


@dataclass(frozen=True)
class Rule:
    """One cause."""

    code: str
    written: str
    """The pattern, in which ``<name>`` and ``<file>`` stand for a host's name and a path."""
    found: str
    needed: str
    remedy: str

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Compiled on first use: compiling all takes 20 ms, and a plan without errors needs none."""
        seen: Counter[str] = Counter()

        def named(token: re.Match[str]) -> str:
            # A group name occurs only once in a pattern: name, name2, name3 ... all fill {name}.
            word = token[1]
            seen[word] += 1
            return f"(?P<{word}{seen[word] if seen[word] > 1 else ''}>{_NAME if word == 'name' else _PATH})"

        words = re.sub(r"(?<!\?P)<(name|file)>", named, self.written)
        return re.compile(words, re.IGNORECASE | re.MULTILINE)


_rule: Final = Rule


_VAULT_REMEDY: Final = (
    "pass it with --vault-password-file FILE (or --ask-vault-pass), or set ANSIBLE_VAULT_PASSWORD_FILE"
)

_CONTROLLER: Final = (
    _rule("vault-password", r"input is not vault encrypted data|unhexlify|Vault (?:format|envelope)|invalid vault ?text|Odd-length string",
          "a damaged encrypted value (ansible-vault)", "a complete one, as ansible-vault wrote it",
          "encrypt it again: ansible-vault encrypt_string (its lines must keep their indentation)"),
    _rule("controller-user", r"No user exists for uid (?P<version>\d{1,10})|You don't exist, go away|getpwuid\(\): uid not found",
          "a user on this machine without an entry in /etc/passwd (a container's uid)", "a user that ssh can look up",
          "run it as a user of this machine, or add the uid to /etc/passwd"),
    _rule("vault-password", r"no vault secrets found|A vault password must be specified|no vault secrets (?:to|were) (?!found that)",
          "encrypted variables (ansible-vault) and no vault password", "the vault's password", _VAULT_REMEDY),
    _rule("vault-password", r"Problem running vault password script|[Vv]ault password (?:client )?script <file>[^\n]{0,200}returned (?:non-zero|an error)(?P<why>[^\n]{0,200})",
          "a vault password script that fails ({file}{why})", "the vault's password",
          "run {file} by hand: it must print the password and exit with status 0"),
    _rule("vault-password", r"(?:Decryption failed|no vault secrets were found that could decrypt)[^\n]{0,120}?(?:\)\.? (?:on|for|in)|file) '?<file>",
          "a vault password that does not open {file}", "the password it was encrypted with",
          f"{_VAULT_REMEDY}; test a password with ansible-vault view {{file}}; with several vaults "
              "give each its --vault-id ID@FILE"),
    _rule("vault-password", r"Decryption failed|no vault secrets were found that could decrypt|HMAC verification failed",
          "a vault password that does not open the encrypted variables", "the password they were encrypted with",
          f"{_VAULT_REMEDY}; test a password with ansible-vault view FILE"),
    _rule("vault-password", r"vault password (?:file|script) (?P<file2>[^\n]{1,300}?) (?:was not found|could not be)|Could not read vault password file <file>",
          "no vault password file {file}", "a file that holds the vault's password",
          "fix the path in --vault-password-file or ANSIBLE_VAULT_PASSWORD_FILE"),
    _rule("vault-password", r"Invalid vault password was provided|Problem running vault password script|Vault password (?:client )?script[^\n]{0,300}returned (?:non-zero|an error)",
          "a vault password script or file that gives no password", "the vault's password",
          "run that script by hand, or check that the file is not empty (a script must be executable, a plain file must not be)"),
    _rule("controller-locale", r"locale encoding to be UTF-8(?:; Detected (?P<why>[\w .()-]{1,40}))?|could not initialize the preferred locale|unsupported locale setting",
          "a controller whose locale is not UTF-8 ({why})", "a UTF-8 locale where Ansible runs",
          "run export LC_ALL=C.UTF-8, then the same command again"),
    _rule("controller-terminal", r"Ansible requires blocking IO",
          "standard input or output in non-blocking mode", "a plain terminal or pipe", "run it again with </dev/null 2>&1 | cat"),
    _rule("controller-sshpass", r"must install the sshpass program|requires? (?:the )?sshpass|sshpass: (?:command )?not found|No such file or directory: b?'sshpass'",
          "an SSH password in use and no sshpass on this machine", "sshpass, or an SSH key",
          "run apt-get install sshpass here, or install a key on the host: ssh-copy-id {user}@{host}"),
    _rule("controller-ssh", r"Unable to execute ssh command line on a controller|No such file or directory: b?'(?:/usr/bin/)?ssh'|(?:^|[ :])ssh: (?:command )?not found",
          "no program ssh on this machine", "the OpenSSH client", "run apt-get install openssh-client here"),
    _rule("controller-control-path", r"too long for Unix domain socket|unix_listener: (?:path )?\"?[^\n]{1,400}too long|ControlPath too long",
          "a path of SSH's control socket that is too long (Unix sockets allow 107 characters)", "a shorter path",
          "run export ANSIBLE_SSH_CONTROL_PATH_DIR=/tmp/.ssh-$USER, then the same command again"),
    _rule("controller-control-path", r"Cannot write to ControlPath(?: <file>)?|unix_listener: cannot bind[^\n]{0,300}|muxserver_listen: [^\n]{1,300}",
          "no writable directory for SSH's control socket ({file})", "a directory that this user can write to",
          "fix its owner (often root, after a run with sudo): chown -R $USER ~/.ansible, or set "
              "ANSIBLE_SSH_CONTROL_PATH_DIR"),
    _rule("controller-ssh-options", r"(?P<file>[\w./~+@=%-]{0,200}(?:\.ssh/|ssh_config)[\w./~+@=%-]{0,200}):? line (?P<version>[1-9]\d{0,4}): (?P<what>[^\n]{1,120})",
          "an SSH configuration that this machine's ssh can't read ({file} line {version}: {what})", "options that this ssh supports",
          "fix line {version} of {file}"),
    _rule("controller-ssh-options", r"command-line:? line 0: (?P<what>[^\n]{1,200})",
          "an SSH option that this machine's ssh does not know ({what})", "options that this ssh supports",
          "fix ansible_ssh_common_args, ansible_ssh_extra_args or ssh_args in ansible.cfg"),
    _rule("controller-ssh-options", r"<file>: terminating, \d+ bad configuration options|Bad configuration option: [\w-]{1,60}|unknown option -- \w",
          "SSH options that this machine's ssh does not know", "options that this ssh supports",
          "fix ~/.ssh/config, ansible_ssh_common_args or ansible_ssh_extra_args"),
    _rule("controller-ssh-options", r"Bad owner or permissions on <file>",
          "{file} that other users can write to, which ssh refuses", "an SSH configuration that only this user can write to",
          "run chmod 600 {file} (and chown it to yourself)"),
    _rule("controller-module", r"couldn't resolve module/action '?(?P<what>[\w.]{1,80})|The module (?P<name>metal_\w{1,40}) was not found|requested module '?(?P<what2>metal_\w{1,40})'? was not found|Could not (?:find or )?load filter|No filter named '(?P<variable>metal_\w{1,60})'",
          "an Ansible that does not know this project's own modules", "the project's ansible.cfg",
          "run from the project's directory, or run export ANSIBLE_CONFIG=DIRECTORY/ansible.cfg first"),
    _rule("controller-files", r"(?<!open )^(?!sudo)[^\n]{0,200}?Too many open files(?! in system)|Unable to (?:fork|create) (?:new )?process|fork: Resource temporarily unavailable(?=[\s\S]{0,200}ansible-playbook)",
          "too many open files or processes on this machine", "a file handle and process for each connection",
          "run ulimit -n 8192, or connect to fewer hosts at once: --forks 10"),
)  # fmt: skip

_SSH: Final = (
    _rule("ssh-host-key", r"Offending (?:\w+ )?key (?:for IP )?in <file>:(?P<version>\d+)[\s\S]{0,600}?Host key for \[?<name>\]?(?::(?P<port>\d{1,5}))? has changed",
          "a host key that differs from the known one for {name} ({file} line {version})", "the known key, or a reinstalled host",
          "if you know why it changed (a reinstallation), run ssh-keygen -f {file} -R {name} and "
              "connect once with ssh; otherwise find out which machine answers there"),
    _rule("ssh-host-key", r"Offending (?:\w+ )?key (?:for IP )?in <file>:(?P<version>\d+)",
          "a host key that differs from the known one for {host} ({file} line {version})", "the known key, or a reinstalled host",
          "if you know why it changed (a reinstallation), run ssh-keygen -f {file} -R {host} and "
              "connect once with ssh; otherwise find out which machine answers there"),
    _rule("ssh-host-key", r"The \w{2,10} host key for \[?<name>\]?(?::\d{1,5})? has changed",
          "a host key that differs from the known one for {name}", "the known key, or a reinstalled host",
          "if you know why it changed (a reinstallation), run ssh-keygen -R {name} and connect once "
              "with ssh; otherwise find out which machine answers there"),
    _rule("ssh-host-key", r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key for \[?<name>\]?(?::\d{1,5})? has changed|POSSIBLE DNS SPOOFING|BadHostKeyException|host key mismatch|does not match expected",
          "a host key that differs from the known one for {name}", "the known key, or a reinstalled host",
          "if you know why it changed (a reinstallation), run ssh-keygen -R {name} and connect once "
              "with ssh; otherwise find out which machine answers there"),
    _rule("ssh-host-key", r"REVOKED HOST KEY DETECTED|host key[^\n]{0,80}is marked as revoked",
          "a host key that is marked as revoked in known_hosts", "a key that is trusted", "give the host a new key; don't connect before that"),
    _rule("ssh-host-key", r"no hostkey alg|Unable to load host key",
          "an SSH server without a host key that both sides support", "a host key", "as root on the host run ssh-keygen -A and systemctl restart ssh"),
    _rule("ssh-host-key", r"no matching (?P<what>host key type|key exchange method|cipher|MAC)s? found(?:\. Their offer: (?P<why>[\w@.,+-]{1,200}))?",
          "no {what} that both sides support (the host offers {why})", "a common algorithm",
          "update the SSH server on the host, or allow its algorithm: -o HostKeyAlgorithms=+ssh-rsa "
              "in ansible_ssh_common_args"),
    _rule("ssh-host-key", r"No (?:[\w-]{1,30} )?host key is known for \[?<name>|authenticity of host '\[?<name>[^\n]{0,200}can't be established|Host key verification failed|"
          r"host key checking is enabled|Server '?\[?[\w.:-]{1,255}\]?'? not found in known_hosts|Host key is not trusted",
          "a host key of {name} that nobody has confirmed yet", "a known host key",
          "connect once and compare the fingerprint: ssh {name}; for many hosts ssh-keyscan -H {name} >> ~/.ssh/known_hosts"),
    _rule("ssh-login", r"Permissions 0?\d{3} for ['\"]{0,2}<file>['\"]{0,2} are too open|bad permissions: (?:ignore key: )?<file>",
          "a private key that other users can read ({file}), which ssh refuses", "a key file with mode 0600", "run chmod 600 {file}"),
    _rule("ssh-login", r"UNPROTECTED PRIVATE KEY FILE|are too open\.",
          "a private key that other users can read, which ssh refuses", "a key file with mode 0600", "run chmod 600 FILE for the file in ansible_ssh_private_key_file"),
    _rule("ssh-login", r"Load key \"?<file>\"?: (?P<why>[\w ./,-]{1,80})|(?P<why2>(?:incorrect|bad) passphrase)",
          "a private key that can't be used ({file}: {why})", "a key that ssh can read",
          "try ssh-keygen -y -f {file}; if the key has a passphrase, add it to the agent first: "
              "ssh-add {file}"),
    _rule("ssh-login", r"(?:no such identity: <file>: (?:No such file|Permission denied)|Identity file <file> not accessible)",
          "no private key {file}", "the key that the inventory names", "fix ansible_ssh_private_key_file, or --private-key"),
    _rule("ssh-login", r"agent refused operation|Could not open a connection to your authentication agent|communication with agent failed|agent has no identities",
          "an SSH agent that does not sign", "a key that the agent can use",
          "run ssh-add -l, then ssh-add KEY (a key on a hardware token needs its touch or PIN)"),
    _rule("ssh-login", r"Enter passphrase for key '?<file>",
          "a private key with a passphrase ({file}), which can't be entered here", "a key in the agent", "run ssh-add {file}, then the command again"),
    _rule("ssh-login", r"(?P<user>[\w.+-]{1,64})@(?P<name>[\w.:%-]{1,255})'s password:|^password:",
          "a host that asks {user} for a password", "a key, or the password", "run ssh-copy-id {user}@{name}, or pass --ask-pass (-k)"),
    _rule("ssh-login", r"Access denied for user|Connection closed by authenticating user|not allowed because not listed in AllowUsers|Account locked",
          "a user that the host's SSH server or PAM refuses", "a user that may log in", "on the host look at journalctl -u ssh: AllowUsers, AllowGroups, access.conf"),
    _rule("ssh-login", r"(?:exec|subsystem) request failed on channel|This service allows sftp connections only|ForceCommand",
          "an SSH server that runs no commands for this user", "a user with a plain shell", "on the host look at ForceCommand and restrict in sshd_config and authorized_keys"),
    _rule("ssh-login", r"no mutual signature (?:supported|algorithm)",
          "a key type that the host no longer accepts (ssh-rsa with SHA-1)", "a key both sides accept",
          "make a new one: ssh-keygen -t ed25519, then ssh-copy-id {user}@{host}"),
    _rule("ssh-login", r"[Vv]erification code|[Tt]wo-factor|[Ee]nter a passcode|One-time password|Duo (?:two|Security)|\bOTP\b",
          "a login that asks for a second factor, which Ansible can't supply", "a login without one for Ansible's user",
          "allow this user's key alone (Match User {user} and AuthenticationMethods publickey in "
              "sshd_config on the host), or log in once by hand and share that connection "
              "(ControlPersist)"),
    _rule("ssh-login", r"Certificate invalid: (?P<why>[\w ,.-]{1,80})",
          "an SSH certificate that the host refuses ({why})", "a certificate that is valid", "get a new one from your SSH CA; ssh-keygen -L -f FILE-cert.pub shows the one in use"),
    _rule("ssh-login", r"Too many authentication failures",
          "more keys offered than the host allows attempts (the agent holds many)", "the right key first",
          "set ansible_ssh_private_key_file and -o IdentitiesOnly=yes in ansible_ssh_common_args, or "
              "run ssh-add -D"),
    _rule("ssh-login", r"Please login as the user \"?(?P<login>[\w.-]{1,32})\"? rather than the user \"?(?P<user>[\w.-]{1,32})",
          "a host that does not accept logins as {user}", "the user {login}", "set ansible_user: {login} in the inventory (or -u {login})"),
    _rule("ssh-login", r"(?:password (?:has expired|change required)|required to change your password|Password expired|account has expired|Your account (?:has been|is) (?:locked|expired)|Authentication token is no longer valid)",
          "an account whose password has expired, or that is locked", "an account that may log in",
          "log in once by hand (ssh {user}@{host}) and change the password, or run chage -M -1 "
              "{user} on the host"),
    _rule("ssh-login", r"account is currently not available|shell [\w./-]{1,80} is not executable|/(?:nologin|bin/false)\b",
          "a user without a login shell", "a user with a login shell", "set ansible_user to another, or give it a shell: chsh -s /bin/bash {user}"),
    _rule("unreachable", r"System is going down",
          "a host that is shutting down and refuses logins", "a host that is up",
          "wait until it has rebooted and run the command again; if /run/nologin is left over on the "
              "host, remove it"),
    _rule("unreachable", r"System is (?:booting up|going down)|pam_nologin|Unprivileged users are not permitted to log in yet",
          "a host that is booting or shutting down and refuses logins", "a host that is up",
          "wait a minute and run the command again; if /run/nologin is left over on the host, remove it"),
    _rule("ssh-login", r"Invalid/incorrect (?:\w+ )?password|(?:Authentication failed|Auth fail)\.?(?![\w])(?! ?, try)|Permission denied, please try again(?![\s\S]{0,400}Permission denied \()",
          "a login that the host refuses (wrong user, password or key)", "a login that works",
          "try ssh {user}@{host}; set ansible_user and the key (ssh-copy-id {user}@{host}), or enter "
              "the password with --ask-pass"),
    _rule("ssh-login", r"(?:(?P<user>[\w.+-]{1,64})@(?P<name>[\w.:%-]{1,255}): )?Permission denied \((?P<methods>[\w,.@-]{1,200})\)",
          "a login as {user} that the host refuses (it accepts {methods})", "a key or password that the host accepts",
          "run ssh-copy-id {user}@{name}, or set ansible_user and ansible_ssh_private_key_file; "
              "to enter a password, use --ask-pass"),
    _rule("ssh-login", r"No supported authentication methods available|no authentication methods available|Received disconnect from [^\n]{1,200}(?:auth|preauth)",
          "no authentication method that both sides support", "a key or password that the host accepts",
          "run ssh-copy-id {user}@{host}, or set ansible_user and ansible_ssh_private_key_file"),
)  # fmt: skip

_PROXY: Final = (
    _rule("ssh-proxy", r"Could not resolve hostname <name>: [^\n]{1,120}[\s\S]{0,400}?(?:UNKNOWN port|(?:kex|ssh)_exchange_identification)",
          "a jump host {name} whose name can't be resolved here", "a jump host that this machine can reach",
          "fix the name in ProxyJump or ProxyCommand (~/.ssh/config, ansible_ssh_common_args)"),
    _rule("ssh-proxy", r"connect to host <name> port (?P<port>\d{1,5}): (?P<why>[^\n]{1,80})[\s\S]{0,400}?(?:UNKNOWN port|(?:kex|ssh)_exchange_identification)",
          "a jump host {name} that does not answer on port {port} ({why})", "a jump host that this machine can reach",
          "try ssh {name} alone; fix ProxyJump or ProxyCommand (~/.ssh/config, ansible_ssh_common_args)"),
    _rule("ssh-proxy", r"administratively prohibited",
          "a jump host that forwards no connections", "AllowTcpForwarding on the jump host",
          "set AllowTcpForwarding yes in its sshd_config, or use another jump host"),
    _rule("ssh-proxy", r"channel \d+: open failed: (?:connect failed: )?(?P<why>[^\n]{1,120})|stdio forwarding failed",
          "a jump host that can't reach the host ({why})", "a connection from the jump host to the host",
          "log in to the jump host and try ssh {host} there"),
    _rule("ssh-proxy", r"Proxy could not open connect?n?ection|proxy: [^\n]{0,120}(?:refused|denied|failed)|HTTP/1\.[01] (?:403|407|50\d)|(?:exec: |command not found: ?|: )?\b(?P<what>nc|ncat|netcat|corkscrew|connect-proxy|cloudflared|socat)\b: (?:command )?(?:not found|No such file)|command not found: (?:nc|ncat|netcat|corkscrew|connect-proxy|cloudflared|socat)",
          "a ProxyCommand that fails ({what} is not installed, or the proxy refuses)", "a proxy that opens the connection",
          "run the ProxyCommand by hand; install the program it calls, or use ProxyJump"),
    _rule("ssh-proxy", r"UNKNOWN port 65535|UNKNOWN\) port -?\d+|ProxyCommand (?:failed|exited)|ProxyJump",
          "a jump host or ProxyCommand that ended before the host answered", "a connection through it",
          "try ssh -v {host}: it shows which hop fails; fix ProxyJump or ProxyCommand"),
)  # fmt: skip

_SUDO: Final = (
    _rule("sudo-broken", r"no new privileges|nosuid",
          "a sudo that can't become root there (no_new_privs, or a file system mounted nosuid: a "
              "container's login)", "a login from which sudo works",
          "set ansible_user: root, or give the host's SSH server a session without NoNewPrivileges"),
    _rule("host-resources", r"sudo: [^\n]{0,100}Too many open files in system|Too many open files in system",
          "a host that has run out of open files", "some free file handles", "on the host run cat /proc/sys/fs/file-nr; raise fs.file-max, or find the process that "
              "holds them"),
    _rule("sudo-broken", r"error in /etc/sudoers|>>> [^\n]{0,200}syntax error|sudo: [^\n]{0,120}(?:must be owned by uid 0|effective uid is not 0|no new privileges|world writable|parse error|syntax error|is owned by uid|no valid sudoers)|sudo: unable to (?:stat|open|read) /etc/sudoers[^\n]{0,80}|parse error in <file>",
          "a broken sudo on the host (its own message gives the reason)", "a sudo that works", "log in as root and run visudo -c"),
    _rule("sudo-account", r"sudo: (?:PAM account management error|account validation failure|Account or password is expired|PAM authentication error|unknown u(?:ser|id))[^\n]{0,80}|you do not exist in the passwd database",
          "a sudo that refuses the account (locked, expired or unknown)", "an account that may use sudo",
          "check it as root: chage -l {user}; passwd -S {user}"),
    _rule("sudo-denied", r"(?P<user>[\w.+\\@-]{1,64}) is not in the sudoers file|(?P<user2>[\w.+\\@-]{1,64}) (?:is not allowed to (?:execute|run)|may not run sudo)|I'm sorry (?P<user3>[\w.+-]{1,64})\. I'm afraid I can't do that|doas: Operation not permitted",
          "a user ({user}) that may not use sudo", "a user that may become root",
          "as root on the host run usermod -aG sudo {user}, or set ansible_user to a user that may"),
    _rule("sudo-tty", r"you must have a tty to run sudo|sudo: no tty present(?! and no askpass)",
          "a sudo that needs a terminal (requiretty)", "sudo without a terminal",
          "as root on the host add to /etc/sudoers.d/ansible: Defaults:{user} !requiretty"),
    _rule("sudo-password", r"Incorrect (?P<what>\w+) password|Sorry, try again|\d+ incorrect password attempt|Authentication failed, try again|incorrect authentication attempt|su: Authentication failure",
          "a wrong password for sudo", "the user's own password on that host",
          "enter it again with --ask-become-pass (-K), or fix ansible_become_password (in a vault)"),
    _rule("sudo-password", r"Missing (?P<what>\w+) password|password is required|no password was provided|terminal is required|no askpass program|interactive authentication is required|askpass helper|a tty is required|sudo: timed out reading password",
          "a sudo that needs a password", "the password, or sudo without one",
          "pass --ask-become-pass (-K), or set ansible_become_password in a vault; or as root on the "
              "host put '{user} ALL=(ALL) NOPASSWD: ALL' into /etc/sudoers.d/ansible"),
    _rule("sudo-timeout", r"Connection error waiting for privilege|Timeout exceeded while waiting for sudo",
          "a sudo that did not answer in time", "a sudo that answers promptly",
          "on the host run time sudo -n true: it often waits for DNS or LDAP (adding the host's own "
              "name to /etc/hosts helps); --timeout 60 allows more time"),
    _rule("sudo-timeout", r"Timeout \((?P<seconds>\d{1,5})s\) waiting for privilege escalation|timed? ?out waiting for (?:privilege escalation|become)|waiting for (?:a )?(?:privilege escalation|become) (?:prompt|success)",
          "a sudo that did not answer in {seconds} s", "a sudo that answers promptly",
          "on the host run time sudo -n true: it often waits for DNS or LDAP (adding the host's own "
              "name to /etc/hosts helps), or its prompt is one that Ansible does not recognize; "
              "--timeout 60 allows more time"),
    _rule("sudo-password", r"\[sudo[^\]\n]{0,200}\] password",
          "a sudo that needs a password", "the password, or sudo without one",
          "pass --ask-become-pass (-K), or set ansible_become_password in a vault"),
    _rule("sudo-missing", r"sudo: (?:command )?not found|command not found: sudo|(?:bash|sh|env|exec)[^\n]{0,40}sudo'?: No such file",
          "no sudo on the host", "sudo, or SSH as root", "install it there: apt-get install sudo; or set ansible_user: root"),
)  # fmt: skip

_PYTHON: Final = (
    _rule("python-old", r"(?:requires a minimum of (?:Python2 version [\d.]{1,8} or )?Python3? version|requires Python) (?P<what>[\d.]{1,8}\d)(?: or newer[^\n.]{0,40})?\.?(?: Current version: (?P<version>[\d.]{1,8}))?",
          "Python {version} on the host", "Python {what} or newer",
          "install a newer one there and set ansible_python_interpreter to it, or use a newer distribution"),
    _rule("python-old", r"future feature annotations is not defined|(?:AnsiballZ|ansible)[\s\S]{0,3000}SyntaxError: (?:invalid syntax|future)|SyntaxError: future feature",
          "a Python on the host that is too old for this Ansible", "Python 3.8 or newer",
          "install a newer one there and set ansible_python_interpreter to it, or take a newer distribution"),
    _rule("python-broken", r"No module named '?(?P<what>ansible\.module_utils\.six\.moves)",
          "a Python on the host that is newer than this Ansible supports", "the Ansible version of this project's lock", "run make setup here, and use .venv/bin/ansible-playbook"),
    _rule("python-broken", r"(?:ModuleNotFoundError|ImportError): No module named '?(?P<what>(?!ansible)[\w.]{1,60})|error while loading shared libraries: (?P<file>[\w.+-]{1,80})",
          "a Python on the host with a missing standard module ({what})", "a complete Python 3",
          "on the host run apt-get install --reinstall python3 libpython3-stdlib"),
    _rule("python-missing", r"module interpreter '?(?P<python>[\w./+-]{1,200})'? was not found|(?P<python2>/[\w./+-]{0,200}python[\d.]{0,6})'?: (?:not found|No such file or directory|command not found|cannot execute)|env: ['‘]?python[\d.]{0,6}['’]?: No such file|(?:^|[\s:])python3?(?:\.\d+)?: (?:command )?not found|command not found: python|No python interpreters found|^\s*python3= ",
          "no Python 3 on the host (looked for {python})", "Python 3 on the host",
          "on the host run apt-get install python3; if it is elsewhere, set ansible_python_interpreter"),
    _rule("python-broken", r"python[\d.]{0,6}: (?P<why>cannot execute binary file|Exec format error|Permission denied)",
          "a Python on the host that can't be executed ({why})", "a Python 3 that runs", "on the host run python3 -V; fix it, or set ansible_python_interpreter"),
)  # fmt: skip

_DISK: Final = (
    _rule("host-disk", r"(?:[‘'\"](?P<path>/[\w./~+-]{1,300})[’'\"]: )?(?:No space left on device|Disk quota exceeded|\[Errno (?:28|122)\])",
          "a full disk or quota on the host ({path})", "some free space (and free inodes)", "on the host run df -h; df -i, and free some space"),
    _rule("host-disk", r"(?:[‘'\"](?P<path>/[\w./~+-]{1,300})[’'\"]: )?(?:Read-only file system|\[Errno 30\])",
          "a read-only file system on the host ({path})", "a writable one",
          "on the host look at dmesg: a failing disk is remounted read-only; otherwise mount -o remount,rw"),
    _rule("host-disk", r"Input/output error|\[Errno 5\]", "a disk of the host with read errors", "a sound disk", "there look at dmesg and smartctl -a"),
    _rule("host-tmp", r"failed to map segment from shared object|(?:/\.ansible/tmp|/ansible-tmp-|ansiballz_|AnsiballZ_)[\w./=+-]{0,300}['\"]?: (?:\[?Errno 13\]? ?|cannot execute: )?Permission denied|noexec",
          "a directory for temporary files on a file system mounted noexec", "one from which programs can run",
          "set ansible_remote_tmp (and TMPDIR) to a directory elsewhere, such as /var/lib/ansible-tmp, or remount without noexec"),
    _rule("host-tmp", r"[Ff]ailed to set permissions on the temporary files|setfacl: (?:command )?not found",
          "no way to give Ansible's temporary files to another user (no setfacl)", "the package acl on the host",
          "on the host run apt-get install acl, or set ansible_remote_tmp to a file system with ACLs"),
    _rule("host-disk", r"Stale file handle|\[Errno 116\]|Transport endpoint is not connected",
          "a network or FUSE file system on the host that no longer answers (stale)", "one that answers", "there type findmnt; umount -l the dead mount and mount it again"),
    _rule("host-tmp", r"No usable temporary directory|Failed to set permissions on the temporary files|mkdir: cannot create directory [‘'\"](?P<path>/[\w./~+-]{1,300})[’'\"]: (?P<why>[\w ]{1,40})",
          "no writable directory for Ansible's temporary files on the host ({path})", "a directory that the user can write to",
          "fix the owner of that directory (often root, after an earlier run), or set "
              "ansible_remote_tmp: /tmp/.ansible-$USER"),
    _rule("host-tmp", r"Failed to create temporary directory|Authentication or permission failure",
          "no writable directory for Ansible's temporary files on the host", "a home directory that the user can write to",
          "on the host run ls -ld ~ ~/.ansible; df -h ~; fix the owner, or set ansible_remote_tmp: "
              "/tmp/.ansible-$USER"),
    _rule("host-resources", r"(?:fork|clone)[^\n]{0,60}(?:Resource temporarily unavailable|Cannot allocate memory)|MemoryError|shell request failed on channel|PTY allocation request failed|\bKilled\b",
          "a host that has run out of memory or processes", "room for one more process", "on the host run free -h; ps -e | wc -l; systemctl status user.slice"),
)  # fmt: skip

_NETWORK: Final = (
    _rule("unreachable", r"Could not resolve hostname <name>: Temporary failure in name resolution",
          "a name server that does not answer (for {name})", "a name that resolves, or an address",
          "try getent hosts {name}; fix /etc/resolv.conf here, or set ansible_host to the address"),
    _rule("unreachable", r"Could not resolve hostname <name>|(?:Name or service not known|nodename nor servname|No address associated with hostname|Non-recoverable failure in name)",
          "a name that can't be resolved ({name})", "a name that resolves, or an address",
          "fix the name in the inventory, or set ansible_host to the address"),
    _rule("unreachable", r"hostname contains invalid characters|Bad port '?(?P<port>\w{1,20})|percent_expand",
          "an address or port that ssh does not accept", "a host name or address, and a port number", "fix ansible_host and ansible_port in the inventory"),
    _rule("unreachable", r"timed out during banner exchange|banner exchange: [^\n]{0,200}(?:timed? ?out)|Timeout(?: waiting for|, while) banner|Error reading SSH protocol banner",
          "a host that accepts connections but sends nothing (overloaded, out of memory or hung)", "an SSH server that answers",
          "check its console; it may need a reboot"),
    _rule("unreachable", r"banner exchange: (?:Connection to [\w.:%-]{1,255} port (?P<port>\d{1,5}))?[^\n]{0,80}invalid format|Bad packet length|Protocol mismatch|bad SSH protocol version",
          "something other than SSH on port {port}", "an SSH server", "fix ansible_port in the inventory"),
    _rule("unreachable", r"kex_exchange_identification|ssh_exchange_identification|Connection (?:closed|reset) by [\w.:%-]{1,255} port \d|Connection reset by peer|Not allowed at this time",
          "an SSH server that closes the connection before login", "a server that allows connections from this machine",
          "on the host look at journalctl -u ssh; MaxStartups, fail2ban, hosts.deny or a firewall "
              "can do this"),
    _rule("unreachable", r"(?:connect to host <name> port (?P<port>\d{1,5}): )?(?:Connection|Operation) timed out|connect timeout|timed out$",
          "no answer from {name} on port {port} (timed out)", "a host that is up and reachable",
          "check that it is on, its address (ansible_host) and the firewalls in between: nc -vz "
              "{name} {port}"),
    _rule("unreachable", r"(?:connect to host <name> port (?P<port>\d{1,5}): )?(?P<why>No route to host|Network is unreachable|Host is down|Network is down)",
          "no route to {name} ({why})", "a host that is up, in a network that this machine can reach",
          "check that it is on, its address (ansible_host), and this machine's route or VPN: ip route get {name}"),
    _rule("unreachable", r"(?:connect to host <name> port (?P<port>\d{1,5}): )?Connection refused|Unable to connect to port (?P<version>\d{1,5})",
          "nothing listening on port {port} of {name} (connection refused)", "an SSH server",
          "start it on the host (systemctl start ssh), or set ansible_port to the right port"),
    _rule("unreachable", r"ssh_dispatch_run_fatal[^\n]{0,160}(?P<why>message authentication code incorrect|Corrupted MAC[\w ]{0,20}|bignum[\w ]{0,40}|incorrect signature)|Corrupted MAC on input",
          "a connection that delivers damaged data ({why})", "a network that delivers data unchanged",
          "check the network card and the MTU (ip -s link, ethtool -S), and any middlebox in "
              "between; try ssh -o MACs=hmac-sha2-256 {host}"),
    _rule("unreachable", r"Timeout, server <name> not responding|Broken pipe|client_loop|lost connection|Connection to <name> closed by remote host|mux_client|Data could not be sent to (?:the )?remote host",
          "a connection that was lost", "a stable connection", "run the command again; if it happens often, check the host's load and the network in "
              "between"),
)  # fmt: skip

_INVENTORY: Final = (
    _rule("unreachable", r"connect to host <name> port (?P<port>\d{1,5}): (?P<why>[^\n]{1,80})",
          "no connection to {name} on port {port} ({why})", "a host that is up and reachable", "try ssh -v {name}: its last lines show where the connection fails"),
    _rule("host-output", r"junk (?:after|before) the JSON|Received message too long",
          "a host whose shell prints something at every login", "a shell that prints nothing in non-interactive sessions",
          "make ~/.bashrc and /etc/profile.d print nothing without a terminal: ssh {host} true must "
              "print nothing"),
    _rule("host-timeout", r"expected time frame \((?P<seconds>\d{1,6})\)|did not answer within (?P<seconds2>\d{1,6}) s|Timed out after (?P<seconds3>\d{1,6}) second",
          "a host that did not answer in {seconds} s and was left out", "an answer in time",
          "log in and find out what hangs (dmesg, ps axo stat,cmd: state D); "
              "metal_host_timeout_seconds allows more time"),
    _rule("sudo-failed", r"^sudo(?:-rs)?: (?P<why>[^\n]{1,200})",
          "a sudo on the host that fails ({why})", "sudo for the user that logs in",
          "try it on the host: sudo -n true; --ask-become-pass (-K) prompts for a password"),
    _rule("inventory", r"'?(?P<variable>[\w.]{1,80})'? is undefined|undefined variable: '?(?P<variable2>[\w.]{1,80})",
          "an undefined variable that the inventory uses ({variable})", "a value for it", "set it in the inventory"),
    _rule("inventory", r"connection plugin '?(?P<what>[\w.]{1,60})'? was not found|'(?P<what2>[\w.]{1,60})' connection plugin was not found|the connection plugin|(?P<what3>winrm|psrp)(?: or [\w-]{1,30})? is not installed",
          "a connection type that this Ansible does not have ({what})", "ssh or local", "fix ansible_connection in the inventory"),
)  # fmt: skip

RULES: Final[tuple[Rule, ...]] = (
    *_CONTROLLER,
    *_SSH[:6],
    *_PROXY[:2],
    *_SSH[6:],
    *_PROXY[2:],
    *_SUDO,
    *_PYTHON,
    *_DISK,
    *_NETWORK,
    *_INVENTORY,
)
"""In the order in which causes come before their consequences."""
