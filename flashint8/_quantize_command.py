"""`flashint8 quantize IN OUT`: makes a checkpoint int8, tensor by tensor."""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from flashint8._progress import progress_bar
from flashint8._selection import matches
from flashint8.checkpoint import Checkpoint
from flashint8.checkpoint_writer import CheckpointWriter, Spec
from flashint8.per_channel import METHODS, quantize_per_channel
from flashint8.quantize import QuantizeReport

# In a file without a model, nothing but its name tells an embedding from a linear layer.
NOT_LINEAR = ("lm_head", "*embed*", "*emb", "wte", "wpe", "*norm*")
_WEIGHTS = (
    ".safetensors",
    ".gguf",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".index.json",
    ".h5",
    ".msgpack",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "source",
        metavar="IN",
        help="a .safetensors file or index of shards; or a transformers folder (with config.json) "
        "or .gguf file, which need transformers",
    )
    parser.add_argument(
        "target",
        metavar="OUT",
        help="a .safetensors file for load_quantized; or, from a transformers model, a new folder "
        "for from_pretrained",
    )
    parser.add_argument(
        "--method", choices=METHODS, default="absmax", help="how scales are found (default absmax)"
    )
    parser.add_argument(
        "--skip",
        metavar="PATTERN",
        action="append",
        help="leave layers of this name alone; may be repeated (default: lm_head; for files "
        f"without a model: {', '.join(NOT_LINEAR)})",
    )
    parser.add_argument(
        "--min-features", type=int, default=0, metavar="N", help="leave smaller layers alone"
    )
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        help="of what stays in floating point (default: as it is; from a .gguf: float16)",
    )


def run(options: argparse.Namespace) -> int:
    """Quantises; returns the exit status. Errors are one line on stderr."""
    source, target = Path(options.source), Path(options.target)
    try:
        if source.suffix == ".gguf" or (source / "config.json").is_file():
            report = quantize_pretrained(source, target, options)
        else:
            report = quantize_file(source, target, options)
    except (OSError, ValueError, TypeError, ImportError) as error:
        print(f"flashint8 quantize: {error}", file=sys.stderr)
        return 1
    print(report)
    return 0


def quantize_file(source: Path, target: Path, options: argparse.Namespace) -> QuantizeReport:
    """From tensors to tensors, one in memory at a time, without knowing the model.

    A two-dimensional floating-point tensor called ``*.weight`` becomes int8 with a
    ``*.weight_scale`` beside it, unless its layer's name matches skip; all else is copied.
    """
    checkpoint = Checkpoint(source)
    skip = NOT_LINEAR if options.skip is None else tuple(options.skip)
    dtype = getattr(torch, options.dtype) if options.dtype else None
    report = QuantizeReport(bytes_before=sum(map(checkpoint.nbytes, checkpoint.names())))
    for name in checkpoint.names():
        reason = _why_not(checkpoint, name, skip, options.min_features)
        if reason is None:
            report.swapped.append(name.removesuffix(".weight"))
        elif reason:
            report.skipped[name.removesuffix(".weight")] = reason
    chosen = {f"{layer}.weight" for layer in report.swapped}
    specs: list[Spec] = []
    for name in checkpoint.names():
        shape, own = checkpoint.shape(name), checkpoint.dtype(name)
        if name in chosen:
            specs.append(Spec(name, torch.int8, shape))
            specs.append(Spec(f"{name}_scale", torch.float32, shape[:1]))
        else:
            scale = name.endswith("_scale")
            specs.append(
                Spec(name, dtype if dtype and own.is_floating_point and not scale else own, shape)
            )
    kept = {k: v for k, v in checkpoint.metadata.items() if not k.startswith("flashint8.")}
    with (
        CheckpointWriter(target, specs, {"format": "pt", **kept}) as writer,
        progress_bar("quantising", report.bytes_before, None) as advance,
    ):
        wanted = {spec.name: spec.dtype for spec in specs}
        for name in checkpoint.names():
            advance(0, name)
            tensor = checkpoint.tensor(name)
            if name in chosen:
                try:
                    tensor, scale_tensor = quantize_per_channel(tensor, options.method)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
                writer.write(f"{name}_scale", scale_tensor)
            writer.write(name, tensor.to(wanted[name]))
            advance(checkpoint.nbytes(name), name)
    report.bytes_after = sum(spec.dtype.itemsize * torch.Size(spec.shape).numel() for spec in specs)
    return report


def _why_not(checkpoint: Checkpoint, name: str, skip: tuple[str, ...], smallest: int) -> str | None:
    """Why a tensor is copied: words where it may be a layer's weight, "" where not; None: int8."""
    shape, dtype = checkpoint.shape(name), checkpoint.dtype(name)
    if not name.endswith(".weight") or len(shape) != 2:
        return ""
    if f"{name}_scale" in checkpoint:
        return "already quantised"
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"its weight is {str(dtype).removeprefix('torch.')}"
    if pattern := matches(name.removesuffix(".weight"), skip):
        return f"matches skip {pattern!r}"
    return f"fewer than {smallest} features" if min(shape) < smallest else None


def quantize_pretrained(source: Path, target: Path, options: argparse.Namespace) -> QuantizeReport:
    """From a transformers folder or a .gguf file to a transformers folder."""
    try:
        import transformers

        from flashint8.integrations import transformers as ours
    except ImportError as error:
        raise ImportError(f"{source} needs transformers ({error})") from error
    if target.exists():
        raise ValueError(f"{target} is there already; OUT must be a new folder")
    skip = ("lm_head",) if options.skip is None else tuple(options.skip)
    config = ours.FlashInt8Config(skip, options.min_features, options.method)
    model, report = ours.load_int8_weights(source, config, options.dtype)
    with _new_folder(target) as folder:
        model.save_pretrained(folder)
        if source.suffix == ".gguf":
            transformers.AutoTokenizer.from_pretrained(
                source.parent, gguf_file=source.name
            ).save_pretrained(folder)
        else:
            for file in source.iterdir():
                known = (folder / file.name).exists() or file.name.endswith(_WEIGHTS)
                if file.is_file() and not known:
                    shutil.copyfile(file, folder / file.name)
    return report


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder beside, which takes the name at the end; after an exception it is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield part
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o777 & ~umask)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
