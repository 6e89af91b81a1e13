"""Fixtures of all tests."""

import os

# before a test imports JAX: eight devices of the CPU
os.environ["JAX_PLATFORMS"] = "cpu"
if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import pytest

import util


def pytest_report_header():
    return f"ckptfs: {util.CKPTFS}{f' (with the {util.SANITIZED} sanitizer)' if util.SANITIZED else ''}"


@pytest.fixture(scope="session", autouse=True)
def binary():
    """The program under test: $CKPTFS, or the release build."""
    assert os.access(util.CKPTFS, os.X_OK), f"{util.CKPTFS} is missing: build first, or set CKPTFS"
    return util.CKPTFS


@pytest.fixture
def mount(tmp_path):
    """mount(source, *options) mounts and returns a util.Mount; all are unmounted and checked at the end of the test."""
    mounts = []

    def make(source, *options, **kwargs):
        mounts.append(util.Mount(source, *options, folder=tmp_path / f"mount{len(mounts)}", **kwargs).start())
        return mounts[-1]

    yield make
    faults = []
    for m in reversed(mounts):
        try:
            if m.top.exists():  # else the test has stopped it
                m.stop()
        except AssertionError as e:
            faults.append(str(e))
    assert not faults, "\n".join(faults)


@pytest.fixture(scope="module")
def module_mount(tmp_path_factory):
    """As mount, but the mounts live as long as the module's tests, one for each source."""
    mounts = {}

    def make(source, *options):
        key = (str(source), options)
        if key not in mounts:
            mounts[key] = util.Mount(source, *options, folder=tmp_path_factory.mktemp("mount"), patience=280).start()
        mounts[key].renew_patience()
        return mounts[key]

    yield make
    faults = []
    for m in mounts.values():
        try:
            m.stop()
        except AssertionError as e:
            faults.append(str(e))
    assert not faults, "\n".join(faults)
