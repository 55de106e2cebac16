"""Read pickles of numbers without running any code that they contain."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from combicam.errors import ModelError, first_line

# Modules of NumPy 1 and of NumPy 2: files keep the names of the version that wrote them.
_CORES = ("numpy.core.", "numpy._core.")


def load_numbers(path: Path) -> Any:
    """Read a pickle of numbers, lists, tuples, dicts and NumPy arrays of numbers.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: no such file.
        ModelError: it names anything else, which is not called, or it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"pickle: expected a file, got {path}")
    try:
        return _Numbers(io.BytesIO(path.read_bytes())).load()
    except ModelError as error:
        raise ModelError(f"pickle {path}: {error}") from error
    except Exception as error:  # a damaged pickle may fail in any way
        raise ModelError(
            f"pickle {path}: expected a pickle of numbers, got one that cannot be read "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error


# Of Python, because that of C makes room for as many values as a damaged file claims to have.
PlainUnpickler: Any = pickle._Unpickler


class _Numbers(PlainUnpickler):  # type: ignore[misc]
    def find_class(self, module: str, name: str) -> Any:
        core = next((core for core in _CORES if module.startswith(core)), "")
        allowed = _ALLOWED.get((f"core.{module[len(core) :]}" if core else module, name))
        if allowed is None:
            raise ModelError(
                f"expected only numbers and NumPy arrays, got {module}.{name}, which was not "
                "called; if you trust the file, convert it to CSV"
            )
        return allowed

    def persistent_load(self, pid: Any) -> Any:
        raise ModelError(f"expected only numbers, got a persistent reference ({pid!r})")


class _Type:
    """Replaces ``numpy.dtype``, for numbers only: arrays of objects would be memory addresses."""

    def __init__(self, name: Any, *_flags: Any) -> None:
        self.numbers = np.dtype(name) if isinstance(name, str) else np.dtype("O")
        if self.numbers.kind not in "biuf":
            raise ModelError(f"expected arrays of numbers, got the type {name!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise ModelError(f"expected a byte order, got {order!r}")
        self.numbers = self.numbers.newbyteorder(order)


def _scalar(kind: _Type, data: bytes) -> Any:
    return np.frombuffer(data, kind.numbers)[0]


class _Array(np.ndarray[Any, np.dtype[Any]]):
    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, kind, is_fortran, data = state
        super().__setstate__((version, shape, kind.numbers, is_fortran, data))


def _reconstruct(*_: Any) -> _Array:
    return _Array((0,))


def _frombuffer(data: Any, kind: _Type, shape: tuple[int, ...], order: Any, *_: Any) -> Any:
    if order not in ("C", "F"):
        raise ModelError(f"expected an array in the order C or F, got {order!r}")
    return np.frombuffer(data, kind.numbers).reshape(shape, order=order)


def _latin1(text: str, encoding: str) -> bytes:
    """Decode bytes as protocol 2 writes them; other codecs may run code."""
    if encoding != "latin1":
        raise ModelError(f"expected bytes as latin1, got {encoding!r}")
    return text.encode("latin1")


# Names in pickles -> what is called instead.
_ALLOWED = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): "ndarray",  # named as an argument, never called
    ("core.multiarray", "scalar"): _scalar,
    ("core.multiarray", "_reconstruct"): _reconstruct,
    ("core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _latin1,
}


def number_globals() -> list[tuple[Any, str]]:
    """What NumPy's scalars in a torch file need, for ``torch.serialization.safe_globals``."""
    return [(_Type, "numpy.dtype"), *((_scalar, f"{core}multiarray.scalar") for core in _CORES)]
