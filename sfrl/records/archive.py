"""Reads what `torch.save` writes, tensors and plain types alone, from files that may lie.

`torch.load(weights_only=True)` runs no code either, but it believes sizes that a file only claims,
calls constructors that allocate what they are told to, and finds records by a zip reader of its
own, which may see others than those that were checked. Here one reader checks and reads, and what
the opcodes and names that it knows can make is bounded by the size of the file.
"""

from __future__ import annotations

import gc
import math
import os
import pickle
import struct
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

# Of the pickle, and of the archive's table of contents: a model of 5,000 tensors has a fifth of it.
_MAX_BYTES = 4 << 20
_MAX_TENSORS = 50_000
_MAX_AXES = 16

_OPCODES = (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.REDUCE, pickle.BINPERSID),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINUNICODE, pickle.BINFLOAT),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS),
)
_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
_STORAGES = {f"{name}Storage": dtype for name, dtype in _DTYPES.items()}
_NEW_DTYPES = {f"uint{bits}": getattr(torch, f"uint{bits}") for bits in (16, 32, 64)}


class ArchiveError(ValueError):
    """Not what `torch.save` writes of tensors and plain types."""


class _Storage(NamedTuple):
    content: Tensor  # [bytes] uint8
    dtype: torch.dtype


def read(path: Path) -> object:
    """The file's content, its tensors on the CPU; all checksums of what is read are verified.

    Raises:
        ArchiveError, and whatever zipfile and pickle raise of damaged files.
    """
    with path.open("rb") as file:
        _check_directory(file)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(m.compress_type != zipfile.ZIP_STORED for m in members) or (
                sum(m.file_size for m in members) > os.fstat(file.fileno()).st_size
            ):
                raise ArchiveError("it would unpack to more than its size")
            names = {member.filename for member in members}
            if len(names) < len(members):
                raise ArchiveError("two of its records have the same name")
            roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
            if len(roots) != 1 or archive.read(f"{roots[0]}byteorder") != b"little":
                raise ArchiveError("torch.save did not write it on a machine like this")
            if archive.getinfo(f"{roots[0]}data.pkl").file_size > _MAX_BYTES:
                raise ArchiveError(f"its pickle has more than {_MAX_BYTES} bytes")
            return _Unpickler(archive, roots[0]).load()


def _check_directory(file: BinaryIO) -> None:
    """zipfile makes an object of every entry, before anyone can look at their number."""
    end_size, locator_size, end64_size = 22, 20, 56
    file.seek(-min(end_size + locator_size + end64_size, file.seek(0, os.SEEK_END)), os.SEEK_END)
    tail = file.read()
    if len(tail) < end_size + locator_size + end64_size:
        raise ArchiveError(f"it has {len(tail)} bytes" if tail else "it is empty")
    signature, num_bytes, comment = struct.unpack("<4s8xL4xH", tail[-end_size:])
    if signature != b"PK\5\6" or comment:
        raise ArchiveError("it does not end as an archive of torch.save does")
    if tail[-end_size - locator_size :].startswith(b"PK\6\7"):
        [num_bytes] = struct.unpack_from("<Q", tail, 40)
    if num_bytes > _MAX_BYTES:
        raise ArchiveError(f"its table of contents has more than {_MAX_BYTES} bytes")


class _Unpickler(pickle._Unpickler):
    """In Python: the memo of the one in C has as many places as a file says."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(BytesIO(archive.read(f"{root}data.pkl")))
        self._archive, self._root = archive, root
        self._contents: dict[str, Tensor] = {}
        self._num_tensors = 0
        self._known: dict[tuple[str, str], object] = {
            ("collections", "OrderedDict"): _new_dict,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._tensor_of,
            ("torch.storage", "UntypedStorage"): torch.uint8,
            **{("torch", name): dtype for name, dtype in (_STORAGES | _NEW_DTYPES).items()},
        }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self._known:
            raise ArchiveError(f"it names {module}.{name}, which is neither tensor nor plain type")
        return self._known[module, name]

    def load_build(self) -> None:
        """What objects have besides their content, as an OrderedDict of state_dict() does."""
        self.stack.pop()  # type: ignore[attr-defined]

    dispatch = {  # noqa: RUF012
        **{opcode[0]: pickle._Unpickler.dispatch[opcode[0]] for opcode in _OPCODES},
        pickle.BUILD[0]: load_build,  # type: ignore[dict-item]
    }

    def load(self) -> object:
        was_enabled = gc.isenabled()
        gc.disable()  # of millions of lists it looks for cycles again and again: 3/4 of the time
        try:
            return super().load()
        except KeyError as error:
            raise ArchiveError(f"it has no {error}") from error
        finally:
            if was_enabled:
                gc.enable()

    def persistent_load(self, pid: object) -> _Storage:
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(num_elements)):
                pass
            case _:
                raise ArchiveError("it has a storage of no known form")
        if key not in self._contents:
            content = bytearray(self._archive.read(f"{self._root}data/{key}"))
            self._contents[key] = (
                torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0).byte()
            )
        if num_elements * dtype.itemsize != len(self._contents[key]):
            raise ArchiveError(f"a storage of {num_elements} {dtype} has less or more in the file")
        return _Storage(self._contents[key], dtype)

    def _tensor(
        self,
        storage: _Storage,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        requires_grad: bool,
        hooks: object,
    ) -> Tensor:
        return self._tensor_of(storage, offset, shape, strides, requires_grad, hooks, storage.dtype)

    def _tensor_of(
        self,
        storage: _Storage,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        _requires_grad: bool,
        _hooks: object,
        dtype: torch.dtype,
    ) -> Tensor:
        self._num_tensors += 1
        if self._num_tensors > _MAX_TENSORS:
            raise ArchiveError(f"it has more than {_MAX_TENSORS} tensors")
        numbers = [offset, *shape, *strides]
        if not all(isinstance(n, int) and 0 <= n < 2**62 for n in numbers) or not (
            len(shape) == len(strides) <= _MAX_AXES
        ):
            raise ArchiveError(f"a tensor has shape {shape!r:.60} and strides {strides!r:.60}")
        elements = storage.content.view(dtype)
        size = math.prod(shape)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if size > len(elements) or (size and last >= len(elements)):
            raise ArchiveError(f"a tensor of {size} elements has less in the file")
        return elements.as_strided(shape, strides, offset)


def _new_dict() -> dict[Any, Any]:
    return {}
