"""How the page calls the values of settings that have a few to choose from: the same words on forms, in lists and in tables."""

from deepdoctor.prompts import STYLES
from deepdoctor.tokens import SUPERVISION

PRESETS = {"article": "Article", "quick": "Quick", "full_epoch": "Full epoch", "own": "Own"}
SOURCES = {"bundled": "Bundled teaching cases", "file": "File", "hub": "Hugging Face Hub"}
LABELS = {
    "preset": PRESETS,
    "source": SOURCES,
    "prompt_style": {name: style.label for name, style in STYLES.items()},
    "supervision": SUPERVISION,
    "attention": {"pytorch": "PyTorch", "cudnn": "cuDNN"},
}


def label_of_choice(setting: str, choice: str) -> str:
    """What the page calls that value of that setting."""
    return LABELS.get(setting, {}).get(choice, choice.replace("_", " "))
