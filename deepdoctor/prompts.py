"""The shape of the text, known only here: a question becomes a prompt, an example becomes training text, an answer becomes two parts.

The beginning-of-sequence token is never part of the text: the tokenizer adds it. The end-of-sequence token is added here, once.
Article style: from the fine-tuning recipe that DeepDoctor reproduces (README, Source). Native style: the R1 distills' own template.
"""

from dataclasses import dataclass

from deepdoctor.errors import ConfigError

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
MARKERS = (THINK_OPEN, THINK_CLOSE, "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")


@dataclass(frozen=True)
class PromptStyle:
    """One way to put a question to the model. `prompt` contains `{question}`; `joint` stands between `</think>` and the response."""

    name: str
    label: str
    prompt: str
    before_reasoning: str
    joint: str


ARTICLE = PromptStyle(
    name="article",
    label="Article (the prompt of the source's recipe)",
    prompt=(
        "Below is an instruction that describes a task, paired with an input that provides further context.\n"
        "Write a response that appropriately completes the request.\n"
        "Before answering, think carefully about the question and create a step-by-step chain of thoughts "
        "to ensure a logical and accurate response.\n"
        "### Instruction:\n"
        "You are a medical expert with advanced knowledge in clinical reasoning, diagnostics, and treatment planning.\n"
        "Please answer the following medical question.\n"
        "### Question:\n{question}\n### Response:\n" + THINK_OPEN
    ),
    before_reasoning="\n",
    joint="\n",
)
NATIVE = PromptStyle(
    name="native",
    label="Native (the R1 distills' own chat template)",
    prompt="<｜User｜>{question}<｜Assistant｜>" + THINK_OPEN + "\n",
    before_reasoning="",
    joint="\n\n",
)
STYLES = {style.name: style for style in (ARTICLE, NATIVE)}


def style_named(name: str) -> PromptStyle:
    """The prompt style of that name. Raises ConfigError naming the known styles."""
    if name not in STYLES:
        raise ConfigError(f"Unknown prompt style {name!r}; choose one of: {', '.join(STYLES)}.", field="prompt_style")
    return STYLES[name]


def marker_in(text: str) -> str | None:
    """The first control marker (such as `</think>`) that occurs in a text, or None."""
    return next((marker for marker in MARKERS if marker in text), None)


def render_question(question: str, style: PromptStyle = ARTICLE) -> str:
    """The prompt for a question, ending inside the open thought.

    Raises ConfigError if the question is empty or contains a control marker, which the model would obey instead of read.
    """
    question = question.strip()
    if not question:
        raise ConfigError("Please write a question first.", field="question")
    if marker := marker_in(question):
        raise ConfigError(f"The question contains {marker}, which the model obeys instead of reading. Please remove it.", field="question")
    return style.prompt.replace("{question}", question)


def render_completion(reasoning: str, response: str, eos: str, style: PromptStyle = ARTICLE) -> str:
    """What the model is to write after the prompt: reasoning, the closing tag, response and the end-of-sequence token `eos`."""
    return f"{style.before_reasoning}{reasoning.strip()}\n{THINK_CLOSE}{style.joint}{response.strip()}{eos}"


def split_completion(text: str) -> tuple[str, str, bool]:
    """Split generated text into (reasoning, response, closed).

    `closed` says whether the thought was ended; while it is open, everything is reasoning and there is no response.
    """
    text = text.removeprefix(THINK_OPEN)
    reasoning, tag, response = text.partition(THINK_CLOSE)
    return reasoning.strip(), response.strip(), bool(tag)
