"""Results at a URL that fsspec knows, as s3://bucket/results: a sweep's folder there, and a copy here to work on.

Every file goes up under another name and is then renamed, a trial's record last: what is there is whole. No torch.
"""

import errno
import random
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import fsspec

from harness.errors import VtbenchError
from harness.store import Result, Store

if TYPE_CHECKING:
    from harness.spec import Trial


BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}  # have no folders; makedirs would make a bucket of a slip


class Remote:
    """A folder at a URL, over a new connection if `fresh`.

    Errors: VtbenchError; of all methods OSError in one line, whatever the file system raises.
    """

    def __init__(self, url: str, *, fresh: bool = False) -> None:
        self.url = url
        self.shown = _without_password(url)
        self.protocol = url.partition("://")[0]
        try:
            self.files, root = fsspec.url_to_fs(url, skip_instance_cache=fresh)
        except ImportError as error:
            raise VtbenchError(f"{self.shown}: {self.protocol} needs a package: {_line(error)}") from None
        except ValueError as error:
            raise VtbenchError(f"{self.shown}: {_line(error)}; allowed are folders and what fsspec knows") from None
        except Exception as error:
            raise VtbenchError(f"{self.shown}: {_line(error)}") from None
        self.root = root.rstrip("/")

    def __truediv__(self, name: str) -> "Remote":
        return Remote(f"{self.url.rstrip('/')}/{name}")

    def listed(self) -> list[str]:
        """Return the names of what lies right in the folder."""
        with self._one_line():
            self.files.invalidate_cache()
            try:
                return [PurePosixPath(path).name for path in self.files.ls(self.root, detail=False)]
            except FileNotFoundError:
                return []

    def names(self) -> dict[str, int | None]:
        """Return the files below the folder with their sizes where known, those whose name begins with a dot too."""
        with self._one_line():
            self.files.invalidate_cache()
            try:
                self.files.ls(self.root)  # find() is silent on a folder that may not be read
            except FileNotFoundError:
                return {}
            if self.files.isfile(self.root):
                raise NotADirectoryError("is a file, and the results need a folder of that name")
            found = self.files.find(self.root, detail=True)
            names = {path[len(self.root) :].lstrip("/"): info.get("size") for path, info in found.items()}
        return {name: size for name, size in names.items() if name and ".." not in PurePosixPath(name).parts}

    def fetch(self, folder: Path) -> None:
        """Make the folder here the same as that there, W&B's runs and what is being written aside."""
        there = {name: size for name, size in self.names().items() if _is_result(name)}
        here = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        for name in here.keys() - there.keys():
            here[name].unlink()
        wanted = [name for name in there if name not in here or here[name].stat().st_size != there[name]]
        for name in wanted:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if wanted:
            with self._one_line():  # at once, where the file system can
                self.files.get([f"{self.root}/{name}" for name in wanted], [str(folder / name) for name in wanted])

    def write(self, name: str, content: bytes) -> None:
        """Write a file there, whole or not at all."""
        target = PurePosixPath(self.root, name)
        partial = str(target.with_name(f".{target.name}.{random.SystemRandom().getrandbits(32):08x}"))
        with self._one_line():
            for last in (True,) if self.protocol in BUCKETS else (False, False, True):
                try:
                    self.files.pipe_file(partial, content)
                    break
                except Exception:  # every file system has its own for a folder that is not there
                    if last:
                        raise
                    self.files.invalidate_cache()
                    with suppress(Exception):  # others may be making it too
                        self.files.makedirs(str(target.parent), exist_ok=True)
            self.files.mv(partial, str(target))

    def read(self, name: str) -> bytes | None:
        """Return a file's content, None where there is no such file."""
        with self._one_line():
            try:
                return self.files.cat_file(f"{self.root}/{name}")
            except FileNotFoundError:
                return None

    def remove(self, name: str) -> None:
        """Remove a file that may have gone."""
        path = f"{self.root}/{name}"
        with self._one_line():
            try:
                self.files.rm_file(path)
            except Exception:  # every file system has its own for what is not there
                self.files.invalidate_cache()
                if self.files.exists(path):
                    raise

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise OSError(errno.EIO, _line(error), self.shown) from None


