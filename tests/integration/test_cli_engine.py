"""vmfs-ingest engine, vms and checkpoints against the lab, as a user calls them."""

from __future__ import annotations

import os
import pty
import ssl
import subprocess
from pathlib import Path

import pytest
import tomlkit
from command_helpers import Done, Site, call, program
from engine_helpers import connected, small_guest
from lab_helpers import LEGACY, MIB, DiskRecipe, Lab, needs_lab

from ingest.engine.checkpoints import list_checkpoints
from ingest.engine.trust import Authority
from vmfs.cli.settings import EngineTable, load_settings

pytestmark = needs_lab
pytest_plugins = ["engine_fixtures"]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's configuration file; it is not there yet."""
    monkeypatch.delenv("VMFS_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config/vmfs/vmfs.toml"


@pytest.fixture
def known(lab: Lab, config: Path) -> Path:
    """A configuration file that names the lab's engine `lab`."""
    config.parent.mkdir(parents=True)
    config.write_text(tomlkit.dumps({"engine": {"lab": lab.engine}}))
    return config


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path / "site")
    site.root.mkdir()
    site.init()
    return site


def ingest(*argv: object) -> Done:
    done = call("vmfs-ingest", *argv)
    assert done.err.count("\n") <= 1, done.err
    return done


def address(lab: Lab) -> str:
    return lab.url.removesuffix("/ovirt-engine/api")


def fingerprint(lab: Lab) -> str:
    return Authority(ssl.PEM_cert_to_DER_cert(lab.ca_file.read_text())).fingerprint


def check_refused(done: Done, status: int, told: str, config: Path) -> None:
    assert (done.status, done.out.count("yes")) == (status, 0)
    assert done.err.startswith("vmfs-ingest: ")
    assert told in done.err
    assert not config.exists()


# engine trust


def test_an_engine_is_trusted_by_its_fingerprint(lab: Lab, config: Path) -> None:
    done = ingest(
        *("engine", "trust", address(lab), "--name", "lab", "--fingerprint", fingerprint(lab).lower()),
        *("--username", lab.username, "--password-file", os.path.relpath(lab.password_file)),
    )
    assert done.status == 0, done.err
    assert f"SHA-256 fingerprint: {fingerprint(lab)}" in done.out
    ca_file = config.with_name("lab.ca.pem")
    assert load_settings().engines["lab"] == EngineTable(
        address(lab),
        username=lab.username,
        password_file=str(lab.password_file),
        ca_file=str(ca_file),
    )
    assert config.stat().st_mode & 0o777 == 0o600
    assert ingest("engine", "test", "lab").status == 0


def test_the_fingerprint_is_that_of_openssl(lab: Lab) -> None:
    words = ["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", lab.ca_file]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert shown.strip().split("=")[1] == fingerprint(lab)


def test_trust_as_json(lab: Lab, config: Path) -> None:
    facts = ingest("engine", "trust", address(lab), "--fingerprint", fingerprint(lab), "--json").json()
    assert facts == {
        "name": "127-0-0-1",
        "url": address(lab),
        "fingerprint": fingerprint(lab),
        "ca_file": str(config.with_name("127-0-0-1.ca.pem")),
        "config": str(config),
    }


