"""Walks the image's files and says what is there that a worker has no use for, and that an intruder would have.

    sudo python3 deploy/image/scan.py "$(buildah mount "$(buildah from vpp-dispatch:dev)")" [--base FOLDER]

FOLDER: the files of the base that it stands on; without it, what the image adds to the base is not told. Prints a
table, one line per question, and exits with 0 if each was answered with nothing, else with 1. Standard library only.
Reading everything needs root. Nothing in the image is run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

APP = "opt/vpp-dispatch"
SBOM = f"{APP}/sbom.cdx.json"
PROGRAMS = ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin", f"{APP}/bin")

BUILD_TOOLS = re.compile(
    r"(gcc|g\+\+|c\+\+|cc|cpp|clang|ld|as|make|cmake|ninja|meson|cargo|rustc|go|javac|git|hg|svn)(-\d+)?"
)
FETCHERS = re.compile(r"curl|wget|ssh|scp|sftp|ftp|nc|ncat|netcat|socat|telnet|rsync|tcpdump|nmap|gdb|strace")
INSTALLERS = re.compile(r"(pip|setuptools|wheel|ensurepip|pkg_resources|_distutils_hack)(-.*)?(\.whl)?")
SECRET_NAMES = re.compile(
    r"\.env|\.netrc|\.pypirc|\.npmrc|\.git-credentials|\.htpasswd|pip\.conf|pip\.ini|id_(rsa|dsa|ecdsa|ed25519)|.*\.(p12|pfx|jks|key)"
)
KEY = re.compile(rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----\s+[A-Za-z0-9+/=]{16}")
TOKENS = re.compile(
    rb"\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|glpat-[\w-]{20}|xox[abprs]-[\w-]{10,}|AIza[\w-]{35}"
    rb"|eyJ[\w-]{16,}\.eyJ[\w-]{16,}\.[\w-]{16,})"
)
LOGIN_IN_ADDRESS = re.compile(rb"\b(?:https?|ftp|kafka|redis|amqp)://[\w.+-]+:[^\s/@:'\"<>{}%$]+@[\w-]+[.:\w-]*")
PLACEHOLDER = re.compile(rb"user|name|foo|example|guest|joe|test|proxy|login", re.I)
"""An address that shows how addresses look, in the documentation of a library."""

KNOWN = {"libgnutls.so": "private keys"}
"""A library of the base and the question that it is passed over for: its self-tests use keys that its source shows."""

LARGEST = 4 << 20
"""Bytes; what is larger is a library or a table, and is not looked into."""


@dataclass(slots=True)
class Question:
    """What must not be there, and what was found all the same."""

    asks: str
    found: list[str] = field(default_factory=list)


class Scan:
    """The questions, and a walk that answers them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.questions: dict[str, Question] = {}
        self.files = self.bytes = 0

    def add(self, asks: str, *paths: str) -> None:
        """Has a question asked, and what was found for it."""
        self.questions.setdefault(asks, Question(asks)).found.extend(paths)

    def run(self, base: Path | None) -> None:
        """Asks everything."""
        for path, mode in self._walk():
            self._modes(path, mode)
            self._names(path, mode)
            if stat.S_ISREG(mode):
                self._content(path)
        self._accounts()
        self._sbom()
        if base is not None:
            self._against(base)

    def _walk(self) -> Iterator[tuple[str, int]]:
        """Path below the root and mode of everything but links, and but what a container mounts over."""
        for name_, folders, files in os.walk(self.root):
            folder = Path(name_)
            below = folder.relative_to(self.root)
            if below == Path():
                folders[:] = [name for name in folders if name not in ("proc", "sys", "dev")]
            for name in (*folders, *files):
                status = (folder / name).lstat()
                if stat.S_ISLNK(status.st_mode):
                    continue
                if stat.S_ISREG(status.st_mode):
                    self.files += 1
                    self.bytes += status.st_size
                path = str(below / name)
                if path.startswith(f"{APP}/") and (status.st_uid or status.st_gid or status.st_mode & 0o022):
                    self.add("of the program: not root's, or writable for others", path)
                yield path, status.st_mode

    def _modes(self, path: str, mode: int) -> None:
        if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
            self.add("setuid and setgid files", path)
        if mode & stat.S_IWOTH and not (stat.S_ISDIR(mode) and mode & stat.S_ISVTX):
            self.add("writable for everybody (folders with a sticky bit left out)", path)

    def _names(self, path: str, mode: int) -> None:
        folder, _, name = path.rpartition("/")
        if stat.S_ISREG(mode) and folder in PROGRAMS:
            if BUILD_TOOLS.fullmatch(name):
                self.add("compilers, build tools, version control", path)
            if FETCHERS.fullmatch(name):
                self.add("programs that fetch, listen or look into others", path)
            if name.startswith(("pip", "easy_install")):
                self.add("pip and what installs with it", path)
        elif INSTALLERS.fullmatch(name) and ("python3" in folder or "python-wheels" in folder):
            self.add("pip and what installs with it", path)
        if path.startswith("usr/include/") or name.endswith((".a", ".la")):
            self.add("headers and static libraries", path)
        if name in (".git", ".hg", ".svn", ".github", ".gitignore"):
            self.add("version control's files", path)
        if stat.S_ISDIR(mode) and name in ("tests", "test") and path.startswith(f"{APP}/"):
            self.add("tests of packages", path)
        if stat.S_ISREG(mode) and (
            path.startswith(("var/lib/apt/lists/", "var/cache/apt/", "root/.cache/", "tmp/", "var/tmp/", "build/"))
            or name.endswith((".deb", ".whl", ".tar.gz"))
        ):
            self.add("caches, package lists, archives, what a build left", path)
        if stat.S_ISREG(mode) and SECRET_NAMES.fullmatch(name):
            self.add("files named like secrets", path)
        if name.endswith(".pyc") and "__pycache__" in folder and path.startswith(f"{APP}/"):
            source = self.root / folder.removesuffix("/__pycache__") / f"{name.split('.')[0]}.py"
            if not source.exists():
                self.add("bytecode without its source", path)

    def _content(self, path: str) -> None:
        file = self.root / path
        if file.stat().st_size > LARGEST:
            return
        content = file.read_bytes()
        known = {question for name, question in KNOWN.items() if file.name.startswith(name)}
        if "private keys" not in known and KEY.search(content):
            self.add("private keys", path)
        if TOKENS.search(content):
            self.add("strings that look like credentials", path)
        for address in LOGIN_IN_ADDRESS.findall(content):
            if not PLACEHOLDER.search(address):
                self.add("strings that look like credentials", f"{path} ({address.decode(errors='replace')})")

    def _accounts(self) -> None:
        shadow = self.root / "etc/shadow"
        lines = shadow.read_text().splitlines() if shadow.exists() else []
        open_ = [name for name, _, rest in (line.partition(":") for line in lines) if rest[:1] not in ("*", "!")]
        self.add("accounts with a password, or without any lock", *open_)

    def _sbom(self) -> None:
        """The SBOM names exactly the installed packages, each in its version."""
        asks = "differences between the SBOM and what is installed"
        if not (self.root / SBOM).exists():
            self.add(asks, f"{SBOM} is not there")
            return
        told = json.loads((self.root / SBOM).read_bytes())
        components = [*told.get("components", ()), told["metadata"]["component"]]
        listed = {(normal(c["name"]), c.get("version", "")) for c in components}
        there = set()
        for metadata in (self.root / APP).glob("lib/python3*/site-packages/*.dist-info"):
            name, _, version = metadata.name.removesuffix(".dist-info").rpartition("-")
            there.add((normal(name), version))
        self.add(asks, *(f"{name} {version}" for name, version in sorted(listed ^ there)))

    def _against(self, base: Path) -> None:
        """Programs and shells that the base has not, the service's own left out."""
        for folder in PROGRAMS:
            if folder.startswith(APP) or not (self.root / folder).is_dir():
                continue
            before = {path.name for path in (base / folder).iterdir()} if (base / folder).is_dir() else set()
            added = sorted({path.name for path in (self.root / folder).iterdir()} - before)
            self.add("programs that the base has not", *(f"{folder}/{name}" for name in added))


