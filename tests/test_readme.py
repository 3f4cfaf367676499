"""README.md: its Python examples run, its links lead somewhere, its names exist."""

from __future__ import annotations

import inspect
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


def mapping_rows() -> list[tuple[str, str]]:
    """The code of the columns "you have" and "here" of the table under "If you know these"."""
    text = README.read_text(encoding="utf-8").partition("### If you know these")[2]
    rows = re.findall(r"^\| (.*?) \| (`.*?) \| .*? \|$", text.partition("\n## ")[0], re.M)
    return [(have, here) for have, here in rows]


MAPPING = mapping_rows()


@pytest.mark.parametrize(("have", "here"), MAPPING, ids=[have for have, _ in MAPPING])
def test_calls_of_the_mapping_table(have: str, here: str, tmp_path: Path) -> None:
    """What the table gives for other libraries' calls runs, and says what they say."""
    pytest.importorskip("transformers", minversion="5.23")
    import flashint8.integrations.transformers as fi8

    path = tmp_path / "x.safetensors"
    flashint8.save_quantized(torch.nn.Sequential(torch.nn.Linear(8, 8)), path)
    tall = have.startswith("FlashAttention: `flash_attn_func")  # (B, T, H, D)
    q, k = (torch.randn(2, 5, 4, 8), torch.randn(2, 9, 2, 8))
    if not tall:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    names = {"flashint8": flashint8, "fi8": fi8, "q": q, "k": k, "v": k.flip(-1), "n": None}
    names |= {"k_cache": k, "v_cache": k.flip(-1), "f": lambda name, layer: True, "folder": path}
    names["model"] = torch.nn.Sequential(torch.nn.Linear(8, 8))
    n = torch.tensor([7, 9], dtype=torch.int32)
    for code in re.findall(r"`(.*?)`", here):
        if "(" not in code:  # an argument
            name = code.partition("=")[0]
            known = inspect.signature(flashint8.attention).parameters
            assert name in known or code == f'attn_implementation="{fi8.ATTENTION}"'
            continue
        if "QuantLinear" in code:
            assert eval(code, {**names, "k": 8, "n": 4}).weight.shape == (4, 8)
            continue
        cached = "k_cache" in code
        got = eval(code, {**names, "n": n} if cached else names)
        if "attention" in code:
            rows, columns = torch.arange(5)[:, None], torch.arange(9)
            ends = n[:, None, None] if cached else torch.full((2, 1, 1), 9)
            seen = columns <= rows + ends - 5  # causal, aligned to the end, as FlashAttention's
            heads = (t.transpose(1, 2) if tall else t for t in (q, k, k.flip(-1)))
            want = torch.nn.functional.scaled_dot_product_attention(
                *heads, attn_mask=seen[:, None], enable_gqa=True
            )
            torch.testing.assert_close(got, want.transpose(1, 2) if tall else want)
        elif "model" in code:
            assert isinstance(names["model"][0], flashint8.QuantLinear)


def test_the_mapping_table_is_whole() -> None:
    text = "".join(have for have, _ in MAPPING)
    for library in ("torchao", "bitsandbytes", "FlashAttention", "compressed-tensors"):
        assert library in text, library
    assert len(MAPPING) >= 10


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
