"""How the page looks: one palette (for CSS and for plots), the Gradio theme built on it, and the head with fonts and style sheets."""

import base64
from pathlib import Path

import gradio as gr

HERE = Path(__file__).parent
STYLE_SHEETS = ("base", "page", "dataset", "train", "compare", "study")

# Text colours keep a contrast of at least 4.5:1 on page, card and their own soft background.
PALETTE: dict[str, dict[str, str]] = {
    "light": {
        "ink": "#1b2729",
        "muted": "#536165",
        "line": "#d7dfe0",
        "edge": "#87969a",
        "page": "#f5f7f7",
        "card": "#ffffff",
        "accent": "#0f6b6b",
        "accent-soft": "#e2efee",
        "on-accent": "#ffffff",
        "base": "#4c5b73",
        "tuned": "#0f6b6b",
        "warn": "#7d5200",
        "warn-soft": "#faf0da",
        "bad": "#a3302a",
        "ok": "#2a6a3c",
    },
    "dark": {
        "ink": "#e3ebeb",
        "muted": "#a2b1b4",
        "line": "#2c3a3e",
        "edge": "#6a7c81",
        "page": "#0f1618",
        "card": "#161f22",
        "accent": "#5bc0b5",
        "accent-soft": "#173332",
        "on-accent": "#0a1718",
        "base": "#a5b4cc",
        "tuned": "#5bc0b5",
        "warn": "#e3b661",
        "warn-soft": "#30281a",
        "bad": "#f19087",
        "ok": "#80c894",
    },
}


# What Gradio calls its parts, and which of the palette's colours each has, in light and dark alike.
THEME: dict[str, str] = {
    "body_background_fill": "page",
    "body_text_color": "ink",
    "body_text_color_subdued": "muted",
    "background_fill_primary": "card",
    "background_fill_secondary": "page",
    "border_color_primary": "line",
    "border_color_accent": "accent",
    "border_color_accent_subdued": "accent",
    "color_accent_soft": "accent-soft",
    "link_text_color": "accent",
    "link_text_color_active": "accent",
    "link_text_color_hover": "ink",
    "link_text_color_visited": "accent",
    "code_background_fill": "page",
    "block_background_fill": "card",
    "block_border_color": "line",
    "block_info_text_color": "muted",
    "block_label_background_fill": "card",
    "block_label_border_color": "line",
    "block_label_text_color": "muted",
    "block_title_text_color": "ink",
    "panel_background_fill": "page",
    "panel_border_color": "line",
    "accordion_text_color": "ink",
    "table_text_color": "ink",
    "table_border_color": "line",
    "table_even_background_fill": "card",
    "table_odd_background_fill": "page",
    "table_row_focus": "accent-soft",
    "checkbox_background_color": "card",
    "checkbox_background_color_focus": "card",
    "checkbox_background_color_hover": "card",
    "checkbox_background_color_selected": "accent",
    "checkbox_border_color": "edge",
    "checkbox_border_color_focus": "accent",
    "checkbox_border_color_hover": "accent",
    "checkbox_border_color_selected": "accent",
    "checkbox_label_background_fill": "card",
    "checkbox_label_background_fill_hover": "accent-soft",
    "checkbox_label_background_fill_selected": "accent-soft",
    "checkbox_label_border_color": "edge",
    "checkbox_label_border_color_hover": "edge",
    "checkbox_label_border_color_selected": "accent",
    "checkbox_label_text_color": "ink",
    "checkbox_label_text_color_selected": "ink",
    "error_background_fill": "card",
    "error_border_color": "bad",
    "error_text_color": "bad",
    "error_icon_color": "bad",
    "input_background_fill": "card",
    "input_background_fill_focus": "card",
    "input_background_fill_hover": "card",
    "input_border_color": "edge",
    "input_border_color_focus": "accent",
    "input_border_color_hover": "muted",
    "input_placeholder_color": "muted",
    "loader_color": "accent",
    "slider_color": "accent",
    "stat_background_fill": "accent",
    "button_primary_background_fill": "accent",
    "button_primary_background_fill_hover": "accent",
    "button_primary_border_color": "accent",
    "button_primary_border_color_hover": "ink",
    "button_primary_text_color": "on-accent",
    "button_primary_text_color_hover": "on-accent",
    "button_secondary_background_fill": "card",
    "button_secondary_background_fill_hover": "accent-soft",
    "button_secondary_border_color": "edge",
    "button_secondary_border_color_hover": "accent",
    "button_secondary_text_color": "ink",
    "button_secondary_text_color_hover": "ink",
    "button_cancel_background_fill": "card",
    "button_cancel_background_fill_hover": "card",
    "button_cancel_border_color": "bad",
    "button_cancel_border_color_hover": "bad",
    "button_cancel_text_color": "bad",
    "button_cancel_text_color_hover": "bad",
}

FLAT = ("block_shadow", "shadow_drop", "shadow_drop_lg", "shadow_inset", "input_shadow", "checkbox_shadow", "block_label_shadow")


def variables() -> str:
    """The palette as CSS variables, for light and for `.dark`."""
    blocks = [f"{selector}{{{_declared(PALETTE[mode])}}}" for selector, mode in ((":root", "light"), (".dark", "dark"))]
    return "\n".join(blocks)


def _declared(colours: dict[str, str]) -> str:
    return "".join(f"--dd-{name}:{value};" for name, value in colours.items())


def _font_faces() -> str:
    plex = [_font_face("DeepDoctor Sans", f"ibm-plex-sans-latin-{weight}-normal.woff2", f"font-weight:{weight};") for weight in (400, 700)]
    # two signs of the R1 distills' special tokens that few systems' monospaced fonts have
    signs = _font_face("DeepDoctor Signs", "deepdoctor-signs.woff2", "unicode-range:U+FF5C,U+2581;")
    return "\n".join([*plex, signs])


def _font_face(family: str, file: str, more: str) -> str:
    data = base64.b64encode((HERE / "fonts" / file).read_bytes()).decode()
    return f'@font-face{{font-family:"{family}";font-display:swap;{more}src:url("data:font/woff2;base64,{data}") format("woff2")}}'


def style_sheet() -> str:
    """All style sheets as one text. It goes into the head, because Gradio rewrites the selectors of its own `css` argument."""
    sheets = [HERE / "css" / f"{name}.css" for name in STYLE_SHEETS]
    return "\n".join([_font_faces(), variables(), *(sheet.read_text(encoding="utf-8") for sheet in sheets if sheet.exists())])


def head() -> str:
    """What goes into the page's head: fonts, palette and style sheets."""
    return f"<style>\n{style_sheet()}\n</style>"


def theme() -> gr.themes.Base:
    """The Gradio theme in terms of the palette's variables, so that light and dark need no second list."""
    ours = gr.themes.Base(
        font=[gr.themes.Font("DeepDoctor Sans"), gr.themes.Font("DeepDoctor Signs"), "ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=[
            gr.themes.Font("DeepDoctor Signs"),
            "ui-monospace",
            "SFMono-Regular",
            "Menlo",
            "Consolas",
            "DejaVu Sans Mono",
            "monospace",
        ],
        radius_size=gr.themes.sizes.radius_sm,
    )
    values = {name: f"var(--dd-{colour})" for name, colour in THEME.items()}
    both = {f"{name}_dark": value for name, value in values.items()}
    more = {"color_accent": values["border_color_accent"], "input_border_width": "1px", "button_border_width": "1px"}
    return ours.set(**values, **both, **more, **dict.fromkeys(FLAT, "none"), button_transition="none", layout_gap="16px")
