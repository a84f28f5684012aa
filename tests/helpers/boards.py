"""Boards on this machine: an sshd each, on a port of its own, whose sessions have a home of their own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from helpers.processes import CHECKOUT, HANG_S

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
_SFTP = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/libexec/sftp-server")
_ENTER = """#!/bin/sh
export HOME={home} PYTHONPATH={checkout} PYTHONDONTWRITEBYTECODE=1
unset XDG_CACHE_HOME ZTDEPLOY_CACHE
cd "$HOME" || exit 1
if [ -e "$HOME/.environment" ]; then . "$HOME/.environment"; fi
case "$SSH_ORIGINAL_COMMAND" in {sftp}) exec {sftp};; esac
exec sh -c "$SSH_ORIGINAL_COMMAND"
"""
_SSHD = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/{name}.key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
ForceCommand {folder}/{name}.enter
Subsystem sftp {sftp}
"""
_HOST = """
Host {name}
    HostName 127.0.0.1
    Port {port}
"""
_ALL = """
Host *
    User {user}
    IdentityFile {folder}/id
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile none
"""


def why_no_sshd() -> str | None:
    """What keeps this machine from having such boards."""
    missing = [name for name in ("ssh", "ssh-keygen", "sftp") if shutil.which(name) is None]
    if SSHD is None or missing:
        return f"not installed: {', '.join([*missing, *([] if SSHD else ['sshd'])])} (openssh-client, openssh-server)"
    if not any(Path(path).exists() for path in _SFTP):
        return "no sftp-server of OpenSSH"
    if os.getuid() == 0:
        with suppress(OSError):
            Path("/run/sshd").mkdir(parents=True, exist_ok=True)  # as its service does
        if not Path("/run/sshd").is_dir():
            return "sshd of root wants /run/sshd"
    return None


class Lab:
    """Boards of these names, and the configuration that ssh reaches them with."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder, self.daemons = folder, dict[str, subprocess.Popen[bytes]]()
        self.ports = {name: _free_port() for name in names}
        self._sftp = next(path for path in _SFTP if Path(path).exists())
        self.key("id")
        shutil.copy(folder / "id.pub", folder / "authorized_keys")
        hosts = [_HOST.format(name=name, port=port) for name, port in self.ports.items()]
        (folder / "config").write_text("".join([*hosts, _ALL.format(user=getpass.getuser(), folder=folder)]))
        for name in names:
            self.key(f"{name}.key")
            self.home(name).mkdir()
            enter = folder / f"{name}.enter"
            enter.write_text(_ENTER.format(home=self.home(name), checkout=CHECKOUT, sftp=self._sftp))
            enter.chmod(0o755)
            self.start(name)
        self.know(*names)

    @property
    def ssh(self) -> str:
        return f"ssh -F {self.folder / 'config'}"

    def home(self, name: str) -> Path:
        return self.folder / f"home-{name}"

    def store(self, name: str) -> Path:
        return self.home(name) / ".cache" / "ztdeploy" / "remote"

    def key(self, name: str) -> None:
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", self.folder / name]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)

    def know(self, *names: str) -> None:
        """Tell ssh the host keys of these, and of no others."""
        keys = [f"[127.0.0.1]:{self.ports[name]} {(self.folder / f'{name}.key.pub').read_text()}" for name in names]
        (self.folder / "known_hosts").write_text("".join(keys))

    def with_ztdeploy(self, name: str) -> None:
        """An environment of its own, which is the one of the tests."""
        venv = self.home(name) / ".local" / "share" / "ztdeploy" / "venv"
        venv.parent.mkdir(parents=True)
        venv.symlink_to(sys.prefix)

    def start(self, name: str) -> None:
        config, port = self.folder / f"{name}.sshd", self.ports[name]
        config.write_text(_SSHD.format(port=port, folder=self.folder, name=name, sftp=self._sftp))
        assert SSHD is not None
        with (self.folder / f"{name}.log").open("wb") as log:
            self.daemons[name] = subprocess.Popen([SSHD, "-D", "-e", "-f", config], stderr=log, start_new_session=True)
        until = time.monotonic() + HANG_S
        while time.monotonic() < until and self.daemons[name].poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return
            time.sleep(0.02)
        pytest.fail(f"sshd does not start: {(self.folder / f'{name}.log').read_text()}")

    def processes(self, name: str, word: str = "") -> list[int]:
        """The processes that run on a board, those of `word` in their command lines alone."""
        return [
            pid
            for pid, command, environment in _all_processes()
            if f"HOME={self.home(name)}" in environment and any(word in part for part in command)
        ]

    def cut(self, name: str) -> None:
        """Pull the plug: its connections and processes end at once. It can be reached again."""
        pids = [*self.processes(name), *_children(self.daemons[name].pid)]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        for name, daemon in self.daemons.items():
            self.cut(name)
            daemon.kill()
            daemon.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _all_processes() -> Iterator[tuple[int, list[str], list[str]]]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            texts = [
                (folder / name).read_bytes().decode(errors="replace").split("\0") for name in ("cmdline", "environ")
            ]
            yield int(folder.name), texts[0], texts[1]


def _children(parent: int) -> list[int]:
    """A process's children, and theirs."""
    found, parents = list[int](), {parent}
    known = dict[int, int]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            known[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    while more := [pid for pid, above in known.items() if above in parents and pid not in found]:
        found += more
        parents |= {*more}
    return found
