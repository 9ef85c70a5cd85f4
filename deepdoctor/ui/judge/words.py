"""What the judging pages call things: questions, choices and remarks, by the names under which the store keeps them."""

PREFERENCE_ASKED = "Which would you rather give a colleague?"
PREFERENCES = {"A": "Answer A", "B": "Answer B", "both": "Both acceptable", "neither": "Both bad"}
CORRECT = {"correct": "Correct", "partly": "Partly", "wrong": "Wrong", "unsure": "Can’t tell"}
HARM = {"none": "None", "moderate": "Mild to moderate", "severe": "Severe or death"}
CHIPS = {
    "wrong_fact": "Wrong fact",
    "faulty_reasoning": "Faulty reasoning",
    "omission": "Omission",
    "irrelevant": "Irrelevant",
    "overconfident": "Overconfident",
    "unclear_or_long": "Unclear or too long",
    "biased": "Biased",
}
SOUND = {"sound": "Sound", "flawed": "Flawed", "unsure": "Can’t tell"}
GUESSES = {"A": "Answer A", "B": "Answer B", "none": "No idea"}
