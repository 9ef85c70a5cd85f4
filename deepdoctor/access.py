"""Who may do what: everyone on one's own machine, whoever logs in on a network, owner and listed trainers on a Space."""

import ipaddress
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from deepdoctor.config import Settings
from deepdoctor.errors import AccessError, ConfigError

# what a Space gets when its README says `hf_oauth: true`
OAUTH = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")


@dataclass(frozen=True)
class Access:
    """The rule, decided once. Previewing datasets, looking at runs and comparing are open to everyone; all else asks `require`.

    place: "local", only this machine can open the page; "login", all visitors have given a password; "network", others can open the
    page and nobody is asked who they are; "space", Hugging Face tells who a visitor is. trainers: who may do everything on a Space.
    can_log_in: whether Hugging Face's login is there.
    """

    place: Literal["local", "login", "network", "space"]
    trainers: tuple[str, ...] = ()
    can_log_in: bool = False

    @classmethod
    def of(cls, settings: Settings, environ: Mapping[str, str]) -> "Access":
        """The rule for an app with those settings in that environment. Raises ConfigError for a password on a Space."""
        if environ.get("SPACE_ID"):
            if settings.login:
                raise ConfigError("LOGIN is not used on a Space: its visitors log in with Hugging Face. Remove it; TRAINERS lists names.")
            names = [environ.get("SPACE_AUTHOR_NAME", ""), *settings.trainers.split(",")]
            # anywhere else the login is a mock that takes every visitor for the owner of the machine
            real = environ.get("SYSTEM") == "spaces" and all(environ.get(name) for name in OAUTH)
            return cls("space", tuple(dict.fromkeys(name.strip() for name in names if name.strip())), real)
        if settings.login:
            return cls("login")
        return cls("local" if is_loopback(settings.host) else "network")

    @property
    def largest_upload(self) -> str:
        """The largest file that may be uploaded; strangers must not fill the disk."""
        return "1gb" if self.place in ("local", "login") else "100mb"

    def allows(self, visitor: str | None) -> bool:
        """Whether a visitor of that name, None if unknown, may do everything. The name must be one that Hugging Face vouches for."""
        return self.place in ("local", "login") or (self.place == "space" and self.can_log_in and visitor in self.trainers)

    def require(self, visitor: str | None, action: str) -> None:
        """Raises AccessError, which says how to get the right, unless the visitor may do this. `action` is as in "You may not …"."""
        if not self.allows(visitor):
            raise AccessError(f"You may not {action} here. {self._way(visitor)}")

    def told(self, visitor: str | None) -> str:
        """What the visitor should know before trying; "" where everyone may do everything."""
        if self.place in ("local", "login"):
            return ""
        if self.allows(visitor):
            return f"Logged in as {visitor}: you may load models, train, export, rename and delete here."
        closed = "loading models, training, exporting and deleting are not"
        return f"Previewing and comparing are open to everyone; {closed}. {self._way(visitor)}"

    def _way(self, visitor: str | None) -> str:
        if self.place == "network":
            return "The app has no login: start it with LOGIN=name:password, or with HOST=127.0.0.1 for its own machine only."
        if not self.can_log_in or not self.trainers:
            return "Nobody can log in to this Space: its owner has to set hf_oauth: true at the top of its README.md and restart it."
        names = " or ".join(self.trainers)
        if visitor is None:
            return f"Log in as {names}, or duplicate the Space to have one of your own."
        return f"You are {visitor}; it takes {names}. The owner can add you to TRAINERS, or duplicate the Space to have one of your own."


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address. A proxy in front of it is not seen from here."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