@pytest.mark.parametrize(
    ("answer", "trusted"), [("yes\n", True), ("no\n", False), ("\n", False), ("\x04", False)]
)
def test_the_user_is_asked(lab: Lab, config: Path, answer: str, trusted: bool) -> None:
    terminal, inner = pty.openpty()
    words = [program("vmfs-ingest"), "engine", "trust", address(lab), "--name", "lab"]
    with subprocess.Popen(words, stdin=inner, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        os.write(terminal, answer.encode())
        out, err = process.communicate(timeout=60)
    os.close(inner)
    os.close(terminal)
    assert fingerprint(lab) in out.decode()
    assert "Is that the engine's? (yes/no)" in err.decode()
    assert (process.returncode == 0, config.exists()) == (trusted, trusted)
    if not trusted:
        assert err.decode().endswith("vmfs-ingest: not trusted; nothing was changed\n")
    else:
        assert "Set username and password_file" in out.decode()


def test_nobody_to_ask(lab: Lab, config: Path) -> None:
    words = [program("vmfs-ingest"), "engine", "trust", address(lab)]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    check_refused(Done(done.returncode, done.stdout, done.stderr), 2, "give it as --fingerprint", config)


def test_another_fingerprint(lab: Lab, config: Path) -> None:
    done = ingest("engine", "trust", address(lab), "--fingerprint", "ab" * 32)
    check_refused(done, 1, "the CA has another fingerprint", config)


@pytest.mark.parametrize("fault", ["certificate-foreign", "certificate-expired"])
def test_a_certificate_that_is_not_to_be_trusted(lab: Lab, config: Path, fault: str) -> None:
    lab.faults.break_(fault)
    done = ingest("engine", "trust", address(lab), "--fingerprint", fingerprint(lab))
    told = (
        "not of the CA that the same address hands out" if fault == "certificate-foreign" else "has expired"
    )
    check_refused(done, 1, told, config)


def test_what_is_no_engine(lab: Lab, config: Path) -> None:
    port = lab.hosts[0].imageio.port
    done = ingest("engine", "trust", f"https://127.0.0.1:{port}", "--fingerprint", fingerprint(lab))
    check_refused(done, 1, "hands out no CA certificate (HTTP 404); is it the address of an engine?", config)
    done = ingest("engine", "trust", "https://127.0.0.1:1", "--fingerprint", fingerprint(lab))
    check_refused(done, 1, "engine at 127.0.0.1:1 cannot be reached: Connection refused", config)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["https://engine/other"], "not an engine's URL"),
        (["engine", "--name", "a b"], "an engine cannot be called 'a b'"),
        (["engine", "--name", "../x"], "an engine cannot be called"),
        (["engine", "--fingerprint", "12"], "is no SHA-256 fingerprint"),
    ],
)
def test_wrong_use(config: Path, words: list[str], told: str) -> None:
    check_refused(ingest("engine", "trust", *words), 2, told, config)


def test_a_name_that_is_taken(lab: Lab, config: Path) -> None:
    config.parent.mkdir(parents=True)
    config.write_text('[engine.lab]\nurl = "https://other.example.com"\n')
    done = ingest("engine", "trust", address(lab), "--name", "lab", "--fingerprint", fingerprint(lab))
    assert (done.status, "give another --name" in done.err) == (2, True)


def test_trusting_again(lab: Lab, known: Path) -> None:
    """As after the engine's CA was renewed: the rest of the table stays."""
    done = ingest("engine", "trust", address(lab), "--name", "lab", "--fingerprint", fingerprint(lab))
    assert done.status == 0, done.err
    assert "Set username" not in done.out
    found = load_settings().engines["lab"]
    assert (found.username, found.ca_file) == (lab.username, str(known.with_name("lab.ca.pem")))


# engine list, engine test


def test_listing_engines(lab: Lab, known: Path) -> None:
    assert ingest("engine", "list", "--json").json() == {
        "engines": [{"name": "lab", **lab.engine, "password_command": None, "insecure": False}]
    }
    rows = ingest("engine", "list").out.splitlines()
    assert rows[0].split() == ["NAME", "URL", "USER", "CA"]
    assert rows[1].split()[:3] == ["lab", lab.url, lab.username]
    known.unlink()
    assert "names no engine; add one with: vmfs-ingest engine trust" in ingest("engine", "list").out


def test_testing_an_engine(lab: Lab, known: Path) -> None:
    with connected(lab) as engine:
        small_guest(lab, engine, up=False)
    done = ingest("engine", "test", "lab")
    assert f"Engine lab (oVirt Engine 4.5.6-1.el9, {lab.core.id}) answers." in done.out
    facts = ingest("engine", "test", "lab", "--json").json()
    assert facts["id"] == lab.core.id
    assert facts["vms"] == len(lab.core.vms)


def test_testing_an_engine_fails(lab: Lab, known: Path) -> None:
    done = ingest("engine", "test", "other")
    assert (done.status, "has no engine 'other'; add it with" in done.err) == (2, True)
    lab.faults.break_("password-changed")
    done = ingest("engine", "test", "lab")
    assert (done.status, "check user name" in done.err) == (1, True)
    assert lab.password not in done.err
    lab.faults.mend()
    lab.server.stop()
    try:
        done = ingest("engine", "test", "lab")
    finally:
        lab.server.start()
    assert (done.status, "cannot be reached: Connection refused" in done.err) == (1, True)


# vms


