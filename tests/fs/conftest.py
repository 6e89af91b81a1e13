"""Fixtures of what is installed."""

import json
import os
import shutil
from pathlib import Path

import pytest

import util

BUILD = Path(util.CKPTFS).parents[1]


class Installed:
    """The project installed into a folder, as a package would be made."""

    def __init__(self, folder):
        self.top = folder
        util.run("meson", "install", "-C", BUILD, "--no-rebuild", "--quiet", "--destdir", folder, limit=120)
        options = json.loads(util.run("meson", "introspect", "--buildoptions", BUILD).stdout)
        self.options = {o["name"]: o["value"] for o in options}
        self.prefix = Path(f"{folder}{self.options['prefix']}")
        self.program = self / "bindir" / "ckptfs"

    def __truediv__(self, option):
        """The folder of an option, such as bindir."""
        value = self.options[option]
        return Path(f"{self.top}{value}") if value.startswith("/") else self.prefix / value


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    assert shutil.which("meson"), "meson is missing"
    if not (BUILD / "build.ninja").exists():
        pytest.skip(f"{util.CKPTFS} is not in a build folder")
    folder = tmp_path_factory.mktemp("installed")
    for parent in [folder, *folder.parents]:  # other users are to run what is in it
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    return Installed(folder)
