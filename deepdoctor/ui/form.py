"""A form made from a Config class: one input a setting, what is wrong told at the input, values read and written as configuration."""

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal

import gradio as gr

from deepdoctor.config import Config
from deepdoctor.errors import ConfigError

# an upper bound beyond this one is technical and tells nobody anything
MOST_TOLD = 1_000_000_000
Kind = Literal["choice", "switch", "integer", "number", "text", "lines"]
Labels = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Setting:
    """One setting as the form shows it. `least` and `most` are what its bounds say, in words; `empty` says whether None is allowed."""

    name: str
    title: str
    description: str
    kind: Kind
    default: Any
    basic: bool
    empty: bool = False
    choices: tuple[str, ...] = ()
    bounds: str = ""

    @property
    def info(self) -> str:
        """The line below the title."""
        return f"{self.description} ({self.bounds})" if self.bounds else self.description


def settings_of(cls: type[Config], without: Sequence[str] = ()) -> list[Setting]:
    """The settings of a Config class in their order, as its fields declare them."""
    return [_setting(name, field) for name, field in cls.model_fields.items() if name not in without]


def _setting(name: str, field: Any) -> Setting:
    kind, empty, choices = _kind(field.annotation)
    extra = field.json_schema_extra or {}
    return Setting(
        name=name,
        title=field.title or name.replace("_", " ").capitalize(),
        description=field.description or "",
        kind=kind,
        default=field.get_default(call_default_factory=True),
        basic=bool(extra.get("basic")),
        empty=empty,
        choices=choices,
        bounds=_bounds(field.metadata) if kind in ("integer", "number") else "",
    )


def _kind(annotation: Any) -> tuple[Kind, bool, tuple[str, ...]]:
    """(kind of input, whether it may be empty, choices) of a field's type."""
    if typing.get_origin(annotation) in (UnionType, typing.Union):
        parts = [part for part in typing.get_args(annotation) if part is not type(None)]
        return _kind(parts[0])[0], True, _kind(parts[0])[2]
    if typing.get_origin(annotation) is Literal:
        return "choice", False, typing.get_args(annotation)
    if typing.get_origin(annotation) in (tuple, list):
        return "lines", True, ()
    plain: dict[Any, Kind] = {bool: "switch", int: "integer", float: "number"}
    return plain.get(annotation, "text"), False, ()


def _bounds(metadata: Sequence[Any]) -> str:
    found = {name: getattr(part, name) for part in metadata for name in ("gt", "ge", "lt", "le") if hasattr(part, name)}
    least = f"{found['ge']:,}" if "ge" in found else f"above {found['gt']:,}" if "gt" in found else ""
    if found.get("le", 0) > MOST_TOLD:
        return ""
    most = f"{found['le']:,}" if "le" in found else f"below {found['lt']:,}" if "lt" in found else ""
    return f"{least} to {most}" if least and most else least or most


