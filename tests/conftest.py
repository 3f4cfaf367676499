"""Options, markers, seeds and the `device` fixture that every test file shares."""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Generator
from pathlib import Path

import checking
import pytest
import torch

SANITIZER_LIMIT = 60  # cases; compute-sanitizer runs each of them hundreds of times slower


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("flashint8")
    group.addoption("--seed", type=int, default=20261122, help="seed of every random input")
    group.addoption(
        "--differential", type=int, default=60, help="random configurations per operator and device"
    )
    group.addoption(
        "--require-cuda", action="store_true", help="fail, not skip, where CUDA cannot be tested"
    )
    group.addoption(
        "--reference-on-cpu",
        action="store_true",
        help="compute references on the CPU, so that a sanitizer sees few kernels but ours",
    )
    group.addoption(
        "--share",
        type=Path,
        metavar="FOLDER",
        help="leave out every test that another run with this folder has begun",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "sanitizer: small cases that together run every kernel path, for sanitizers"
    )
    config.addinivalue_line("markers", "slow: takes more than about ten seconds on two CPU cores")
    checking.reference_on_cpu = config.getoption("--reference-on-cpu")
    # The 16-bit yardstick sums in float32, as the kernels do.
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def pytest_report_header(config: pytest.Config) -> list[str]:
    reason = cuda_reason()
    return [
        f"flashint8: seed {config.getoption('--seed')}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, CUDA: {reason or torch.cuda.get_device_name()}"
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "differential_index" in metafunc.fixturenames:
        count = metafunc.config.getoption("--differential")
        metafunc.parametrize("differential_index", range(count))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for device in ("cpu", "cuda"):
        marked = [i for i in items if i.get_closest_marker("sanitizer") and device in i.name]
        if len(marked) > SANITIZER_LIMIT:
            raise pytest.UsageError(f"{len(marked)} sanitizer cases on {device}, limit 60")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """--share: several runs beside each other, none waiting, each test in one of them.

    A test's file in the folder holds its name, and its seconds once it has ended.
    """
    folder = session.config.getoption("--share")
    if folder is None or session.config.option.collectonly:
        return None
    for item in session.items:
        claim = folder / hashlib.sha1(item.nodeid.encode()).hexdigest()
        try:
            claim.touch(exist_ok=False)
        except FileExistsError:
            continue
        claim.write_text(item.nodeid)
        begin = time.perf_counter()
        item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
        claim.write_text(f"{item.nodeid} {time.perf_counter() - begin:.1f} s\n")
        if session.shouldfail:  # --exitfirst: what is left is the others'
            raise session.Failed(session.shouldfail)
    return True


def cuda_reason() -> str:
    """Why CUDA tests cannot run here; empty where they can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    if not torch.cuda.is_available():
        return "no GPU is visible"
    import flashint8

    if not flashint8._C.build_info()["cuda"]:
        return "flashint8 was built without its CUDA library"
    return ""


def need_cuda(config: pytest.Config) -> None:
    reason = cuda_reason()
    if reason and config.getoption("--require-cuda"):
        pytest.fail(f"--require-cuda: {reason}")
    if reason:
        pytest.skip(f"CUDA: {reason}")


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    """The device under test; cuda skips with its reason."""
    if request.param == "cuda":
        need_cuda(request.config)
    return str(request.param)


@pytest.fixture
def cuda(request: pytest.FixtureRequest) -> str:
    """For tests that make sense on a GPU only."""
    need_cuda(request.config)
    return "cuda"


def case_seed(config: pytest.Config, nodeid: str) -> int:
    name = nodeid.rpartition("/")[2]  # the folder pytest was started in does not matter
    return (int(config.getoption("--seed")) * 1_000_003 + zlib.crc32(name.encode())) % 2**63


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> int:
    """Seeds torch by --seed and the test's own name, so that a test alone draws the same inputs."""
    seed = case_seed(request.config, request.node.nodeid)
    torch.manual_seed(seed)
    return seed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        seed = item.config.getoption("--seed")
        text = f"--seed {seed} (this case: {case_seed(item.config, item.nodeid)})"
        report.sections.append(("seed", text))
    return report
