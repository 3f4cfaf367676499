"""safetensors checkpoints, read one tensor at a time: a file, a sharded index, or a folder of them.

The format (https://huggingface.co/docs/safetensors): 8 bytes of header length, little-endian; a
JSON header of dtype, shape and place of each tensor; the data. Nothing here runs code from a file.
"""

import ctypes
import json
import math
import mmap
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MAX_HEADER = 100_000_000  # bytes; the format's own limit
CRC_KEY = "flashint8.crc32"  # metadata that our files have: JSON of each tensor's CRC-32, in hex
TIED_KEY = "flashint8.tied"  # metadata likewise: JSON of names left out, and whose tensor they are
INDEX_SUFFIX = ".safetensors.index.json"
_OWN_PAGES = 1 << 20  # bytes
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: file, byte range in it, dtype, shape, and its check sum if known."""

    file: Path
    begin: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    crc32: str | None


class Checkpoint:
    """The tensors of a safetensors checkpoint by name; each is read when it is asked for.

    Construction reads and validates every header (of every shard), so that a broken checkpoint is
    refused before anything was done with it; it reads no tensor.

    Args:
        path: a ``.safetensors`` file, a ``.safetensors.index.json`` that names shards beside it, or
            a folder with one of them (an index is preferred, then ``model.safetensors``, then the
            only ``.safetensors`` file).

    Attributes:
        path: the file, index or folder, as a Path.
        files: the safetensors files, in the order they were found.
        metadata: the ``__metadata__`` strings of the files, later ones over earlier ones.
        tied: names that `save_quantized` left out, and the name of the tensor that each is.

    Raises:
        FileNotFoundError: path, or a shard that its index names, is not there.
        ValueError: it is no safetensors checkpoint, or a header or an index is broken (truncated,
            not JSON, sizes that do not fit); the message names the file and the tensor.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.metadata: dict[str, str] = {}
        self.tied: dict[str, str] = {}
        self._entries: dict[str, Entry] = {}
        self._stamps: dict[Path, tuple[int, ...]] = {}
        source = _find(self.path)
        if not source.name.endswith(".json"):
            self._entries = self._read_header(source)
            return
        weight_map = _read_index(source)
        headers: dict[str, dict[str, Entry]] = {}
        for name, shard in weight_map.items():
            if shard not in headers:
                if not (source.parent / shard).is_file():
                    raise FileNotFoundError(
                        f"{source}: names the shard {shard!r}, which is not there"
                    )
                headers[shard] = self._read_header(source.parent / shard)
            if name not in headers[shard]:
                raise ValueError(f"{source}: says that {name!r} is in {shard!r}, which has no such")
            self._entries[name] = headers[shard][name]

    @property
    def files(self) -> list[Path]:
        return list(self._stamps)

    def names(self) -> list[str]:
        """Every tensor's name, in the order of the file or the index."""
        return list(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a tensor; KeyError if there is no such name."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor; KeyError if there is no such name."""
        return self._entry(name).dtype

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor; KeyError if there is no such name."""
        entry = self._entry(name)
        return entry.end - entry.begin

    def tensor(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """Reads one tensor: contiguous, its memory its own (no map of the file stays behind).

        Args:
            name: of the tensor.
            device: where it goes; on "meta" nothing is read.

        Raises:
            KeyError: there is no such name.
            ValueError: the file has changed since its header was read, or its check sum (files that
                flashint8 wrote have one for each tensor) is not that of the data.
        """
        entry = self._entry(name)
        device = torch.device(device)
        if device.type == "meta":
            return torch.empty(entry.shape, dtype=entry.dtype, device=device)
        tensor = _empty(entry)
        with entry.file.open("rb") as file:
            if _stamp(file) != self._stamps[entry.file]:
                raise ValueError(f"{entry.file}: the file has changed since it was opened")
            file.seek(entry.begin)
            if _read_into(file, tensor) != entry.end - entry.begin:
                raise ValueError(f"{entry.file}: {name!r} could not be read whole")
        if entry.crc32 not in (None, f"{zlib.crc32(tensor_bytes(tensor)):08x}"):
            raise ValueError(f"{entry.file}: {name!r} is corrupted: its check sum is wrong")
        return tensor.to(device)

    def _entry(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise KeyError(f"{self.path}: no tensor {name!r}") from None

    def _read_header(self, path: Path) -> dict[str, Entry]:
        with path.open("rb") as file:
            self._stamps[path] = _stamp(file)
            size = self._stamps[path][0]
            length = int.from_bytes(file.read(8), "little") if size >= 8 else -1
            if length < 2 or length > MAX_HEADER:
                raise ValueError(f"{path}: not a safetensors file (its header's length is wrong)")
            if 8 + length > size:
                raise ValueError(
                    f"{path}: truncated: a header of {length} bytes in a file of {size}"
                )
            header = _parse_json(path, file.read(length))
        metadata = _strings(path, "__metadata__", header.pop("__metadata__", {}))
        self.metadata.update(metadata)
        ours = {
            key: _strings(path, key, _parse_json(path, metadata.get(key, "{}").encode()))
            for key in (TIED_KEY, CRC_KEY)
        }
        self.tied.update(ours[TIED_KEY])
        data, sums = 8 + length, ours[CRC_KEY]
        entries = {
            name: _parse_entry(path, name, value, data, sums.get(name))
            for name, value in header.items()
        }
        _check_layout(path, entries, data, size)
        return entries


def _find(path: Path) -> Path:
    """The safetensors file or the index that `path` means."""
    if path.is_dir():
        indices = sorted(path.glob("*" + INDEX_SUFFIX))
        files = sorted(path.glob("*.safetensors"))
        for found, preferred in (
            (indices, "model" + INDEX_SUFFIX),
            (files, "model.safetensors"),
        ):
            if path / preferred in found:
                return path / preferred
            if len(found) == 1:
                return found[0]
            if found:
                names = ", ".join(file.name for file in found)
                raise ValueError(f"{path}: which of these is meant? {names}: name the file")
        pickles = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES)
        hint = f"; {', '.join(pickles)}: pickles are not read" if pickles else ""
        raise FileNotFoundError(f"{path}: no .safetensors file in this folder{hint}")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.suffix in _PICKLES:
        raise ValueError(f"{path}: pickles are not read, only .safetensors")
    if not path.name.endswith((".safetensors", INDEX_SUFFIX)):
        raise ValueError(f"{path}: expected a .safetensors file, a {INDEX_SUFFIX} or a folder")
    return path


def _read_index(path: Path) -> dict[str, str]:
    index = _parse_json(path, path.read_bytes())
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path}: broken index: it has no weight_map")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".", ".."):
            raise ValueError(f"{path}: broken index: {name!r} is in {shard!r}, not a file beside")
        if not shard.endswith(".safetensors"):
            raise ValueError(f"{path}: {name!r} is in {shard!r}, not a .safetensors file")
    return weight_map


def _parse_json(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a name occurs twice")
        return result

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: broken header or index: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: broken header or index: not a JSON object")
    return value


def _strings(path: Path, what: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ValueError(f"{path}: broken header: {what} must map strings to strings")
    return value


def _parse_entry(path: Path, name: str, value: Any, data: int, crc32: str | None) -> Entry:
    place = f"{path}: broken header: {name!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{place} must have dtype, shape and data_offsets")
    dtype, shape, offsets = DTYPES.get(str(value["dtype"])), value["shape"], value["data_offsets"]
    if dtype is None:
        raise ValueError(f"{place} has dtype {value['dtype']!r}, which is not known here")
    if not _are_sizes(shape):
        raise ValueError(f"{place} has shape {shape!r}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[1] < offsets[0]:
        raise ValueError(f"{place} has data_offsets {offsets!r}")
    nbytes = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise ValueError(
            f"{place} of {value['dtype']} {tuple(shape)} takes {nbytes} bytes, data_offsets give "
            f"{offsets[1] - offsets[0]}"
        )
    return Entry(path, data + offsets[0], data + offsets[1], dtype, tuple(shape), crc32)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 2**63 for x in value)


def _check_layout(path: Path, entries: Mapping[str, Entry], data: int, size: int) -> None:
    """The tensors fill the data without gap or overlap, to the file's last byte."""
    at = data
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            kind = "overlaps another" if entry.begin < at else "leaves a gap before it"
            raise ValueError(f"{path}: broken header: {name!r} {kind}")
        at = entry.end
    if size != at:
        kind = "truncated" if size < at else "too long"
        raise ValueError(f"{path}: {kind}: {size} bytes, its header describes {at}")


def _empty(entry: Entry) -> Tensor:
    """Memory for a tensor. Large ones get pages of their own, which go back to the system at once.

    malloc would keep them, and give parts of them to the int8 tensors made in between: the holes
    then grow with every tensor that is read.
    """
    nbytes = entry.end - entry.begin
    if nbytes < _OWN_PAGES:
        return torch.empty(entry.shape, dtype=entry.dtype)
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=entry.dtype).view(entry.shape)


def _stamp(file: BinaryIO) -> tuple[int, ...]:
    """What tells a file from a changed one; its size first."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev


def _read_into(file: BinaryIO, tensor: Tensor) -> int:
    """Fills a contiguous CPU tensor from a file; the number of bytes read."""
    view = tensor_bytes(tensor)
    done = 0
    while done < len(view):
        count = file.readinto(view[done : done + 2**30])  # type: ignore[attr-defined]
        if not count:
            break
        done += count
    return done


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A contiguous CPU tensor's memory; valid as long as the tensor is."""
    if tensor.nbytes == 0:
        return memoryview(bytearray())
    return memoryview((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")
