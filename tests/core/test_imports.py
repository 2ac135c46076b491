"""Garbage is collected again after the imports, whatever they end in, unless the user had switched that off."""

from __future__ import annotations

import gc

import pytest

from foundation.core.imports import many_imports


def test_collection_is_off_within_and_on_after() -> None:
    """An import that fails switches it on again too."""
    assert gc.isenabled()
    with many_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), many_imports():
        raise ImportError
    assert gc.isenabled()


def test_what_the_user_switched_off_stays_off() -> None:
    """It is the user's program."""
    gc.disable()
    try:
        with many_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
