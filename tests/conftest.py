"""One thread per process, no network, throw-away caches, and uninitialised memory that shows itself."""

import atexit
import os
import shutil
import tempfile


_CACHE = tempfile.mkdtemp(prefix="hf_elm_tests_")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HOME=os.path.join(_CACHE, "home"),
    HF_MODULES_CACHE=os.path.join(_CACHE, "modules"),
    HF_DATASETS_CACHE=os.path.join(_CACHE, "datasets"),
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
)
if not os.environ.get("HF_ELM_TEST_GPU"):  # HF_ELM_TEST_GPU=1 pytest -m gpu
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import functools  # noqa: E402

import torch  # noqa: E402
import torch.utils._device  # noqa: E402


torch.set_num_threads(1)


def _poisoned(make):
    """``make`` with its floating-point results filled with NaN: reading memory before writing it cannot pass."""

    @functools.wraps(make)
    def wrapper(*args, **kwargs):
        tensor = make(*args, **kwargs)
        if torch.compiler.is_compiling() or tensor.is_meta or not tensor.is_floating_point():
            return tensor
        with torch.no_grad():
            return tensor.fill_(float("nan"))

    return wrapper


torch.utils._device._device_constructors()  # cached with the true functions, for `with torch.device(...)`
for _name in ("empty", "empty_like"):
    setattr(torch, _name, _poisoned(getattr(torch, _name)))
