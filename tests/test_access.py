"""Who may do what, by where the app runs and by name; and what those who may not are told."""

from pathlib import Path

import pytest

from deepdoctor.access import OAUTH, Access
from deepdoctor.config import Settings
from deepdoctor.errors import AccessError, ConfigError

SPACE = {"SPACE_ID": "alice/deepdoctor", "SPACE_AUTHOR_NAME": "alice", "SYSTEM": "spaces"} | dict.fromkeys(OAUTH, "given")


def space(trainers: str = "", **changes: str) -> Access:
    return Access.of(Settings(host="0.0.0.0", trainers=trainers), {**SPACE, **changes})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_on_ones_own_machine_everything_is_allowed_without_a_word(host: str) -> None:
    access = Access.of(Settings(host=host), {})
    access.require(None, "start a run")
    assert access.place == "local"
    assert access.told(None) == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "my-machine", "localhost.example.org"])
def test_a_network_without_a_login_is_closed_and_says_how_to_open_it(host: str) -> None:
    access = Access.of(Settings(host=host), {})
    with pytest.raises(AccessError, match=r"You may not start a run here.*LOGIN=name:password.*HOST=127\.0\.0\.1"):
        access.require(None, "start a run")
    assert not access.allows("alice"), "nobody vouches for a name there"
    assert "LOGIN=name:password" in access.told(None)


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_a_password_opens_everything_but_the_servers_files(host: str) -> None:
    access = Access.of(Settings(host=host, login="alice:secret"), {})
    access.require(None, "start a run")
    assert access.place == "login", "behind a proxy, a loopback address is no proof that a visitor sits at the machine"


def test_on_a_space_owner_and_listed_trainers_may_and_nobody_else() -> None:
    access = space(" carol, ,dave,carol")
    assert access.trainers == ("alice", "carol", "dave")
    for name in ("alice", "carol", "dave"):
        access.require(name, "start a run")
        assert f"Logged in as {name}" in access.told(name)
    for name in ("bob", "Alice", "alice ", "", " ", None):
        with pytest.raises(AccessError):
            access.require(name, "start a run")


def test_those_who_may_not_are_told_who_may_and_how() -> None:
    access = space("carol")
    with pytest.raises(AccessError, match=r"You may not delete a run here\. Log in as alice or carol, or duplicate the Space"):
        access.require(None, "delete a run")
    with pytest.raises(AccessError, match=r"You are bob; it takes alice or carol.*TRAINERS"):
        access.require("bob", "delete a run")
    assert "open to everyone" in access.told(None)


@pytest.mark.parametrize("missing", [*OAUTH, "SYSTEM", "SPACE_AUTHOR_NAME"])
def test_a_space_without_a_real_login_lets_nobody_in(missing: str) -> None:
    access = space(**{missing: ""})
    assert not any(access.allows(name) for name in ("alice", "", None))
    assert "hf_oauth: true" in access.told(None)


def test_a_space_stays_a_space_on_a_loopback_address() -> None:
    assert Access.of(Settings(), SPACE).place == "space"


def test_a_password_is_refused_on_a_space() -> None:
    with pytest.raises(ConfigError, match="TRAINERS"):
        Access.of(Settings(login="alice:secret"), SPACE)


@pytest.mark.parametrize("login", ["alice", ":secret", "alice:", " :secret"])
def test_half_a_login_is_refused_without_repeating_it(login: str) -> None:
    with pytest.raises(ConfigError, match="a name and a password") as caught:
        Settings.of({"login": login})
    assert "secret" not in str(caught.value)


def test_a_password_may_hold_colons() -> None:
    assert Settings(login=" alice :a:b ").credentials == ("alice", "a:b ")


def test_strangers_upload_less() -> None:
    assert Access.of(Settings(), {}).largest_upload == Access("login").largest_upload == "1gb"
    assert space().largest_upload == Access("network").largest_upload == "100mb"


def test_a_space_listens_to_everyone_and_a_given_folder_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPACE_ID", "alice/deepdoctor")
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TRAINERS", "carol")
    settings = Settings.from_environment()
    assert (settings.host, settings.port, settings.data_dir, settings.trainers) == ("0.0.0.0", 7860, tmp_path, "carol")
    assert Settings.from_environment({"host": "127.0.0.1"}).host == "127.0.0.1"
    monkeypatch.delenv("SPACE_ID")
    assert Settings.from_environment().host == "127.0.0.1"
