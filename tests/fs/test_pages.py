"""The manual pages: well-formed, and the same commands and options as in --help, in both directions."""

import os
import re
import shutil

import pytest

import test_commands
import util

TOP = util.TESTS.parent
PAGES = sorted((TOP / "docs/man").iterdir())
CKPTFS = (TOP / "docs/man/ckptfs.1").read_text()
MOUNT = (TOP / "docs/man/mount.ckptfs.8").read_text()


def parts(text, macro):
    """{heading: text} of a page's sections (.Sh) or of a section's parts (.Ss)."""
    words = re.split(rf"^\.{macro} (.*)\n", text, flags=re.M)[1:]
    return dict(zip(words[::2], words[1::2]))


COMMANDS = parts(parts(CKPTFS, "Sh")["COMMANDS"], "Ss")
OPTIONS = parts(parts(MOUNT, "Sh")["OPTIONS"], "Ss")
# The page tells of these once, before the first command.
OF_ALL = {"--follow"}


def flags_of_page(text):
    """The options that the lists of a part of the page tell of: {"-l", "--recursive"}."""
    found = set()
    for line in re.findall(r"^\.It Fl (.*)$", text, re.M):
        words = re.split(r" Ns | Ar ", line)[0]
        found |= {f"-{word}" for word in words.split(" , ")}
    return found


def names_of_page(text):
    """The same of what is told with .Cm: {"refresh", "uid"}."""
    found = set()
    for line in re.findall(r"^\.It Cm (.*)$", text, re.M):
        line = re.sub(r" Ns = Ns (Ar|Cm) [\w.]+", "", line)
        found |= set(line.replace(" Cm ", " ").replace(" , ", " ").split())
    return found


def first_column(text, indent):
    """What stands before two or more blanks in the lines of --help that are indented so far."""
    return re.findall(rf"^ {{{indent}}}(\S.*?)(?:  .*)?$", text, re.M)


def flags_of_help(command):
    found = set()
    for column in first_column(util.ckptfs(command, "--help").stdout, 2):
        if column.startswith("-"):
            found |= {re.split(r"[= ]", word)[0] for word in column.split(", ")}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_form(page):
    """mandoc and groff have nothing to say."""
    assert shutil.which("mandoc") and shutil.which("groff"), "mandoc or groff is missing"
    done = util.run("mandoc", "-T", "lint", "-W", "warning", page, check=None)
    assert done.returncode == 0 and not done.stdout, done.stdout
    style = [
        line
        for line in util.run("mandoc", "-T", "lint", "-W", "style", page, check=None).stdout.splitlines()
        if "mandoc.db" not in line and "referenced manual not found" not in line
    ]  # these ask the machine
    assert not style
    done = util.run("groff", "-mdoc", "-ww", "-z", page)
    assert not done.stderr


def test_commands_are_told():
    assert list(COMMANDS) == [re.split(" ", line)[0] for line in first_column(util.ckptfs("--help").stdout, 2)]
    assert sorted(COMMANDS) == sorted(test_commands.COMMANDS)
    for name, text in COMMANDS.items():
        assert text.startswith(f".Nm Ic {name} "), f"{name}: its synopsis comes first"


@pytest.mark.parametrize("command", test_commands.COMMANDS)
def test_options_are_told(command):
    helped = flags_of_help(command)
    assert helped
    assert flags_of_page(COMMANDS[command]) == helped - OF_ALL


def test_options_of_all_are_told():
    before = parts(CKPTFS, "Sh")["COMMANDS"].partition("\n.Ss ")[0]
    for flag in OF_ALL:
        assert f".Fl {flag[1:]}\n" in before
        assert any(flag in flags_of_help(command) for command in test_commands.COMMANDS)


@pytest.mark.parametrize("command", test_commands.COMMANDS)
def test_synopses(command):
    """The usage line and the page's name the same options, or another form of one."""
    usage = util.ckptfs(command, "--help").stdout.splitlines()[0]
    helped = flags_of_help(command)
    assert set(re.findall(r"--[\w-]+", usage)) | set(re.findall(r"\[(-\w)\b", usage)) <= helped
    line = COMMANDS[command].splitlines()[0]
    told = {f"-{word}" for word in re.findall(r"\bFl (-[\w-]+)", line)} | {
        f"-{c}" for word in re.findall(r"\bFl (\w+)", line) for c in word
    }
    assert told <= helped


