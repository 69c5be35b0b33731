"""The manual pages: there is one for every command, it tells of the very options that the command takes, and
it is sound."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from ingest.cli.main import PROGRAM as VMFS_INGEST
from vmfs.cli import mount_helper
from vmfs.cli.entry import Program
from vmfs.cli.main import PROGRAM as VMFS
from vmfs.cli.settings import EngineTable, RepositorySettings

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "man").iterdir())
PROGRAMS = (VMFS, VMFS_INGEST)
SECTIONS = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "ENVIRONMENT", "FILES", "EXIT STATUS", "EXAMPLES"]
"""And SEE ALSO at the end, in this order: that of mdoc(7)."""


@dataclass(frozen=True)
class Page:
    """A page's source, by section."""

    path: Path
    sections: Mapping[str, str]

    @staticmethod
    def read(path: Path) -> Page:
        parts = re.split(r"^\.Sh (.+)\n", path.read_text(), flags=re.MULTILINE)
        return Page(path, dict(zip(parts[1::2], parts[2::2], strict=True)))

    @property
    def names(self) -> list[str]:
        return re.findall(r"^\.Nm ([^\s,]+)", self.sections["NAME"], re.MULTILINE)

    @property
    def options(self) -> dict[str, bool]:
        """Every option of the section OPTIONS, and whether it takes an argument."""
        found = {}
        for heading in re.findall(r"^\.It (.*\bFl .*)$", self.sections["OPTIONS"], re.MULTILINE):
            takes = bool(re.search(r"\b(Ar|Cm)\b", heading))
            for dash, name in re.findall(r"\bFl (Fl )?([\w-]+)", heading):
                found[("--" if dash else "-") + name] = takes
        return found

    @property
    def references(self) -> set[str]:
        """The pages named, as `vmfs-init.1`."""
        found = re.findall(r"\.Xr (\S+) (\d)", self.path.read_text())
        return {f"{name}.{section}" for name, section in found}


def read_pages() -> dict[str, Page]:
    """By each of their names."""
    return {name: page for page in map(Page.read, PAGES) for name in page.names}


def subcommands(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices
    return {}


def option_actions(parser: argparse.ArgumentParser, *, nested: bool = True) -> Iterator[argparse.Action]:
    yield from (action for action in parser._actions if action.option_strings)
    if nested:
        for inner in subcommands(parser).values():
            yield from option_actions(inner)


def parser_options(actions: Iterator[argparse.Action]) -> dict[str, bool]:
    return {text: action.nargs != 0 for action in actions for text in action.option_strings}


COMMANDS = [
    pytest.param(program, command, id=f"{program.name}-{command}")
    for program in PROGRAMS
    for command in program.commands
]


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_each_command_has_a_page_that_tells_its_options(program: Program, command: str) -> None:
    page = read_pages().get(f"{program.name}-{command}")
    assert page is not None, f"man/{program.name}-{command}.1 is missing"
    parser = subcommands(program.parser(only=command))[command]
    assert page.options == parser_options(option_actions(parser))


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_each_choice_of_a_command_is_told(program: Program, command: str) -> None:
    page = read_pages()[f"{program.name}-{command}"]
    parser = subcommands(program.parser(only=command))[command]
    text = page.path.read_text()
    for action in [*option_actions(parser), *parser._actions]:
        for choice in action.choices or ():
            assert re.search(rf"\b{re.escape(str(choice))}\b", text), f"{action.dest}: {choice}"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_the_page_of_each_program_tells_its_options_and_commands(program: Program) -> None:
    page = read_pages()[program.name]
    parser = program.parser()
    assert page.options == parser_options(option_actions(parser, nested=False))
    told = re.findall(r"^\.It Cm (\S+)$", page.sections["DESCRIPTION"], re.MULTILINE)
    assert told == list(program.commands)
    pages = {read_pages()[f"{program.name}-{command}"].path.name for command in told}
    assert pages <= page.references


def test_there_is_no_page_of_what_is_not_there() -> None:
    commands = {f"{program.name}-{command}" for program in PROGRAMS for command in program.commands}
    others = {"vmfs", "vmfs-ingest", "vmfs.toml", "mount.vmfs", "mount.fuse.vmfs"}
    assert set(read_pages()) == commands | others


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_each_page_has_its_sections_in_order(path: Path) -> None:
    page = Page.read(path)
    expected = [*SECTIONS, "SEE ALSO"]
    if path.suffix == ".5":
        expected = [{"OPTIONS": "KEYS"}.get(name, name) for name in expected if name != "EXIT STATUS"]
    assert list(page.sections) == expected
    assert all(content.strip() for content in page.sections.values())
    assert path.stem in page.names


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_each_page_is_sound(path: Path) -> None:
    if shutil.which("mandoc") is None:
        pytest.fail("mandoc is missing; install the Debian package mandoc")
    command = ["mandoc", "-T", "lint", "-W", "warning", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_each_page_of_ours_that_is_referred_to_exists(path: Path) -> None:
    own = {name for name in Page.read(path).references if "vmfs" in name}
    assert own - {page.name for page in PAGES} == set()
    assert path.name not in own


def test_every_environment_variable_is_told() -> None:
    used: set[str] = set()
    for package in ("vmfs", "ingest"):
        for source in (ROOT / package).rglob("*.py"):
            used.update(re.findall(r"\bVMFS_[A-Z_]+\b", source.read_text()))
    for program in PROGRAMS:
        told = set(re.findall(r"\bVMFS_[A-Z_]+\b", read_pages()[program.name].sections["ENVIRONMENT"]))
        assert told == used


def test_the_keys_of_the_configuration_file_are_told() -> None:
    text = read_pages()["vmfs.toml"].sections["KEYS"]
    told = re.findall(r"^\.It Li (\w+) =", text, re.MULTILINE)
    tables = (*fields(RepositorySettings), *fields(EngineTable))
    assert told == ["default", *(field.name for field in tables)]


def test_the_mount_options_are_told() -> None:
    text = read_pages()["mount.vmfs"].sections["OPTIONS"]
    headings = re.findall(r"^\.It (Cm .*)$", text, re.MULTILINE)
    told = [name for heading in headings for name in re.findall(r"Cm (\w+=?)", heading)]
    assert sorted(told) == sorted(
        [*mount_helper._FLAGS, *(f"{name}=" for name in mount_helper._VALUES)],
    )
    for name in told:
        assert mount_helper.translate(f"{name}1" if name.endswith("=") else name)
