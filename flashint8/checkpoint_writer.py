"""Writes a safetensors file tensor by tensor, and lets it appear under its name only when whole."""

import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from flashint8.checkpoint import CRC_KEY, DTYPES, tensor_bytes

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Spec(NamedTuple):
    """A tensor to come: name, type and sizes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class CheckpointWriter:
    """A safetensors file in the making; use it in a ``with`` block.

    The header is known before the first tensor is, so memory stays at one tensor. Each tensor's
    CRC-32 goes into the metadata, and `Checkpoint` checks it. Everything is written to a file
    beside, which takes the name at the end of the block; after an exception it is removed, and what
    stood under that name is untouched.

    Args:
        path: of the file, ending in ".safetensors"; its folder exists.
        specs: every tensor that `write` will get, in any order.
        metadata: strings for the header.

    Raises:
        ValueError: path has another ending or is a folder, a dtype has no name in the format, or a
            name occurs twice; when the block ends: a tensor was not written.
        FileNotFoundError: the folder is not there.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        specs: Sequence[Spec],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix != ".safetensors" or self.path.is_dir():
            raise ValueError(f"{self.path}: expected the name of a .safetensors file")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"{self.path}: there is no folder {self.path.parent}")
        self._specs = {spec.name: spec for spec in specs}
        if len(self._specs) != len(specs):
            raise ValueError(f"{self.path}: a tensor's name occurs twice")
        for spec in specs:
            if spec.dtype not in _NAMES:
                raise ValueError(f"{spec.name}: {spec.dtype} cannot be written to safetensors")
        self._metadata = dict(metadata or {})
        self._crc: dict[str, int] = {}
        # The widest elements first, so that each tensor begins at a multiple of its element.
        self._begins: dict[str, int] = {}
        end = 0
        for spec in sorted(specs, key=lambda s: -s.dtype.itemsize):
            self._begins[spec.name] = end
            end += math.prod(spec.shape) * spec.dtype.itemsize
        self._size = end
        self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._file: BinaryIO | None = None
        self._data = 0

    def __enter__(self) -> "CheckpointWriter":
        header = self._header()
        self._data = len(header)
        self._file = self._part.open("xb")
        self._file.write(header)
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes one tensor, from any device.

        Raises:
            KeyError: the name was not announced.
            ValueError: its dtype or shape is another, or it was written before.
        """
        spec = self._specs[name]
        if tensor.dtype != spec.dtype or tuple(tensor.shape) != spec.shape or name in self._crc:
            raise ValueError(
                f"{self.path}: {name!r} was announced once as {spec.dtype} {spec.shape}, got "
                f"{tensor.dtype} {tuple(tensor.shape)}"
            )
        assert self._file is not None, "outside of the with block"
        host = tensor.detach().to("cpu").contiguous()
        view = tensor_bytes(host)
        self._crc[name] = zlib.crc32(view)
        self._file.seek(self._data + self._begins[name])
        self._file.write(view)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._file is not None
        try:
            with self._file:
                if kind is None:
                    self._finish(self._file)
            if kind is None:
                self._part.replace(self.path)
        finally:
            self._part.unlink(missing_ok=True)

    def _finish(self, file: BinaryIO) -> None:
        missing = [name for name in self._specs if name not in self._crc]
        if missing:
            raise ValueError(f"{self.path}: {missing[0]!r} was not written")
        file.truncate(self._data + self._size)
        file.seek(0)
        file.write(self._header())
        file.flush()
        os.fsync(file.fileno())

    def _header(self) -> bytes:
        """Of the same length before the check sums are known and after."""
        sums = {name: f"{self._crc.get(name, 0):08x}" for name in self._begins}
        header: dict[str, object] = {"__metadata__": {**self._metadata, CRC_KEY: json.dumps(sums)}}
        for name, begin in self._begins.items():
            _, dtype, shape = self._specs[name]
            end = begin + math.prod(shape) * dtype.itemsize
            header[name] = {
                "dtype": _NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text
