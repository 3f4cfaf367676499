"""The NVIDIA driver and its GPUs, asked directly: works where torch has no CUDA part."""

import ctypes
from dataclasses import dataclass, field

# CUdevice_attribute, from cuda.h.
_MULTIPROCESSOR_COUNT = 16
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76
_SHARED_MEMORY_PER_BLOCK_OPTIN = 97


@dataclass
class Gpu:
    """A GPU as the driver sees it; memory in bytes."""

    index: int
    name: str
    compute_capability: int
    sm_count: int
    shared_memory_per_block: int
    memory: int


@dataclass
class Driver:
    """The driver: the CUDA version it speaks ("13.0", "" without one), and its GPUs.

    `problem` says in words why there is no driver or no GPU; "" where there is.
    """

    cuda: str = ""
    gpus: list[Gpu] = field(default_factory=list)
    problem: str = ""


def query() -> Driver:
    """Asks libcuda.so.1; raises nothing."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Driver(problem="no NVIDIA driver (libcuda.so.1 was not found)")
    version = ctypes.c_int(0)
    if cuda.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value == 0:
        return Driver(problem="libcuda.so.1 is here, but no driver answers")
    driver = Driver(cuda=f"{version.value // 1000}.{version.value % 1000 // 10}")
    status = cuda.cuInit(0)
    if status != 0:
        driver.problem = f"no usable GPU ({_error_name(cuda, status)} from cuInit)"
        return driver
    count = ctypes.c_int(0)
    if cuda.cuDeviceGetCount(ctypes.byref(count)) == 0:
        gpus = (_gpu(cuda, index) for index in range(count.value))
        driver.gpus = [gpu for gpu in gpus if gpu is not None]
    if not driver.gpus:
        driver.problem = "the driver lists no GPU"
    return driver


def _error_name(cuda: ctypes.CDLL, status: int) -> str:
    name = ctypes.c_char_p()
    if cuda.cuGetErrorName(status, ctypes.byref(name)) == 0 and name.value:
        return name.value.decode()
    return f"error {status}"


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu | None:
    device = ctypes.c_int(0)
    if cuda.cuDeviceGet(ctypes.byref(device), index) != 0:
        return None

    def attribute(number: int) -> int:
        value = ctypes.c_int(0)
        cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGetName(name, len(name), device)
    memory = ctypes.c_size_t(0)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    major, minor = attribute(_COMPUTE_CAPABILITY_MAJOR), attribute(_COMPUTE_CAPABILITY_MINOR)
    return Gpu(
        index=index,
        name=name.value.decode(errors="replace"),
        compute_capability=10 * major + minor,
        sm_count=attribute(_MULTIPROCESSOR_COUNT),
        shared_memory_per_block=attribute(_SHARED_MEMORY_PER_BLOCK_OPTIN),
        memory=memory.value,
    )
