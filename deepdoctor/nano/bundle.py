"""The bundled rows: 500 teaching cases and the held-out cases, in the dataset voice and the dataset's own columns."""

import json
from pathlib import Path
from random import Random

from deepdoctor.dataset import Example
from deepdoctor.nano.cases import (
    SHOWCASE_QUESTION,
    Case,
    held_out_combinations,
    make_case,
    training_combinations,
)
from deepdoctor.nano.dataset_voice import in_dataset_voice
from deepdoctor.nano.knowledge import ASKED, Condition, load_conditions
from deepdoctor.overlap import Overlap

TEACHING_FILE = Path(__file__).with_name("teaching_cases.json")
HELD_OUT_FILE = Path(__file__).with_name("held_out_cases.json")
TEACHING_ROWS = 500
HELD_OUT_ROWS = 200
BUNDLE_SEED = 500

SHOWCASE = Example(
    question=SHOWCASE_QUESTION,
    reasoning=(
        "Alright, let's think this through. We have a 61-year-old woman who leaks when she coughs or sneezes, yet stays dry at night. "
        "Hmm, leakage that comes with a rise in abdominal pressure sounds like stress urinary incontinence, and the Q-tip test was done to "
        "look for urethral hypermobility. Could urge incontinence look like this? Not really, since there is no urgency and no leakage at "
        "night. Now for cystometry: given stress urinary incontinence, the bladder itself works well, so it ought to bring out a normal "
        "residual volume and no involuntary detrusor contractions. Yep, that makes sense with the whole story."
    ),
    response=(
        "Cystometry would most likely show a normal residual volume and no involuntary detrusor contractions. This is what one expects in "
        "stress urinary incontinence, which is suggested by leakage on coughing or sneezing without leakage at night: weak support of the "
        "bladder neck lets abdominal pressure exceed urethral closure pressure, while the bladder fills and empties normally."
    ),
)


def teaching_rows() -> list[dict[str, str]]:
    """The 500 training rows; the first is the source article's showcase question. None is much like a held-out one."""
    random = Random(BUNDLE_SEED)
    conditions = load_conditions()
    held_out = Overlap([row["Question"] for row in held_out_rows()])
    rows = [_row(SHOWCASE)]
    for index, condition in enumerate(_in_turns(conditions, TEACHING_ROWS - 1, random)):
        row, again = _teaching_row(condition, index, random), 0
        while held_out.grade(row["Question"]).grade != "unseen":
            again += 1
            # a source of its own, so that the rows after this one stay what they are
            row = _teaching_row(condition, index, Random(f"{BUNDLE_SEED}/{index}/{again}"))
        rows.append(row)
    return rows


def _teaching_row(condition: Condition, index: int, random: Random) -> dict[str, str]:
    case = make_case(condition, ASKED[index % len(ASKED)], random.choice(training_combinations(condition)), random)
    return _row(in_dataset_voice(case, random))


def held_out_rows() -> list[dict[str, str]]:
    """Rows of held-out combinations: every condition at least once, what is asked in equal shares, with the facts to score by."""
    random = Random(BUNDLE_SEED + 1)
    rows = []
    for index, condition in enumerate(_in_turns(load_conditions(), HELD_OUT_ROWS, random)):
        case = make_case(condition, ASKED[index % len(ASKED)], random.choice(held_out_combinations(condition)), random)
        rows.append({**_row(in_dataset_voice(case, random)), **_facts(case)})
    return rows


def write_bundle(folder: Path = TEACHING_FILE.parent) -> None:
    """Write both files into `folder`; the same conditions always give the same bytes."""
    for name, rows in ((TEACHING_FILE.name, teaching_rows()), (HELD_OUT_FILE.name, held_out_rows())):
        (folder / name).write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _in_turns(conditions: list[Condition], rows: int, random: Random) -> list[Condition]:
    """Conditions in shuffled rounds, so that each comes up as often as any other."""
    turns: list[Condition] = []
    while len(turns) < rows:
        turns += random.sample(conditions, len(conditions))
    return turns[:rows]


def _row(example: Example) -> dict[str, str]:
    return {"Question": example.question, "Complex_CoT": example.reasoning, "Response": example.response}


def _facts(case: Case) -> dict[str, str]:
    return {"Condition": case.condition.name, "Specialty": case.condition.specialty, "Asked": case.asked, "Key_Term": case.key_term}
