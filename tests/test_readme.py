"""README.md: its Python examples run, its links lead somewhere, its names exist."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import flashint8
from flashint8 import cli

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks() -> list[tuple[int, str]]:
    """(line of its first statement, source) of each block."""
    text = README.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(1)) + 1, m[1]) for m in BLOCK.finditer(text)]


BLOCKS = blocks()


def prepare(folder: Path, source: str) -> None:
    """What a block takes as given: a transformers model, in full and in int8; checkpoints."""
    if "my-" in source or "transformers" in source:
        pytest.importorskip("transformers", minversion="5.23")
        from hf_models import make

        model = make("llama")
        model.save_pretrained(folder / "my-model")
        flashint8.quantize_model(model)
        model.save_pretrained(folder / "my-int8-model")
    if "bf16.safetensors" in source:
        flashint8.save_quantized(torch.nn.Linear(8, 8).bfloat16(), folder / "bf16.safetensors")
    if "out/ckpt.pt" in source:  # what nanoGPT's user has: model.py and a checkpoint
        import nanogpt_model

        (folder / "model.py").write_text(Path(nanogpt_model.__file__).read_text(encoding="utf-8"))
        config = nanogpt_model.GPTConfig()
        (folder / "out").mkdir()
        checkpoint = {
            "model": nanogpt_model.GPT(config).state_dict(),
            "model_args": vars(config),
        }
        torch.save(checkpoint, folder / "out" / "ckpt.pt")


@pytest.mark.parametrize(("line", "source"), BLOCKS, ids=[f"line{line}" for line, _ in BLOCKS])
def test_example_runs(
    line: int, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block alone, on the CPU; line numbers of a failure are README's."""
    prepare(tmp_path, source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "model", raising=False)
    code = compile("\n" * (line - 1) + source, str(README), "exec")
    default = torch.get_default_dtype()
    exec(code, {"__name__": "readme"})
    assert torch.get_default_dtype() == default


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `flashint8 ...` line of the shell blocks."""
    shell = re.findall(r"^```sh\n(.*?)^```$", README.read_text(encoding="utf-8"), re.S | re.M)
    commands = [c for c in "".join(shell).splitlines() if c.startswith("flashint8 ")]
    assert commands
    prepare(tmp_path, "".join(commands))
    monkeypatch.chdir(tmp_path)
    for command in commands:
        words = shlex.split(command, comments=True)[1:]
        assert cli.main(words) == 0, command


def test_every_public_name_is_there() -> None:
    text = README.read_text(encoding="utf-8")
    public = [n for n in flashint8.__all__ if n not in ("Plan", "QuantizeReport", "__version__")]
    missing = [name for name in public if not re.search(rf"\b{name}\b", text)]
    assert not missing, f"README.md says nothing of {missing}"
    examples = "".join(source for _, source in BLOCKS)
    unused = [name for name in public if f"flashint8.{name}" not in examples]
    assert not unused, f"README.md has no example of {unused}"


@pytest.mark.parametrize("name", ["README.md", "docs/design.md", "docs/performance.md"])
def test_links_lead_to_files(name: str) -> None:
    """Plots are drawn after a run on the device they show, and are checked once they are there."""
    path = ROOT / name
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert targets, f"{name} has no links"
    for target in targets:
        local = "://" not in target and not target.startswith(("docs/plots/", "plots/"))
        assert not local or (path.parent / target).exists(), f"{name}: {target}"
