"""What a Hugging Face Space needs, put into a folder or pushed: `python -m deepdoctor.space FOLDER`, `… --push owner/name`."""

import argparse
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from deepdoctor.errors import ConfigError, DeepDoctorError
from deepdoctor.hub import Wanted, hub_api, other_trouble, trouble

ROOT = Path(__file__).resolve().parents[1]
RULE = "pyproject.toml"
TOP = ("app.py", "requirements.txt", "README.md", "LICENSE")
# a Space's repository takes larger files only through other ways than plain git
LARGEST_BYTES = 10_000_000
# what the Hub itself puts into a new Space
MADE_BY_HUB = {".gitattributes", "README.md"}
LINK = re.compile(r"\]\(([^):#]+)\)")


def contents(root: Path = ROOT) -> list[Path]:
    """What a Space needs, as paths relative to the repository: app, pins, README with what it shows and links to, and the package.

    Raises ConfigError if a file is missing, as in an installed package, or too large.
    """
    wanted = {Path(name) for name in TOP}
    missing = [name for name in (*TOP, RULE) if not (root / name).is_file()]
    if missing:
        raise ConfigError(f"{root} has no {missing[0]}. A Space is made from a copy of the whole repository; start this there.")
    read = [Path("README.md")]
    for page in read:  # grows while it is gone through: what a linked page links to must be there too
        links = {page.parent / link for link in LINK.findall((root / page).read_text(encoding="utf-8"))}
        found = {link for link in links if (root / link).is_file() and ".." not in link.parts} - wanted
        wanted |= found
        read += sorted(link for link in found if link.suffix == ".md")
    wanted |= shipped(root)
    for path in wanted:
        if (root / path).stat().st_size >= LARGEST_BYTES:
            raise ConfigError(
                f"{path} is larger than the {LARGEST_BYTES // 1_000_000} MB that a Space takes. Make it smaller or leave it out."
            )
    return sorted(wanted)


def shipped(root: Path) -> set[Path]:
    """The package's files by the rule for an installed one: its modules, and the data that `pyproject.toml` names."""
    named = tomllib.loads((root / RULE).read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    found = {file for made in (root / "deepdoctor").rglob("__init__.py") for file in made.parent.glob("*.py")}
    for package, patterns in named.items():
        found |= {file for pattern in patterns for file in (root / package.replace(".", "/")).glob(pattern)}
    paths = {file.relative_to(root) for file in found if file.is_file()}
    return {path for path in paths if not any(part.startswith(".") for part in path.parts)}


def build(folder: Path, root: Path = ROOT) -> Path:
    """Copy `contents` to a new folder and return it. Raises ConfigError if there is something in it already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty. Name a new folder, or remove this one first.")
    for path in contents(root):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, folder / path)
    return folder


def push(folder: Path, repo: str, token: str | None = None) -> str:
    """Make the Space hold what the folder holds, in one commit; a Space that is not there yet is made, private. Returns its address.

    Raises ConfigError if another app lives there, or saying what went wrong at the Hub.
    """
    try:
        api = hub_api(token)
        space = api.create_repo(repo, repo_type="space", space_sdk="gradio", private=True, exist_ok=True)
        there = set(api.list_repo_files(repo, repo_type="space"))
        if there - MADE_BY_HUB and "deepdoctor/space.py" not in there:
            raise ConfigError(f"The Space {repo} holds another app, which would be deleted. Choose another name.")
        api.upload_folder(
            repo_id=repo, repo_type="space", folder_path=folder, delete_patterns="*", commit_message="DeepDoctor, as `make space` puts it"
        )
    except ConfigError:
        raise
    except Exception as error:
        wanted = Wanted("space", repo, may="write")
        raise ConfigError(trouble(error, wanted) or other_trouble(error, wanted)) from error
    return str(space)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m deepdoctor.space", description=__doc__)
    made.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, help="a new folder for the files (default: none is left behind)")
    made.add_argument("--push", metavar="OWNER/NAME", help="push them to this Space with the token in HF_TOKEN; a new one is made private")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the folder, push it if asked to; returns the exit code."""
    made = parser()
    options = made.parse_args(arguments)
    if not options.folder and not options.push:
        made.error("name a folder, or a Space with --push")
    try:
        with tempfile.TemporaryDirectory(prefix="deepdoctor-space-") as aside:
            folder = build(options.folder or Path(aside))
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            print(f"{len(contents())} files, {size / 1e6:.1f} MB{f', in {folder}' if options.folder else ''}")
            if options.push:
                print(f"Pushed to {push(folder, options.push)}")
    except DeepDoctorError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
