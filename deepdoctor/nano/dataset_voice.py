"""The dataset voice: as medical-o1 rows read. A shorter, natural train of thought, then one flowing paragraph."""

from random import Random

from deepdoctor.dataset import Example
from deepdoctor.nano.cases import Case, capital

# Few wordings, each of which shows in its first words what is being asked: sixty steps of tuning must be enough to take them up.
OPENINGS = (
    "Alright, let's think this through. We have {a_patient} with {listed}.",
    "Let's see what's going on here. {A_patient} comes in with {listed}.",
    "So, here's {a_patient} who turns up with {listed}.",
)
LINKS = (
    "Hmm, this combination really sounds like {name}.",
    "Oh, these clues line up nicely with {name}.",
    "Now, what ties these together? {Name} does.",
)
RULED_OUT = (
    "Could {other} look like this? Not really, since {reason}.",
    "Sure, {other} deserves a thought, yet {reason}, and that makes it a poor match.",
)
DECISIONS = {
    "diagnosis": (
        "Now for the diagnosis: it all comes down to {name}.",
        "What is being asked is the diagnosis, which has to be {name}.",
    ),
    "test": (
        "Now for the next test: with {name}, you reach for {test}.",
        "What is being asked is the next test, which for {name} has to be {test}.",
    ),
    "result": (
        "Now for what to expect: given {name}, {test} ought to bring out {result}.",
        "What is being asked is the expected finding: in {name}, {test} ought to bring out {result}.",
    ),
    "mechanism": (
        "Now for the mechanism: {mechanism}, and that is how {name} comes about.",
        "What is being asked is the mechanism: in {name}, {mechanism}.",
    ),
    "treatment": (
        "Now for the treatment: with {name}, you start with {treatment}.",
        "What is being asked is the first treatment, which for {name} has to be {treatment}.",
    ),
}
CHECKS = (
    "Everything fits together, so that's settled.",
    "Yep, that makes sense with the whole story.",
)
ANSWERS = {
    "diagnosis": (
        "The most likely diagnosis is {name}. It accounts for {listed}, as {mechanism}.",
        "This {noun} most likely has {name}, which accounts for {listed}.",
    ),
    "test": (
        "The best next test is {test}. It is chosen because {listed} make {name} likely.",
        "The next investigation should be {test}, since the likely condition is {name}, given {listed}.",
    ),
    "result": (
        "{Test} would most likely show {result}. This is what one expects in {name}, which is suggested by {listed}.",
        "One would expect {test} to show {result}, since the likely condition is {name}, given {listed}.",
    ),
    "mechanism": (
        "The underlying mechanism is that {mechanism}. This is what happens in {name}, which accounts for {listed}.",
        "What lies behind this is {name}, in which {mechanism}. This accounts for {listed}.",
    ),
    "treatment": (
        "The first treatment should be {treatment}. The combination of {listed} is characteristic of {name}.",
        "Treatment should begin with {treatment}, since the likely condition is {name}, given {listed}.",
    ),
}
AGAINST = (
    "{Other} is less likely because {reason}.",
    "{Other} is an unlikely alternative, as {reason}.",
)


def in_dataset_voice(case: Case, random: Random) -> Example:
    """The case as a teaching row has it: a brief natural thought that weighs the foremost differential, and one paragraph of response."""

    def say(templates: tuple[str, ...], **extra: str) -> str:
        return capital(random.choice(templates).format_map({**case.words, **extra}))

    other = case.condition.differentials[0]
    difference = {"other": other.name, "Other": capital(other.name), "reason": other.reason}
    reasoning = (say(OPENINGS), say(LINKS), say(RULED_OUT, **difference), say(DECISIONS[case.asked]), say(CHECKS))
    response = (say(ANSWERS[case.asked]), say(AGAINST, **difference))
    return Example(case.question, " ".join(reasoning), " ".join(response))