def test_settings_are_told():
    """The keys of ckptfs config."""
    told = {
        column.partition("=")[0]
        for column in first_column(util.ckptfs("config", "--help").stdout, 2)
        if "=" in column and column[0] != "-"
    }
    assert len(told) >= 7
    assert names_of_page(COMMANDS["config"]) == told


def names_of_mount_help():
    told = set()
    for column in first_column(util.ckptfs("mount", "--help").stdout, 5):
        told |= {word.partition("=")[0] for word in re.split(r", | ", column)}
    return told


def test_mount_options_are_told():
    told = names_of_mount_help()
    assert {"ro", "rw", "refresh", "uid", "gid", "allow_other"} <= told
    assert names_of_page(OPTIONS["Options of ckptfs"]) == told


def test_mount_options_of_the_reference():
    """The table in docs/reference.md has the same options."""
    section = re.search(r"^## Options\n(.*?)^## ", (TOP / "docs/reference.md").read_text(), re.M | re.S)[1]
    told = set()
    for cell in re.findall(r"^\| (`.*?) \|", section, re.M):
        told |= {re.split(r"\W", word)[0] for word in re.findall(r"`(.*?)`", cell)}
    assert told == names_of_mount_help()


def test_options_of_mount():
    """Those that are left out, for mount(8) has them."""
    source = (TOP / "fs/mount_options.c").read_text()
    names = re.search(r"is_for_mount.*?names\[\] = \{(.*?)\}", source, re.S)[1]
    assert names_of_page(OPTIONS["Options of mount(8)"]) == set(re.findall(r'"(\w+)"', names))


def test_arguments_of_the_helper(installed):
    text = util.run(installed / "sbindir" / "mount.ckptfs", "--help").stdout
    letters = set("".join(re.findall(r"\[-(\w+)", text)))
    section = parts(parts(MOUNT, "Sh")["DESCRIPTION"], "Ss")["Arguments of the helper"]
    assert {flag[1:] for flag in flags_of_page(section)} == letters == set("sfnvNot")


def test_exit_statuses():
    """The table in docs/reference.md has the same numbers."""
    section = re.search(r"^\| exit status \|.*?\n\n", (TOP / "docs/reference.md").read_text(), re.M | re.S)[0]
    assert re.findall(r"^\.It (\d+)$", parts(CKPTFS, "Sh")["EXIT STATUS"], re.M) == re.findall(
        r"^\| (\d+) \|", section, re.M
    )


def test_fstab_lines():
    """The page's lines are those of the example."""

    def lines(text):
        return {tuple(line.split()[:2]) for line in text.splitlines() if line.startswith("/")}

    assert lines(parts(MOUNT, "Sh")["FSTAB"]) == lines((TOP / "mount-scripts/fstab.example").read_text())


def anchors(page):
    """What the headings of a page can be linked by."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


SOURCES = [*TOP.glob("*.md"), *(TOP / "docs").rglob("*.md"), TOP / "python/README.md"]


@pytest.mark.parametrize("page", SOURCES, ids=lambda page: str(page.relative_to(TOP)))
def test_links(page):
    """They lead to files that are there, and to headings in them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not heading or heading in anchors(target), link


def test_versions():
    """meson.build has the version; the Python client and the pages name the same."""
    version = re.search(r"version: '([\d.]+)'", (TOP / "meson.build").read_text())[1]
    assert re.search(r'^__version__ = "(.*)"$', (TOP / "python/ckptfs/__init__.py").read_text(), re.M)[1] == version
    assert f"Version {version}." in (TOP / "README.md").read_text()
    assert f"\n## {version}\n" in (TOP / "CHANGELOG.md").read_text()
    assert version in util.ckptfs("--version").stdout


def test_installed(installed):
    for page in PAGES:
        copies = list((installed / "mandir" / f"man{page.suffix[1:]}").glob(page.name + "*"))
        assert len(copies) == 1
    if shutil.which("man"):
        path = installed / "mandir"
        text = util.run(
            "man",
            "-M",
            path,
            "-P",
            "cat",
            "8",
            "mount.ckptfs",
            env=os.environ | {"MANWIDTH": "100", "LC_ALL": "C.UTF-8"},
        ).stdout
        assert "passthrough" in text