def normal(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


ASKED = (
    "setuid and setgid files",
    "writable for everybody (folders with a sticky bit left out)",
    "of the program: not root's, or writable for others",
    "accounts with a password, or without any lock",
    "private keys",
    "files named like secrets",
    "strings that look like credentials",
    "compilers, build tools, version control",
    "headers and static libraries",
    "programs that fetch, listen or look into others",
    "pip and what installs with it",
    "caches, package lists, archives, what a build left",
    "version control's files",
    "tests of packages",
    "bytecode without its source",
    "differences between the SBOM and what is installed",
)
"""In the order of the table, so that a question is shown also where nothing was found."""


def main(arguments: list[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Say what is in the image's files that should not be.")
    parser.add_argument("root", type=Path, help="the folder with the image's files")
    parser.add_argument("--base", type=Path, help="the folder with the files of its base")
    options = parser.parse_args(arguments)
    if not (options.root / APP).is_dir():
        parser.error(f"{options.root} has no {APP}: it is not the image.")
    scan = Scan(options.root)
    for asks in ASKED:
        scan.add(asks)
    scan.run(options.base)
    for question in scan.questions.values():
        print(f"{'none' if not question.found else len(question.found):>6}  {question.asks}")
        for path in question.found[:5]:
            print(f"{'':8}{path}")
    print(f"{scan.files} files, {scan.bytes / 1e6:.1f} MB.")
    return 1 if any(question.found for question in scan.questions.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
