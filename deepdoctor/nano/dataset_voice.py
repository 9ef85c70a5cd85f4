"""The dataset voice: as medical-o1 rows read. A shorter, natural train of thought, then one flowing paragraph."""

from random import Random

from deepdoctor.dataset import Example
from deepdoctor.nano.cases import Case, capital

OPENINGS = (
    "Alright, let's think this through. We have {a_patient} with {listed}.",
    "Let's see what's going on here. {A_patient} comes in with {listed}.",
    "So, here's {a_patient} who turns up with {listed}.",
    "Alright, let's picture this: {a_patient} with {listed}.",
)
BACKGROUNDS = (
    "The history of {background} is worth noting.",
    "And don't overlook the history of {background}.",
)
LINKS = (
    "Hmm, this combination really sounds like {name}.",
    "Oh, these clues line up nicely with {name}.",
    "Hmm, that pattern points straight to {name}.",
    "Now, what ties these together? {Name} does.",
)
RULED_OUT = (
    "{Other} crosses the mind too, yet {reason}, so it drops down the list.",
    "Could {other} look like this? Not really, since {reason}.",
    "Sure, {other} deserves a thought, yet {reason}, and that makes it a poor match.",
)
DECISIONS = {
    "diagnosis": (
        "So {name} it is, and that answers what is being asked.",
        "So, all things considered, {name} is the diagnosis here.",
    ),
    "test": (
        "So the sensible next move is {test}.",
        "Now for the test: with {name}, you reach for {test}.",
    ),
    "result": (
        "So, when {name} is put to the test with {test}, we'd see {result}.",
        "Now for {test}: given {name}, it ought to bring out {result}.",
    ),
    "mechanism": (
        "So what drives it? In {name}, {mechanism}.",
        "Now for the mechanism: {mechanism}, and that is how {name} comes about.",
    ),
    "treatment": (
        "So, for {name}, the sensible opening move is {treatment}.",
        "Now for the treatment: with {name}, you start with {treatment}.",
    ),
}
CHECKS = (
    "Everything fits together, so that's settled.",
    "Yep, that makes sense with the whole story.",
    "Looking back over the story, nothing contradicts this.",
)
ANSWERS = {
    "diagnosis": (
        "The most likely diagnosis is {name}. The picture of {listed} is typical of it, as {mechanism}.",
        "This {noun} most likely has {name}, which accounts for {listed}.",
    ),
    "test": (
        "The best next test is {test}. With {listed}, the likely condition is {name}, and this would be expected to show {result}.",
        "Given {listed}, {name} is suspected, so the most useful next test is {test}.",
    ),
    "result": (
        "{Test} would most likely show {result}. This is what one expects in {name}, which is suggested by {listed}.",
        "In this {noun} with {listed}, the likely condition is {name}, so {test} would most likely show {result}.",
    ),
    "mechanism": (
        "The findings are best explained by {name}, in which {mechanism}. This accounts for {listed}.",
        "Given {listed}, the condition is most likely {name}. The underlying mechanism is that {mechanism}.",
    ),
    "treatment": (
        "The first treatment should be {treatment}. The combination of {listed} is characteristic of {name}.",
        "Given {listed}, this {noun} most likely has {name}, and the most appropriate first treatment is {treatment}.",
    ),
}
AGAINST = (
    "{Other} is less likely because {reason}.",
    "{Other} is an unlikely alternative, as {reason}.",
)


def in_dataset_voice(case: Case, random: Random) -> Example:
    """The case as a teaching row has it: a brief natural thought, and a response of one paragraph."""

    def say(templates: tuple[str, ...], **extra: str) -> str:
        return capital(random.choice(templates).format_map({**case.words, **extra}))

    other = random.choice(case.condition.differentials)
    difference = {"other": other.name, "Other": capital(other.name), "reason": other.reason}
    reasoning = [say(OPENINGS)]
    if case.patient.background and random.random() < 0.5:
        reasoning.append(say(BACKGROUNDS))
    reasoning += [say(LINKS), say(RULED_OUT, **difference), say(DECISIONS[case.asked])]
    if random.random() < 0.6:
        reasoning.append(say(CHECKS))
    response = [say(ANSWERS[case.asked])]
    if random.random() < 0.6:
        response.append(say(AGAINST, **difference))
    return Example(case.question, " ".join(reasoning), " ".join(response))
