"""Fixtures of the crash tests; what they have counted is told at the end of the run."""

import pytest

import scenarios

told = []


@pytest.fixture(scope="session")
def first(tmp_path_factory):
    """The root that scenarios begin with. Not to be changed."""
    return scenarios.make_first(tmp_path_factory.mktemp("first"))


@pytest.fixture
def tell(request):
    """Say something in the summary of the run."""
    return lambda text: told.append(f"{request.node.name}: {text}")


def pytest_terminal_summary(terminalreporter):
    if told:
        terminalreporter.section("crash points")
        for line in told:
            terminalreporter.line(line)
