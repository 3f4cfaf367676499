"""The safetensors reader and writer: what they accept; a broken file is refused at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checking import assert_same_bits
from torch import Tensor

from flashint8.checkpoint import DTYPES, Checkpoint
from flashint8.checkpoint_writer import CheckpointWriter, Spec

ROOT = Path(__file__).resolve().parents[1]


def write_raw(path: Path, header: Any, data: bytes, length: int | None = None) -> None:
    """A safetensors file with any header, and any length told of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    told = len(text) if length is None else length
    path.write_bytes(told.to_bytes(8, "little") + text + data)


def entry(dtype: str, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def raw(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8)


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    specs = [Spec(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]
    with CheckpointWriter(path, specs) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


def every_dtype() -> dict[str, Tensor]:
    bits = torch.randint(0, 256, (4, 6, 8), dtype=torch.uint8)
    tensors = {
        name: bits.flatten(1).clone().view(dtype) if name != "BOOL" else bits > 127
        for name, dtype in DTYPES.items()
    }
    return {
        **tensors,
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
        "a b.ü": bits[0].clone(),
    }


def test_round_trip_of_every_dtype(tmp_path: Path) -> None:
    tensors = every_dtype()
    write(tmp_path / "x.safetensors", tensors)
    checkpoint = Checkpoint(tmp_path / "x.safetensors")
    assert sorted(checkpoint.names()) == sorted(tensors)
    assert len(checkpoint) == len(tensors)
    for name, tensor in tensors.items():
        assert name in checkpoint
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.dtype(name) == tensor.dtype
        assert checkpoint.nbytes(name) == tensor.nbytes
        got = checkpoint.tensor(name)
        assert got.dtype == tensor.dtype
        assert torch.equal(raw(got), raw(tensor)), name
    assert checkpoint.tensor("F32", device="meta").is_meta
    with pytest.raises(KeyError, match="no tensor 'other'"):
        checkpoint.tensor("other")


def test_the_library_reads_ours_and_we_read_its(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = {n: t for n, t in every_dtype().items() if not n.startswith("F8")}
    write(tmp_path / "ours.safetensors", tensors)
    for name, tensor in safetensors.load_file(tmp_path / "ours.safetensors").items():
        assert torch.equal(raw(tensor), raw(tensors[name])), name
    safetensors.save_file(tensors, tmp_path / "its.safetensors", metadata={"format": "pt"})
    checkpoint = Checkpoint(tmp_path / "its.safetensors")
    assert checkpoint.metadata == {"format": "pt"}
    assert sorted(checkpoint.names()) == sorted(tensors)
    for name, tensor in tensors.items():
        got = checkpoint.tensor(name)
        assert torch.equal(raw(got), raw(tensor)), name


def test_to_device(device: str, tmp_path: Path) -> None:
    tensor = torch.randn(5, 7, dtype=torch.float16).to(device)
    write(tmp_path / "x.safetensors", {"t": tensor.t()})
    got = Checkpoint(tmp_path / "x.safetensors").tensor("t", device)
    assert got.device.type == device
    assert_same_bits(got, tensor.t().contiguous(), "from disk")


def shards(folder: Path) -> dict[str, Tensor]:
    tensors = {f"layer.{i}.weight": torch.randn(3, 4) for i in range(5)}
    names = list(tensors)
    parts = {"m-1.safetensors": names[:2], "m-2.safetensors": names[2:]}
    for file, part in parts.items():
        write(folder / file, {name: tensors[name] for name in part})
    weight_map = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {"total_size": 240}, "weight_map": weight_map}
    (folder / "m.safetensors.index.json").write_text(json.dumps(index))
    return tensors


def test_shards(tmp_path: Path) -> None:
    tensors = shards(tmp_path)
    for path in (tmp_path, tmp_path / "m.safetensors.index.json"):
        checkpoint = Checkpoint(path)
        assert checkpoint.names() == list(tensors)
        assert [file.name for file in checkpoint.files] == ["m-1.safetensors", "m-2.safetensors"]
        for name, tensor in tensors.items():
            assert torch.equal(checkpoint.tensor(name), tensor)


def test_which_file_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \.safetensors file"):
        Checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin: pickles are not read"):
        Checkpoint(tmp_path)
    with pytest.raises(ValueError, match="pickles are not read"):
        Checkpoint(tmp_path / "pytorch_model.bin")
    write(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    assert Checkpoint(tmp_path).names() == ["a"]
    write(tmp_path / "b.safetensors", {"b": torch.ones(1)})
    with pytest.raises(ValueError, match=r"which of these is meant\? a\.safetensors, b\.safe"):
        Checkpoint(tmp_path)
    write(tmp_path / "model.safetensors", {"c": torch.ones(1)})
    assert Checkpoint(tmp_path).names() == ["c"]
    with pytest.raises(FileNotFoundError, match="no such file"):
        Checkpoint(tmp_path / "none.safetensors")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ValueError, match=r"expected a \.safetensors file"):
        Checkpoint(tmp_path / "x.txt")


FOUR = b"\0\0\0\0"
BROKEN: dict[str, tuple[Any, bytes, str]] = {
    "not JSON": (b"{]", b"", "broken header"),
    "not UTF-8": (b'{"\xff":1}', b"", "broken header"),
    "a list": ([], b"", "not a JSON object"),
    "deep": (b"[" * 100_000, b"", "broken header"),
    "twice": (b'{"a":1,"a":2}', b"", "occurs twice"),
    "metadata": ({"__metadata__": {"a": 1}}, b"", "__metadata__ must map strings"),
    "our JSON": ({"__metadata__": {"flashint8.tied": "{"}}, b"", "broken header"),
    "our names": ({"__metadata__": {"flashint8.tied": '{"a":1}'}}, b"", "tied must map strings"),
    "our sums": ({"__metadata__": {"flashint8.crc32": '{"a":1}'}}, b"", "crc32 must map strings"),
    "no dtype": ({"a": {"shape": [], "data_offsets": [0, 4]}}, FOUR, "must have dtype"),
    "dtype": ({"a": entry("F7", [1], 0, 4)}, FOUR, "dtype 'F7'"),
    "dtype list": ({"a": {**entry("F32", [1], 0, 4), "dtype": []}}, FOUR, "dtype"),
    "negative": ({"a": entry("F32", [-1], 0, 4)}, FOUR, "has shape"),
    "fraction": ({"a": entry("F32", [1.0], 0, 4)}, FOUR, "has shape"),
    "true": ({"a": entry("F32", [True], 0, 4)}, FOUR, "has shape"),
    "huge": ({"a": entry("F32", [2**62, 2**62], 0, 4)}, FOUR, "takes .* bytes"),
    "too few": ({"a": entry("F32", [2], 0, 4)}, FOUR, "takes 8 bytes, data_offsets give 4"),
    "backwards": ({"a": entry("F32", [0], 4, 0)}, FOUR, "has data_offsets"),
    "three": ({"a": {**entry("F32", [1], 0, 4), "data_offsets": [0, 4, 8]}}, FOUR, "data_offsets"),
    "overlap": (
        {"a": entry("I32", [1], 0, 4), "b": entry("I32", [1], 0, 4)},
        FOUR,
        "'b' overlaps",
    ),
    "gap": ({"a": entry("I32", [1], 4, 8)}, FOUR + FOUR, "'a' leaves a gap"),
    "truncated": ({"a": entry("I32", [2], 0, 8)}, FOUR, "truncated"),
    "too long": ({"a": entry("I32", [1], 0, 4)}, FOUR + b"x", "too long"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_headers_are_refused(tmp_path: Path, kind: str) -> None:
    header, data, message = BROKEN[kind]
    write_raw(tmp_path / "x.safetensors", header, data)
    with pytest.raises(ValueError, match=message) as caught:
        Checkpoint(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(caught.value)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    """At every length the file could have been cut to."""
    path = tmp_path / "x.safetensors"
    write(path, {"a": torch.arange(6), "b": torch.ones(3, dtype=torch.int8)})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"truncated|not a safetensors file|gap"):
            Checkpoint(path)
    for told in (0, 1, 2**62, 2**64 - 1, 100_000_001):
        write_raw(path, {}, b"", told)
        with pytest.raises(ValueError, match="not a safetensors file"):
            Checkpoint(path)


def test_every_flipped_byte_of_the_data_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write(path, {"a": torch.arange(4, dtype=torch.int8), "b": torch.ones(2)})
    whole = bytearray(path.read_bytes())
    for place in range(len(whole) - 12, len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        checkpoint = Checkpoint(path)
        with pytest.raises(ValueError, match=r"'[ab]' is corrupted: its check sum is wrong"):
            [checkpoint.tensor(name) for name in checkpoint.names()]


def change_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "m.safetensors.index.json"
    index = json.loads(path.read_text())
    index = change(index) or index
    path.write_text(json.dumps(index))


INDEX = {
    "no map": (lambda index: {"a": 1}, ValueError, "no weight_map"),
    "missing shard": (
        lambda index: index["weight_map"].update(x="m-3.safetensors"),
        FileNotFoundError,
        "names the shard 'm-3.safetensors', which is not there",
    ),
    "wrong shard": (
        lambda index: index["weight_map"].update(x="m-1.safetensors"),
        ValueError,
        "says that 'x' is in 'm-1.safetensors'",
    ),
    "other folder": (
        lambda index: index["weight_map"].update(x="../m-1.safetensors"),
        ValueError,
        "not a file beside",
    ),
    "pickle": (
        lambda index: index["weight_map"].update(x="m-1.bin"),
        ValueError,
        "not a .safetensors file",
    ),
    "number": (lambda index: index["weight_map"].update(x=3), ValueError, "not a file beside"),
}


@pytest.mark.parametrize("kind", INDEX)
def test_broken_indices_are_refused(tmp_path: Path, kind: str) -> None:
    change, error, message = INDEX[kind]
    shards(tmp_path)
    change_index(tmp_path, change)
    with pytest.raises(error, match=message):
        Checkpoint(tmp_path)


def test_a_file_that_changes_after_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write(path, {"a": torch.ones(4)})
    checkpoint = Checkpoint(path)
    write(path, {"a": torch.zeros(4)})
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match="has changed since it was opened"):
        checkpoint.tensor("a")


def test_writing_is_atomic(tmp_path: Path) -> None:
    """An error on the way leaves the old file, and nothing beside it."""
    path = tmp_path / "x.safetensors"
    write(path, {"a": torch.ones(4)})
    before = path.read_bytes()
    specs = [Spec("a", torch.float32, (4,)), Spec("b", torch.float32, (4,))]
    with pytest.raises(KeyError, match="other"), CheckpointWriter(path, specs) as writer:
        writer.write("other", torch.zeros(4))
    with (
        pytest.raises(ValueError, match="'b' was not written"),
        CheckpointWriter(path, specs) as writer,
    ):
        writer.write("a", torch.zeros(4))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write(path, {"a": torch.ones(4)})
    before = path.read_bytes()
    program = (
        "import os, torch\n"
        "from flashint8.checkpoint_writer import CheckpointWriter, Spec\n"
        "specs = [Spec(name, torch.float32, (4,)) for name in 'ab']\n"
        f"with CheckpointWriter({str(path)!r}, specs) as writer:\n"
        "    writer.write('a', torch.zeros(4))\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert done.returncode == -9
    assert path.read_bytes() == before
    write(path, {"a": torch.zeros(4)})  # what it left behind is in nobody's way
    assert Checkpoint(path).tensor("a").tolist() == [0, 0, 0, 0]


def test_the_writer_refuses(tmp_path: Path) -> None:
    spec = Spec("a", torch.float32, (4,))
    with pytest.raises(ValueError, match=r"name of a \.safetensors file"):
        CheckpointWriter(tmp_path / "x.bin", [spec])
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        CheckpointWriter(tmp_path / "none" / "x.safetensors", [spec])
    with pytest.raises(ValueError, match="twice"):
        CheckpointWriter(tmp_path / "x.safetensors", [spec, spec])
    with pytest.raises(ValueError, match="complex64 cannot be written"):
        CheckpointWriter(tmp_path / "x.safetensors", [Spec("a", torch.complex64, (4,))])
    for wrong in (torch.ones(5), torch.ones(4, dtype=torch.float16)):
        with (
            pytest.raises(ValueError, match="'a' was announced once as"),
            CheckpointWriter(tmp_path / "x.safetensors", [spec]) as writer,
        ):
            writer.write("a", wrong)


def test_random_damage_is_a_value_error(tmp_path: Path) -> None:
    """400 damaged files: refused, or every tensor reads; nothing else happens."""
    path = tmp_path / "x.safetensors"
    write(path, {"a": torch.arange(6), "b": torch.ones(3, dtype=torch.int8), "c": torch.ones(2, 2)})
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for place in torch.randint(0, header, (int(torch.randint(1, 5, ())),)).tolist():
            damaged[place] = int(torch.randint(0, 256, ()))
        path.write_bytes(damaged)
        try:
            checkpoint = Checkpoint(path)
            for name in checkpoint.names():
                checkpoint.tensor(name)
        except ValueError:
            refused += 1
    assert refused > 300
