"""The completion scripts, in the shells they are for."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from command_helpers import program as installed

from ingest.cli.main import PROGRAM as VMFS_INGEST
from vmfs.cli.main import PROGRAM as VMFS

PROGRAMS = ("vmfs", "vmfs-ingest")
SHELLS = ("bash", "zsh")
Scripts = Mapping[tuple[str, str], Path]
Complete = Callable[..., list[str]]

# What bash does when somebody presses TAB: it calls the function that `complete` was told, with the words.
COMPLETE = r"""
source "$1" || exit
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
registered=$(complete -p "$1") || exit
function=$(sed -E 's/.* -F ([^ ]+) .*/\1/' <<<"$registered")
# compopt complains that no completion is under way; that is so here.
compopt() { :; }
"$function" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
[ ${#COMPREPLY[@]} -eq 0 ] || printf '%s\n' "${COMPREPLY[@]}"
"""


def run(command: Sequence[str | Path]) -> str:
    """The output of a command that has to succeed and say nothing else."""
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """What the installed programs print, as files, by program and shell. For zsh they have the names that it
    looks for."""
    folder = tmp_path_factory.mktemp("completion")
    files = {
        (program, shell): folder / (f"_{program}" if shell == "zsh" else f"{program}.bash")
        for program in PROGRAMS
        for shell in SHELLS
    }
    for (program, shell), path in files.items():
        path.write_text(run([installed(program), "completion", shell]))
    return files


@pytest.fixture(scope="module")
def complete(scripts: Scripts) -> Complete:
    """Call it with words, the last of which is not finished: what bash offers there."""

    def ask(*words: str) -> list[str]:
        return run(["bash", "-c", COMPLETE, "bash", scripts[words[0], "bash"], *words]).split()

    return ask


@pytest.mark.parametrize("program", PROGRAMS)
def test_bash_takes_the_script(program: str, scripts: Scripts) -> None:
    path = scripts[program, "bash"]
    run(["bash", "-n", path])
    assert program in run(["bash", "-c", 'source "$1" && complete -p "$2"', "bash", path, program])


@pytest.mark.skipif(shutil.which("zsh") is None, reason="install the Debian package zsh")
@pytest.mark.parametrize("program", PROGRAMS)
def test_zsh_takes_the_script_from_its_fpath(program: str, scripts: Scripts) -> None:
    path = scripts[program, "zsh"]
    run(["zsh", "-n", path])
    command = "fpath=($1 $fpath); autoload -Uz compinit && compinit -D -u && print $_comps[$2]"
    assert run(["zsh", "-fc", command, "zsh", path.parent, program]).strip() == path.name


def test_commands_are_completed(complete: Complete) -> None:
    assert complete("vmfs", "ver") == ["verify"]
    assert complete("vmfs-ingest", "im") == ["image"]
    assert complete("vmfs", "no-such") == []


def test_every_command_is_offered(complete: Complete) -> None:
    assert set(VMFS.commands) <= set(complete("vmfs", ""))
    assert set(VMFS_INGEST.commands) <= set(complete("vmfs-ingest", ""))


def test_options_of_a_command_are_completed(complete: Complete) -> None:
    assert complete("vmfs", "mount", "--pass") == ["--passphrase-file", "--passphrase-command"]
    assert complete("vmfs", "mount", "/backup", "--allow") == ["--allow-other"]
    assert complete("vmfs-ingest", "image", "--bit") == ["--bitmap"]
    assert complete("vmfs", "verify", "--bit") == []


def test_commands_below_commands_are_completed(complete: Complete) -> None:
    assert {"add", "remove", "list"} <= set(complete("vmfs", "key", ""))
    assert "--new-key-file" in complete("vmfs", "key", "add", "--new-")


def test_choices_are_completed(complete: Complete) -> None:
    assert complete("vmfs-ingest", "image", "--format", "q") == ["qcow2"]
    assert complete("vmfs", "completion", "b") == ["bash"]
