"""Finds image files by listing folders: one call a folder, not one an image.

On the network file systems of clusters, asking after each of 90,000 files takes minutes; listing
the folder that holds them takes a second.
"""

import os
import posixpath
import unicodedata
from collections import defaultdict
from pathlib import Path

__all__ = ["IMAGE_SUFFIXES", "ImageFinder", "compose", "stem"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")


def stem(name: str) -> str:
    """The name without an image suffix; other dots belong to the name."""
    base, suffix = posixpath.splitext(name)
    return base if suffix.lower() in IMAGE_SUFFIXES else name


def compose(text: str) -> str:
    """Letters with accents as one character each (NFC); file systems of Macs take them apart."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


class ImageFinder:
    """Looks image names up in some folders of a data set; each folder is listed once."""

    def __init__(self, root: Path, folders: tuple[str, ...] = ("",)):
        """Lists nothing yet.

        Args:
            root: The data set's folder.
            folders: Where images are looked for, relative to the root, the first match counts.
        """
        self._root, self._folders = root, folders
        self._listings: dict[str, dict[str, list[str]]] = {}
        self._composed: dict[str, dict[str, list[str]]] = {}
        self._spellings: dict[str, str] = {}
        self._others: dict[str, set[str]] = {}
        self._real_root = os.path.realpath(root)
        self._real_folders: dict[str, str] = {}

    def find(self, name: str) -> list[str]:
        """The files that a name can mean, relative to the root.

        Args:
            name: A path relative to one of the folders, or an absolute one. A file with another
                image suffix than the name's, or where the name has none, is a match too: resized
                copies of a data set often change it. Where there is none, accents may be letters of
                their own in one of both.

        Returns:
            One path; none if there is no such file; several if the suffixes alone tell them apart.
            It is absolute, or begins with ``..``, only where it leads out of the root.
        """
        for folder in self._folders:
            parent, base = self._split(folder, name)
            matches = self._list(parent).get(stem(base), [])
            if matches:
                exact = [match for match in matches if match == base]
                return [posixpath.join(parent, match) for match in exact or matches]
        return [] if name.isascii() else self._find_alike(compose(name))

    def is_passed_over(self, name: str) -> bool:
        """Whether a name that nothing is found for is that of a file with another suffix."""
        for folder in self._folders:
            parent, base = self._split(folder, name)
            parent = self._spelling(parent)
            if parent not in self._others:
                path = self._root / parent
                entries = os.scandir(path) if path.is_dir() else ()
                self._others[parent] = {compose(entry.name) for entry in entries if entry.is_file()}
            if compose(base) in self._others[parent]:
                return True
        return False

    def place(self, path: str) -> str:
        """A found path as it is without links among its folders: equal for the same file."""
        parent, base = posixpath.split(path)
        return posixpath.join(self._real(parent), base)

    def _find_alike(self, name: str) -> list[str]:
        """The files whose names are a composed name once they are composed, too."""
        for folder in self._folders:
            parent, base = self._split(folder, name)
            parent = self._spelling(parent)
            if parent not in self._composed:
                by_stem: defaultdict[str, list[str]] = defaultdict(list)
                for names in self._list(parent).values():
                    by_stem[compose(stem(names[0]))] += names
                self._composed[parent] = dict(by_stem)
            matches = self._composed[parent].get(stem(base), [])
            if matches:
                exact = [match for match in matches if compose(match) == base]
                return [posixpath.join(parent, match) for match in exact or matches]
        return []

    def _spelling(self, folder: str) -> str:
        """A folder as the file system spells it, which may compose its letters otherwise."""
        if folder not in self._spellings:
            found = "/" if folder.startswith("/") else ""
            for part in folder.strip("/").split("/"):
                path = self._root / found
                if path.is_dir() and not (path / part).is_dir():
                    alike = [name for name in os.listdir(path) if compose(name) == compose(part)]
                    part = min(alike, default=part)
                found = posixpath.join(found, part)
            self._spellings[folder] = self._from_root(found) if found.startswith("/") else found
        return self._spellings[folder]

    def _split(self, folder: str, name: str) -> tuple[str, str]:
        """A name's folder, relative to the root, and what it is called there."""
        parent, base = posixpath.split(posixpath.normpath(posixpath.join(folder, name)))
        return self._from_root(parent) if parent.startswith(("/", "..")) else parent, base

    def _from_root(self, folder: str) -> str:
        """A folder relative to the root where it lies inside, else as it is."""
        real = self._real(folder)
        if real == self._real_root:
            return ""
        inside = real.startswith(posixpath.join(self._real_root, ""))
        return posixpath.relpath(real, self._real_root) if inside else folder

    def _real(self, folder: str) -> str:
        """A folder's path without links; one look at the file system a folder, not one an image."""
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(self._root / folder)
        return self._real_folders[folder]

    def _list(self, folder: str) -> dict[str, list[str]]:
        """The image files of a folder by their stems."""
        if folder not in self._listings:
            by_stem: defaultdict[str, list[str]] = defaultdict(list)
            path = self._root / folder
            for name in sorted(os.listdir(path)) if path.is_dir() else ():
                if stem(name) != name:
                    by_stem[stem(name)].append(name)
            self._listings[folder] = dict(by_stem)
        return self._listings[folder]
