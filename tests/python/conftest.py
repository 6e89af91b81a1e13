"""Fixtures of the tests of the Python client."""
import os

os.environ["JAX_PLATFORMS"] = "cpu"
if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import pytest


@pytest.fixture
def mnt(mount, tmp_path):
    """A writable mount of an empty root, as a path. It commits only when asked to."""
    (tmp_path / "root").mkdir()
    return mount(tmp_path / "root", "commit=explicit").top
