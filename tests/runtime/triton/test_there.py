import pytest


def test_kernels_can_be_imported():
    pytest.importorskip("triton", reason="triton is not installed: kernels for GPUs are not tested")
    import compress.runtime.triton  # noqa: F401
