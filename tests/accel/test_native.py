"""C sources are compiled once into a cache that nobody else can write to, and what cannot be compiled is left out."""

from __future__ import annotations

import ctypes
import os
import stat
from pathlib import Path

import pytest

from foundation.accel import native

NUMBER = "int number(void) { return 7; }"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A C source, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FOUNDATION_NATIVE", raising=False)
    path = tmp_path / "made.c"
    path.write_text(NUMBER)
    return path


def loaded(source: Path) -> ctypes.CDLL:
    found = native.load(source, "it is slower")
    assert found is not None
    return found


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "foundation").iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o000])
def test_a_source_is_compiled_once_whoever_may_write_to_new_files(source, tmp_path, monkeypatch, umask):
    """Folder and library are the user's alone, and a second process finds them."""
    before = os.umask(umask)
    try:
        assert loaded(source).number() == 7
    finally:
        os.umask(before)
    [library] = files(tmp_path)
    assert mode(library) & 0o022 == 0 and mode(library.parent) == 0o700
    monkeypatch.setattr(native, "_compile", lambda *args: pytest.fail("it is there already"))
    assert loaded(source).number() == 7


def test_another_source_compiler_or_processor_has_a_library_of_its_own(source, tmp_path, monkeypatch):
    """What was compiled before a change is not loaded after it."""
    assert loaded(source).number() == 7
    source.write_text(NUMBER.replace("7", "8"))
    assert loaded(source).number() == 8
    monkeypatch.setattr(native.platform, "machine", lambda: "another")
    assert loaded(source).number() == 8
    monkeypatch.setattr(native, "_FLAGS", [flag for flag in native._FLAGS if flag != "-O3"])
    assert loaded(source).number() == 8
    compiler = tmp_path / "bin" / "cc"
    compiler.parent.mkdir()
    compiler.write_text(f'#!/bin/sh\nexec {native.shutil.which("cc")} "$@"\n')
    compiler.chmod(0o700)
    monkeypatch.setenv("PATH", f"{compiler.parent}{os.pathsep}{os.environ['PATH']}")
    assert loaded(source).number() == 8
    assert len(files(tmp_path)) == 5


@pytest.mark.parametrize("name", ["flags", "Features"])
def test_machines_that_share_a_home_but_not_a_processor_share_no_library(source, monkeypatch, name):
    """What /proc/cpuinfo calls the processor's abilities, on x86 and on ARM, is part of the name."""
    found = set()
    for abilities in ("sse", "sse avx"):
        text = f"processor : 0\n{name} : {abilities}\n"
        monkeypatch.setattr(Path, "is_file", lambda self: True)
        monkeypatch.setattr(Path, "read_text", lambda self, text=text: text if str(self) == "/proc/cpuinfo" else NUMBER)
        found.add(native._fingerprint(source, "/bin/sh"))
    assert len(found) == 2


def test_a_library_that_others_may_have_written_is_replaced_and_not_loaded(source, tmp_path):
    """A file with wide permissions, and a link, are compiled anew."""
    assert loaded(source).number() == 7
    [library] = files(tmp_path)
    for link in (False, True):
        elsewhere = tmp_path / "elsewhere.so"
        elsewhere.write_bytes(b"not a library")
        library.unlink()
        if link:
            library.symlink_to(elsewhere)
        else:
            library.write_bytes(b"not a library")
            library.chmod(0o666)
        assert loaded(source).number() == 7
        assert not library.is_symlink() and mode(library) == 0o700
        assert elsewhere.read_bytes() == b"not a library"


def test_an_empty_library_is_compiled_anew(source, tmp_path):
    """As it is after a power cut, where the name was written and the contents were not."""
    compiler = next(found for name in ("cc", "gcc", "clang") if (found := native.shutil.which(name)))
    library = native._folder() / f"made_{native._fingerprint(source, compiler)}.so"
    library.touch(mode=0o700)
    assert loaded(source).number() == 7
    assert files(tmp_path) == [library]


def test_a_library_of_another_user_is_not_ones_own(source, tmp_path, monkeypatch):
    """Though nobody else may write to it."""
    assert loaded(source).number() == 7
    [library] = files(tmp_path)
    assert native._is_own(library)
    monkeypatch.setattr(native.os, "getuid", lambda: library.stat().st_uid + 1)
    assert not native._is_own(library)


@pytest.mark.parametrize("spoil", ["link", "owner"])
def test_a_cache_of_somebody_else_is_left_alone_with_a_word(source, tmp_path, monkeypatch, caplog, spoil):
    """A folder that is a link, or belongs to another user, gives nothing to load."""
    folder = tmp_path / "cache" / "foundation"
    folder.parent.mkdir()
    if spoil == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        monkeypatch.setattr(native.os, "getuid", lambda: folder.stat().st_uid + 1)
    assert native.load(source, "it is slower") is None
    assert f"it is slower: '{folder}' is a link or belongs to another user" in caplog.text
    assert not list(folder.iterdir())


def test_a_cache_that_was_open_to_others_is_closed(source, tmp_path):
    """Before anything in it is looked at."""
    folder = tmp_path / "cache" / "foundation"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert loaded(source).number() == 7
    assert mode(folder) == 0o700


def test_a_cache_that_cannot_be_changed_is_read(source, tmp_path, monkeypatch):
    """On a read-only disk what was compiled before is loaded."""
    assert loaded(source).number() == 7

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "chmod", refuse)
    monkeypatch.setattr(native.tempfile, "TemporaryDirectory", refuse)
    assert loaded(source).number() == 7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("int number(void) { return", "error"),
        ("no compiler", "it is slower: there is no C compiler (cc, gcc or clang)"),
        ("no folder", "it is slower: [Errno 20] Not a directory"),
    ],
)
def test_what_cannot_be_compiled_is_said_in_one_line(source, tmp_path, monkeypatch, caplog, change, said):
    """With what the compiler wrote, if there is one."""
    caplog.set_level("INFO")
    if change == "no compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif change == "no folder":
        (tmp_path / "cache").write_text("a file")
    else:
        source.write_text(change)
    assert native.load(source, "it is slower") is None
    [record] = caplog.records
    assert said in record.getMessage() and "\n" not in record.getMessage()
    assert not any(path.is_dir() for path in (tmp_path / "cache").rglob("*") if path.name != "foundation")


def test_nothing_is_compiled_where_that_was_asked_for(source, tmp_path, monkeypatch, caplog):
    """``FOUNDATION_NATIVE=0`` leaves no trace."""
    caplog.set_level("INFO")
    monkeypatch.setenv("FOUNDATION_NATIVE", "0")
    assert native.load(source, "it is slower") is None
    assert not caplog.records and not (tmp_path / "cache").exists()