class RemoteStore(Store):
    """A sweep's folder at a URL, by a copy of it here."""

    def __init__(self, remote: Remote, folder: Path) -> None:
        super().__init__(folder)
        self.remote, self.shown = remote, remote.shown
        self._pictures: set[str] = set()  # that are there
        self.fetch()

    def fetch(self) -> None:
        """Take over what others wrote there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.remote.fetch(self.folder)
        self._pictures = {path.name for path in self.folder.glob("images/*")}

    def write(self, trial: "Trial", result: Result) -> None:
        """Write a finished trial here and there, its record last. Errors: ValueError for NaN in the record, OSError."""
        super().write(trial, result)
        for name in sorted({f"{picture}.webp" for picture in result.pictures or {}} - self._pictures):
            self._push(f"images/{name}")
            self._pictures.add(name)
        names = ("trial.yaml", "samples.parquet", "record.json")
        for name in names if result.samples is not None else (names[0], names[-1]):
            self._push(f"{trial.id}/{name}")
        self.remote.remove(f"{trial.id}/failure.json")

    def fail(self, trial: "Trial", error: str, traceback: str) -> None:
        """Note why a trial failed, until it succeeds."""
        super().fail(trial, error, traceback)
        self._push(f"{trial.id}/trial.yaml")
        self._push(f"{trial.id}/failure.json")

    def describe(self, shown: dict[str, Any]) -> None:
        """Leave what the report shows of the sweep besides its trials."""
        super().describe(shown)
        self._push("sweep.json")

    def gather(self) -> Path:
        """Write `trials.parquet` here and there and return its path here."""
        path = super().gather()
        self._push(path.name)
        return path

    def tidy(self) -> None:
        """Take over what others did until the claim, and remove what killed runs were writing."""
        super().tidy()
        for name in self.remote.names():
            last = PurePosixPath(name).name
            if last.startswith(".") and not last.startswith((".claim-", "..claim-")):  # as it is being written
                self.remote.remove(name)
        self.fetch()

    def leave(self) -> None:
        """Take W&B's runs, which it writes here alone, there."""
        for path in sorted((self.folder / "wandb").rglob("*")):
            if path.is_file() and not path.is_symlink():
                self._push(path.relative_to(self.folder).as_posix())

    def _push(self, name: str) -> None:
        self.remote.write(name, (self.folder / name).read_bytes())


def is_url(place: str) -> bool:
    """Whether a place for results is no folder of this machine."""
    return "://" in place and not place.startswith(("file://", "local://"))


def local(place: str) -> Path:
    """Return a folder's path, file:///folder too."""
    return Path(place.partition("://")[2] or place)


@contextmanager
def sweep_folder(results: str, sweep: str) -> Iterator[Path]:
    """Yield a sweep's folder to read, a copy of what is at a URL. Errors: VtbenchError."""
    if not is_url(results):
        yield local(results) / sweep
        return
    if Path(sweep).name != sweep or sweep == "..":
        raise VtbenchError(f"{sweep}: is no sweep's name")
    with _copy(results, sweep) as folder:
        with _told():
            remote = Remote(results) / sweep
            there = remote.names()
            remote.fetch(folder)
        if not there:
            raise VtbenchError(f"{remote.shown}: no results to report; run the sweep first")
        yield folder


@contextmanager
def opened(out: str, sweep: str) -> Iterator[Store]:
    """Yield a sweep's store to write. Errors: VtbenchError when a URL cannot be read."""
    if not is_url(out):
        yield Store(local(out) / sweep)
        return
    with _copy(out, sweep) as folder:
        with _told():
            store = RemoteStore(Remote(out) / sweep, folder)
        try:
            yield store
        finally:
            with suppress(OSError):  # no trial's loss
                store.leave()


@contextmanager
def _copy(url: str, sweep: str) -> Iterator[Path]:
    """Yield a folder for a copy; errors name the URL instead."""
    with tempfile.TemporaryDirectory(prefix="vtbench", ignore_cleanup_errors=True) as copies:
        try:
            yield Path(copies) / sweep
        except VtbenchError as error:
            raise VtbenchError(str(error).replace(copies, _without_password(url).rstrip("/"))) from None


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VtbenchError(f"{error.filename}: {error.strerror}") from None


def _is_result(name: str) -> bool:
    path = PurePosixPath(name)
    return path.parts[0] != "wandb" and not path.name.startswith(".")


def _without_password(url: str) -> str:
    return re.sub(r"://[^/]*@", "://", url)


def _line(error: BaseException) -> str:
    said = _without_password(str(error)) or type(error).__name__
    return " ".join(said.split())[:200]