def test_listing_vms(lab: Lab, known: Path) -> None:
    with connected(lab) as engine:
        guest = small_guest(lab, engine, cluster=LEGACY, up=False)
    facts = {vm["id"]: vm for vm in ingest("vms", "--engine", "lab", "--json").json()["vms"]}
    assert facts[guest.made.id]["name"] == guest.made.name
    assert facts[guest.made.id]["level"] == "4.6"
    rows = ingest("vms", "--engine", "lab").out.splitlines()
    assert rows[0].split() == ["NAME", "ID", "STATUS", "CLUSTER"]
    assert [guest.made.name, guest.made.id, "down", "Legacy", "(4.6)"] in [row.split() for row in rows]


def test_the_disks_of_a_vm(lab: Lab, known: Path) -> None:
    lab.create_vm(
        "two",
        [DiskRecipe("one", 2 * MIB, bootable=True), DiskRecipe("no", MIB, description="backup=0")],
        up=False,
    )
    done = ingest("vms", "--vm", "two")
    assert [line.split()[0] for line in done.out.splitlines()] == ["ALIAS", "one", "no"]
    assert "no: its description says backup=0" in done.out
    facts = ingest("vms", "--vm", "two", "--json").json()
    assert [disk["size"] for disk in facts["disks"]] == [2 * MIB, MIB]
    done = ingest("vms", "--vm", "three")
    assert (done.status, "has no VM 'three'" in done.err) == (2, True)


def test_without_a_configuration_file(lab: Lab, config: Path, tmp_path: Path) -> None:
    words: list[object] = ["vms", "--engine", address(lab), "--username", lab.username]
    words += ["--password-file", lab.password_file, "--json"]
    facts = ingest(*words, "--ca-file", lab.ca_file).json()
    assert facts["engine"] == lab.core.id
    done = ingest(*words)
    assert (done.status, "its certificate is not trusted" in done.err) == (1, True)
    (tmp_path / "wrong").write_text("wrong")
    done = ingest(*words, "--ca-file", lab.ca_file, "--password-file", tmp_path / "wrong")
    assert (done.status, "Cannot authenticate user" in done.err) == (1, True)


def test_a_secret_on_the_command_line_is_refused(known: Path) -> None:
    assert ingest("vms", "--password=secret").status == 2


# checkpoints


def test_checkpoints_are_listed_and_pruned(lab: Lab, known: Path, site: Site) -> None:
    with connected(lab) as engine:
        guest = small_guest(lab, engine)
        first, second = guest.checkpoint(), guest.checkpoint()
        lab.core.vm(guest.vm.id).checkpoints[0].description = "of another product"
        vm = guest.made.name
        rows = ingest("checkpoints", "list", "--engine", "lab", "--vm", vm).out.splitlines()
        assert rows[0].split() == ["ID", "CREATED", "STATE", "DISKS", "REPOSITORY"]
        assert [row.split()[0] for row in rows[1:]] == [first, second]
        assert [row.split()[-1] for row in rows[1:]] == ["-", "deadbeef"]
        facts = ingest("checkpoints", "list", "--engine", "lab", "--vm", vm, "--json").json()
        assert [item["disks"] for item in facts["checkpoints"]] == [guest.disks, guest.disks]

        def prune(*more: object) -> Done:
            words = ("checkpoints", "prune", site.repository, "--engine", "lab", "--vm", vm, *more)
            return ingest(*words, *site.options())

        # These are of other repositories.
        assert prune("--json").json() == {"vm": vm, "id": guest.vm.id, "kept": [], "removed": []}
        done = ingest("backup", site.repository, "--engine", "lab", "--vm", vm, *site.options(), "--json")
        assert done.status == 0, done.err
        ours = list_checkpoints(engine, guest.vm)[-1].id
        assert prune("--json").json()["kept"] == [ours]
        assert prune("--all", "--json").json()["removed"] == [ours]
        assert [item.id for item in list_checkpoints(engine, guest.vm)] == [first, second]
        assert prune().out == f"Removed 0 checkpoints of {vm}.\n"


def test_a_vm_without_checkpoints(lab: Lab, known: Path) -> None:
    lab.create_vm("none", [], up=False)
    done = ingest("checkpoints", "list", "--vm", "none")
    assert done.out == "The VM has no checkpoints: its next backup reads all disks in full.\n"
