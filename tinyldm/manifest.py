"""`.manifest` in a folder lists what this program wrote there, so that it deletes nothing else.

    # written by tinyldm: --overwrite true deletes these files and nothing else
    config.yaml
    checkpoints/step-100/denoiser.safetensors
    pictures/                                  a folder with a .manifest of its own

A name is added before its file is written: a kill leaves a name too many, never a file without one. Symbolic links are not
followed. A listed file that is a link now, or lies behind one, is foreign.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from tinyldm.errors import UserError
from tinyldm.files import replace_text

NAME, LOCK = ".manifest", ".lock"
HEADER = "# written by tinyldm: --overwrite true deletes these files and nothing else\n"
ASIDE, DISCARDED = ".replaced", ".discarded"  # where `replaced` keeps the old files
TEMPORARY = re.compile(r"\.(exporting|saving-\d+|pushing-\d+-\d+)")  # folders that a killed run leaves


class Manifest:
    """The files of a folder that this program wrote."""

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / NAME

    def _text(self) -> str:
        if self.file.is_symlink() or not self.file.is_file():
            return ""
        return self.file.read_text(encoding="utf-8", errors="replace")

    def names(self) -> set[str]:
        """The listed names; none where there is no manifest, or `.manifest` is the file of another program."""
        text = self._text()
        return set(text[: text.rfind("\n") + 1].splitlines()[1:]) if text.startswith(HEADER) else set()

    def own(self, path: Path) -> Path:
        """List a file that is about to be written, and return its path."""
        self.own_all([path])
        return path

    def own_all(self, paths: Iterable[Path]) -> None:
        """List several files.

        Raises:
            UserError: where `.manifest` is the file of another program.
        """
        self._add({path.relative_to(self.folder).as_posix() for path in paths})

    def claim(self, paths: Iterable[Path]) -> None:
        """List files that are about to be written, unless there are files of others in their places.

        Raises:
            UserError: naming the first of these.
        """
        paths, names = list(paths), self.names()
        for path in paths:
            if os.path.lexists(path) and path.relative_to(self.folder).as_posix() not in names:
                raise UserError(
                    f"{path} was not written by this program and is not replaced: choose another folder, or move it away"
                )
        self.own_all(paths)

    def own_folder(self, path: Path) -> Path:
        """List a folder that has a manifest of its own, and return its path."""
        self._add({f"{path.relative_to(self.folder).as_posix()}/"})
        return path

    def _add(self, names: set[str]) -> None:
        text = self._text()
        if self.file.is_symlink() or (text and not text.startswith(HEADER)):
            raise UserError(f"{self.file} is the file of another program: choose another folder, or move it away")
        if new := sorted(names - self.names()):
            begin = HEADER if not text else "" if text.endswith("\n") else "\n"  # a full disk may have cut the last line
            with self.file.open("a", encoding="utf-8", newline="") as file:
                file.write(begin + "".join(f"{name}\n" for name in new))

    # ------------------------------------------------------------------------------------------------- whose files are they

    def foreign(self) -> list[Path]:
        """The files and links that no manifest lists, sorted. A folder with an unlisted manifest of its own is one entry."""
        return sorted(path for path, ours in self._walk() if not ours)

    def files(self) -> list[Path]:
        """The regular files that are ours, also temporary ones and those of listed folders, sorted; manifests come last."""
        found = (path for path, ours in self._walk() if ours and path != self.folder / LOCK)
        return sorted(found, key=lambda path: (path.name == NAME, path))

    def _walk(self) -> Iterator[tuple[Path, bool]]:
        """Each file and link below, and whether it is ours."""
        names, text = self.names(), self._text()
        own_names = {LOCK, NAME} if not text or text.startswith(HEADER) else {LOCK}
        for place, folders, files in os.walk(self.folder):
            here, descend = Path(place), []
            inside = "" if here == self.folder else f"{here.relative_to(self.folder).as_posix()}/"
            for name in folders:
                path = here / name
                if path.is_symlink():
                    yield path, False
                elif _is_temporary(name, inside, names):
                    yield from ((file, True) for file in path.rglob("*") if not file.is_dir())
                elif not os.path.lexists(path / NAME):
                    descend.append(name)
                elif f"{inside}{name}/" in names:
                    yield from Manifest(path)._walk()
                else:
                    yield path, False
            folders[:] = descend
            for name in files:
                path = here / name
                aside = re.fullmatch(r"\.(.+?)(\.\d+)?", name)  # what replace_text and its like write first
                ours = inside + name in names | own_names or (aside is not None and inside + aside[1] in names)
                yield path, ours and path.is_file() and not path.is_symlink()

    # ----------------------------------------------------------------------------------------------------------- deleting

    def remove(self, files: Iterable[Path]) -> None:
        """Delete these files of `files()` and the folders that are empty then, and take them off the list."""
        gone = list(files)
        for file in gone:
            file.unlink(missing_ok=True)
        _remove_empty(self.folder, gone)
        kept = self.names() - {file.relative_to(self.folder).as_posix() for file in gone}
        if self.file.exists():
            replace_text(self.file, HEADER + "".join(f"{name}\n" for name in sorted(kept)))

    @contextlib.contextmanager
    def replaced(self) -> Iterator[None]:
        """The folder without our files, for a successor that begins in this context. The old files are deleted after it.

        They come back if the successor fails to begin. After a kill, `recover` chooses one of the two.
        """
        try:
            self._move(self.files(), self.folder, self.folder / ASIDE)
        except BaseException:
            self.recover()
            raise
        try:
            yield
        except BaseException:
            self.remove(self.files())
            self.file.unlink(missing_ok=True)
            self.recover()
            raise
        self.recover()

    def recover(self) -> None:
        """Put an interrupted replacement right: the old files come back, unless their successor has begun."""
        aside, discarded = self.folder / ASIDE, self.folder / DISCARDED
        new, old = self.names(), set() if aside.is_symlink() else Manifest(aside).names()
        if (new or old) and aside.is_dir():
            if new and old:  # the successor has begun
                aside.rename(discarded)  # at once, so that a kill while deleting leaves no half of it to put back
            else:
                files = [path for path in aside.rglob("*") if not path.is_dir()]
                self._move(sorted(files, key=lambda path: (path.name == NAME, path)), aside, self.folder)
                shutil.rmtree(aside)  # empty folders
        if self.names():
            shutil.rmtree(discarded, ignore_errors=True)

    def _move(self, files: list[Path], source: Path, target: Path) -> None:
        for file in files:
            there = target / file.relative_to(source)
            there.parent.mkdir(parents=True, exist_ok=True)
            file.rename(there)
        _remove_empty(source, files)


def named(files: list[Path], folder: Path) -> str:
    """The first of these files and the number of the others, for a message."""
    return f"{files[0].relative_to(folder)}{f' and {len(files) - 1} more' if len(files) > 1 else ''}"


def list_in_run(folder: Path) -> None:
    """List a folder with a manifest of its own in the run that it lies in, if it lies in one.

    The run's --overwrite then deletes these files too.
    """
    for above in folder.absolute().parents:
        if Manifest(above).names():
            Manifest(above).own_folder(folder.absolute())
            return


def _is_temporary(name: str, inside: str, names: set[str]) -> bool:
    """Whether a killed run leaves a folder of this name: a new checkpoint or model, or the old one of a listed folder."""
    old = f"{inside}{name.removeprefix('.old-')}/"
    replaced = name.startswith(".old-") and any(listed.startswith(old) for listed in names)
    return bool(names) and (replaced or TEMPORARY.fullmatch(name) is not None)


def _remove_empty(top: Path, files: Iterable[Path]) -> None:
    """Remove the folders below `top` that these files were in, if they are empty."""
    folders = {folder for file in files for folder in file.parents if top in folder.parents}
    for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
        with contextlib.suppress(OSError):
            folder.rmdir()
