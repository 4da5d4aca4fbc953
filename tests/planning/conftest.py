"""Plans for GPUs are estimates here, whether or not the compiler for them is installed: gpus_test asks for it by name."""

import pytest

from gptjax.planning import gpus


@pytest.fixture(autouse=True)
def no_compiler_for_gpus(request, monkeypatch):
    if "gpu_compiler" not in request.fixturenames:
        monkeypatch.setattr(gpus, "missing", lambda: "jax-cuda13-plugin")


@pytest.fixture
def gpu_compiler():
    """Skips where the extra `gpu-plan` is not installed."""
    if (package := gpus.missing()) is not None:
        pytest.skip(f"{package} is not installed: {gpus.INSTALL}")