@dataclass(frozen=True)
class Form:
    """The inputs that `build_form` made, in the order of their settings."""

    cls: type[Config]
    settings: list[Setting]
    inputs: list[Any]

    def read(self, values: Sequence[Any], hidden: Mapping[str, Any] | None = None) -> Config:
        """The configuration that the inputs' `values` say, with settings the form leaves out from `hidden`. Raises ConfigError."""
        return self.cls.of(self.given(values, hidden))

    def given(self, values: Sequence[Any], hidden: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Names and values, not yet checked."""
        shown = {setting.name: _from_input(setting, value) for setting, value in zip(self.settings, values, strict=True)}
        return {**(hidden or {}), **shown}

    def show(self, config: Config) -> list[Any]:
        """Updates that put a configuration into the inputs and clear their messages."""
        return [_update(setting, "", value=_to_input(setting, getattr(config, setting.name))) for setting in self.settings]

    def tell(self, problems: Mapping[str, str], before: Mapping[str, str]) -> list[Any]:
        """Updates that leave the values alone and put each problem at its input; inputs told the same `before` are not touched."""
        return [
            gr.skip() if problems.get(each.name) == before.get(each.name) else _update(each, problems.get(each.name, ""))
            for each in self.settings
        ]


def _update(setting: Setting, problem: str, **changes: Any) -> dict[str, Any]:
    problem = problem.removeprefix(f"{setting.title}: ")  # which stands right above
    problem = problem[:1].upper() + problem[1:]
    classes = ["dd-field", "dd-wrong"] if problem else ["dd-field"]
    return gr.update(info=_text(problem or setting.info), elem_classes=classes, **changes)


def _text(words: str) -> str:
    # Gradio documents this place as markup but shows entities as they are, so angle brackets are replaced and not escaped
    return words.translate({ord("<"): "‹", ord(">"): "›"})


def build_form(initial: Config, without: Sequence[str] = (), labels: Labels | None = None) -> Form:
    """Make the inputs of `initial`'s class, filled with its values, in the current layout: basics first, the others in a fold.

    labels: {setting: {choice: what to show for it}}. The inputs carry no bounds of their own, because Gradio would tell them in a
    passing message instead of at the input.
    """
    settings = settings_of(type(initial), without)
    made: dict[str, Any] = {}
    with gr.Row(elem_classes=["dd-form"]):
        for setting in settings:
            if setting.basic:
                made[setting.name] = _input(setting, getattr(initial, setting.name), (labels or {}).get(setting.name, {}))
    if any(not setting.basic for setting in settings):
        with gr.Accordion("More settings", open=False, elem_classes=["dd-more"]), gr.Row(elem_classes=["dd-form"]):
            for setting in settings:
                if not setting.basic:
                    made[setting.name] = _input(setting, getattr(initial, setting.name), (labels or {}).get(setting.name, {}))
    return Form(type(initial), settings, [made[setting.name] for setting in settings])


def _input(setting: Setting, value: Any, labels: Mapping[str, str]) -> Any:
    same: dict[str, Any] = {
        "label": setting.title,
        "info": _text(setting.info),
        "value": _to_input(setting, value),
        "elem_id": f"dd-setting-{setting.name}",
        "elem_classes": ["dd-field"],
        "interactive": True,
        "min_width": 150,
    }
    if setting.kind == "choice":
        choices = [(labels.get(choice, choice.replace("_", " ")), choice) for choice in setting.choices]
        return gr.Dropdown(choices=choices, filterable=False, **same)
    if setting.kind == "switch":
        return gr.Checkbox(**same)
    if setting.kind in ("integer", "number"):
        return gr.Number(step=1 if setting.kind == "integer" else 1e-5, **same)
    return gr.Textbox(lines=2 if setting.kind == "lines" else 1, **same)


def _to_input(setting: Setting, value: Any) -> Any:
    if setting.kind == "lines":
        return "\n".join(value or ())
    if setting.kind == "text":
        return "" if value is None else str(value)
    return value


def _from_input(setting: Setting, value: Any) -> Any:
    if setting.kind == "lines":
        return [line.strip() for line in str(value or "").splitlines() if line.strip()]
    if setting.kind == "text":
        return str(value).strip() or (None if setting.empty else "") if value is not None else (None if setting.empty else "")
    return value


def problems_of(cls: type[Config], values: Mapping[str, Any]) -> dict[str, str]:
    """Everything that is wrong with `values`, by setting; {} if they make a configuration. What fits no setting stands under ""."""
    values = dict(values)
    found: dict[str, str] = {}
    for _attempt in range(len(cls.model_fields) + 1):
        try:
            cls.of(values)
            break
        except ConfigError as error:
            name = error.field or _blamed(cls, str(error))
            if name in found or name not in cls.model_fields:
                found.setdefault("", str(error))
                break
            found[name] = str(error)
            values[name] = cls.model_fields[name].get_default(call_default_factory=True)
    return found


def _blamed(cls: type[Config], message: str) -> str:
    """The setting whose title a message about several settings begins with, or ""."""
    titled = ((field.title, name) for name, field in cls.model_fields.items() if field.title)
    return next((name for title, name in sorted(titled, reverse=True) if message.startswith(title)), "")
