"""Grades of questions against training questions: equal, nearly equal, and merely built from the same sentence frame."""

from random import Random
from string import ascii_lowercase

import pytest

from deepdoctor.overlap import Overlap, normalize

STORIES = [
    ("a 61-year-old woman", "leakage of urine on coughing, no urgency and a normal urinalysis"),
    ("a 72-year-old man", "fainting on climbing stairs, a slow-rising carotid pulse and a soft second heart sound"),
    ("a 25-year-old man", "pain moving to the right iliac fossa, rebound tenderness and a low fever"),
    ("a 7-year-old girl", "swollen eyelids on waking, frothy urine and pitting oedema of the ankles"),
    ("a 44-year-old woman", "heat intolerance, a fine tremor and a diffuse goitre with a bruit"),
    ("a 58-year-old man", "sudden pain in the great toe, redness over the joint and a glass of port each evening"),
    ("a 31-year-old woman", "double vision, drooping eyelids and weakness that grows towards evening"),
    ("a 49-year-old man", "retrosternal burning after meals, relief from antacids and a hoarse voice in the morning"),
    ("a 66-year-old woman", "tremor at rest, small handwriting and slowness in rising from a chair"),
]
FRAMES = (
    "{Who} presents with {what}. What is the most likely diagnosis?",
    "{What} are found in {who}. Which condition best explains this picture?",
    "You are asked to see {who}. Examination shows {what}. What underlying disorder would you suspect first?",
)


def asked(story: int, frame: int) -> str:
    who, what = STORIES[story]
    return FRAMES[frame % 3].format(who=who, what=what, Who=who.capitalize(), What=what.capitalize())


def other_rows(count: int) -> list[str]:
    """Rows in the same frames about findings that are no words at all."""
    random = Random(0)
    questions = []
    for number in range(count):
        words = ["".join(random.choices(ascii_lowercase, k=random.randint(4, 9))) for _ in range(8)]
        who, what = (
            f"a {random.randint(5, 90)}-year-old {random.choice(['man', 'woman'])}",
            f"{' '.join(words[:5])} and {' '.join(words[5:])}",
        )
        questions.append(FRAMES[number % 3].format(who=who, what=what, Who=who.capitalize(), What=what.capitalize()))
    return questions


QUESTIONS = [asked(story, frame=story) for story in range(len(STORIES))] + other_rows(60)


@pytest.fixture
def overlap() -> Overlap:
    return Overlap(QUESTIONS)


def test_normalize_folds_what_does_not_distinguish() -> None:
    assert normalize("  What—is\n“Gout”?? ") == "what is gout"
    assert normalize("ｗｈａｔ is GOUT") == "what is gout"
    assert normalize("Straße") == normalize("STRASSE")
    assert normalize("gout") != normalize("gouty")


def test_normalize_keeps_a_text_of_punctuation_apart_from_others() -> None:
    assert normalize("???") != normalize("!!!")


def test_the_same_question_is_seen_whatever_its_case_and_punctuation(overlap: Overlap) -> None:
    seen = overlap.grade(QUESTIONS[2].upper().replace(",", " ;"))
    assert (seen.grade, seen.nearest, seen.row, seen.similarity) == ("seen", QUESTIONS[2], 3, 1.0)


def test_of_equal_training_questions_the_first_is_named() -> None:
    assert Overlap(["What is gout?", "Why?", "what is GOUT"]).grade("what is gout").row == 1


@pytest.mark.parametrize("index", range(len(STORIES)))
def test_a_paraphrase_in_another_frame_is_near_seen(overlap: Overlap, index: int) -> None:
    seen = overlap.grade(asked(index, frame=index + 1))
    assert (seen.grade, seen.row) == ("near-seen", index + 1)
    assert 0.6 <= seen.similarity < 1


def test_another_age_is_near_seen(overlap: Overlap) -> None:
    assert overlap.grade(QUESTIONS[1].replace("72", "79")).grade == "near-seen"


def test_a_question_cut_short_or_with_a_sentence_added_is_near_seen(overlap: Overlap) -> None:
    assert overlap.grade(QUESTIONS[3][: len(QUESTIONS[3]) * 6 // 10]).row == 4
    assert overlap.grade(QUESTIONS[3][: len(QUESTIONS[3]) * 6 // 10]).grade == "near-seen"
    added = (
        " She takes no medicines, lives with both parents, has had all her vaccinations and came back from a holiday by the sea last week."
    )
    assert overlap.grade(QUESTIONS[3] + added).grade == "near-seen"


@pytest.mark.parametrize(
    "question",
    [
        "A 61-year-old woman presents with knuckles swollen, nodules at an elbow. What is the most likely diagnosis?",
        "A 25-year-old man presents with a barking cough, noisy breathing in and a sore throat. What is the most likely diagnosis?",
        "What is the most likely diagnosis?",
        "Fever",
        "一名患者出现胸痛，最可能的诊断是什么？",
    ],
)
def test_the_frame_alone_makes_no_question_near_seen(overlap: Overlap, question: str) -> None:
    assert overlap.grade(question).grade == "unseen"


def test_different_findings_of_the_same_patient_are_unseen_and_still_name_a_nearest_row(overlap: Overlap) -> None:
    seen = overlap.grade(
        "A 44-year-old woman presents with weight loss, a diffuse goitre and a rapid pulse. What is the most likely diagnosis?"
    )
    assert seen.grade == "unseen"
    assert seen.row == 5
    assert 0 < seen.similarity < 0.6


def test_nothing_alike_names_no_row() -> None:
    seen = Overlap(["aaaaaaaa"]).grade("zzzzzzzz")
    assert (seen.grade, seen.nearest, seen.row, seen.similarity) == ("unseen", None, None, 0.0)
    assert Overlap([]).grade("Anything at all?").grade == "unseen"


def test_a_large_index_compared_by_a_sample_grades_alike(overlap: Overlap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepdoctor.overlap.MOST_GRAMS", 4000)
    sampled = Overlap(QUESTIONS)
    assert len(sampled._grams) < len(overlap._grams) / 1.5
    assert sampled.grade(QUESTIONS[1].replace("72", "79")).grade == "near-seen"
    assert sampled.grade("A 61-year-old woman presents with a rash. What is the most likely diagnosis?").grade == "unseen"
