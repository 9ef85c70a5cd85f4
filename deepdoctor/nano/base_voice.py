"""The base voice: as R1 distills write before tuning. Long, hedging, restarting thoughts, then bold headings and bullet points."""

from random import Random

from deepdoctor.dataset import Example
from deepdoctor.nano.cases import Case, capital, listed
from deepdoctor.nano.knowledge import Differential

GOALS = {
    "diagnosis": ("what the most likely diagnosis is", "which diagnosis explains all of this"),
    "test": ("which test should come next", "what the best next test is"),
    "result": ("what {test} would show", "what {test} would reveal here"),
    "mechanism": ("what mechanism is behind this", "why this is happening in the body"),
    "treatment": ("what treatment should come first", "how this should be treated at first"),
}
OPENINGS = (
    "Okay, so I need to figure out {goal}.",
    "Okay, so I'm trying to work out {goal}.",
    "Okay, let me try to understand {goal}.",
    "Okay, so the question is asking {goal}, and I have to think about it carefully.",
    "Okay, so I have this case and I want to find out {goal}.",
    "Okay, I need to determine {goal}, and I'm not entirely sure yet.",
)
PATIENTS = (
    "The patient is {a_patient}.",
    "So the case is about {a_patient}.",
    "First of all, I'm dealing with {a_patient}.",
    "Let me start with the basics: {a_patient}.",
)
BACKGROUNDS = (
    "There's a history of {background}, which might be relevant, but I'm not sure.",
    "The background mentions {background}. Maybe that matters, so I'll keep it in mind.",
    "I also see {background} in the history, which could be a clue.",
)
FIRST_FINDINGS = (
    "The first thing mentioned is {finding}.",
    "To begin with, there's the matter of {finding}.",
    "I'll go through the details one by one, starting with {finding}.",
    "The question starts with {finding}.",
)
NEXT_FINDINGS = (
    "Then there's the mention of {finding}.",
    "Next comes the fact that {he} presents with {finding}.",
    "Another detail is {finding}.",
    "After that, the question gives me {finding}.",
    "The next point is {finding}.",
    "And I also read about {finding}.",
)
LAST_FINDINGS = (
    "And finally, the last detail is {finding}.",
    "And then, on top of that, the case includes {finding}.",
    "The last thing on the list is {finding}.",
    "And I shouldn't forget the part about {finding}.",
)
COMMENTS = (
    "Hmm, that could mean a few different things.",
    "I think that's probably important.",
    "I'm not sure what to make of that yet.",
    "That alone doesn't settle it, though.",
    "I remember that this can be a strong hint.",
    "Maybe that narrows it down a bit.",
    "I should keep that in mind.",
    "I wonder how that fits with the rest.",
)
DOUBTS = (
    "Maybe it's {other}? Wait, {reason}, so that might not fit.",
    "Hmm, could it be {other}? But as far as I know {reason}. So maybe not.",
    "Wait, what about {other}? I think {reason}, so I'm leaning away from that.",
    "I was thinking about {other} for a moment. Hmm, but {reason}, so that seems off.",
    "Another possibility might be {other}. But wait, {reason}. So that doesn't seem right either.",
    "Perhaps I should also consider {other}. Hmm, {reason}, so probably not that one.",
)
GUESSES = (
    "So maybe this is {name}. I think that would make sense.",
    "That makes me wonder whether this is {name}.",
    "I'm starting to think that it could be {name}.",
    "{Name} comes to mind, but let me make sure.",
)
RESTARTS = (
    "Wait, let me go back and check that again. There was the mention of {listed}.",
    "Wait, let me double-check. What stands out to me is {two}.",
    "Wait, maybe I'm moving too fast. Let me look at it once more: {listed}.",
    "Wait, no, let me start over for a second. The key points would be {two}.",
    "Wait, am I missing something? I have to account for {two} at the same time.",
)
AGREEMENTS = (
    "So if I put that together, I keep coming back to {name}.",
    "Yeah, I'm pretty sure that all of that adds up to {name}.",
    "Okay, so everything there seems consistent with {name}.",
    "Right, so {name} is what I end up with again.",
)
FACTS = {
    "test": (
        "To look into it, I believe one would use {test}.",
        "From what I remember, the test to think of there is {test}.",
    ),
    "result": (
        "If I remember correctly, {test} would show {result}.",
        "I think {test} would come back with {result}.",
        "And I believe {test} should reveal {result}.",
    ),
    "mechanism": (
        "From what I remember, in this condition {mechanism}.",
        "I think the reason behind it is that {mechanism}.",
        "As far as I recall, it happens because {mechanism}.",
    ),
    "treatment": (
        "For treatment, I think they would begin with {treatment}.",
        "And I recall that the treatment starts with {treatment}.",
    ),
}
DECISIONS = {
    "diagnosis": (
        "So the diagnosis I'd go with is {name}.",
        "So I think the answer to the question is {name}.",
        "Therefore I would say that it's {name}.",
    ),
    "test": (
        "Now, which test? For {name} I think it's {test}.",
        "So back to the question, the next test. For {name}, I'd go for {test}.",
        "Therefore, with {name} in mind, the next test would have to be {test}.",
    ),
    "result": (
        "So what would {test} show? In {name}, I'd expect {result}.",
        "So back to the question. With {name}, I believe {test} would show {result}.",
        "Therefore {test} should come back with {result}, if it's {name}.",
    ),
    "mechanism": (
        "So why does it happen? In {name}, I think {mechanism}.",
        "So back to the question, the mechanism. In {name}, I believe {mechanism}.",
        "Therefore the mechanism would be that of {name}, where {mechanism}.",
    ),
    "treatment": (
        "So what comes first? For {name}, I think it's {treatment}.",
        "So back to the question, the treatment. With {name}, I'd begin with {treatment}.",
        "Therefore, for {name}, the first step would have to be {treatment}.",
    ),
}
ENDINGS = (
    "I think that's right, but I might be overthinking it. Let me just write it down.",
    "I'm fairly confident about that now, so I'll put together the answer.",
    "Wait, is there anything else? No, I don't think so. I'll go with that.",
    "Hmm, I don't see anything that speaks against it. So that should be my answer.",
    "Okay, I think I've got it. I'll organize the answer step by step.",
)
TITLES = {
    "diagnosis": "Diagnosis",
    "test": "Next Test",
    "result": "Expected Result",
    "mechanism": "Mechanism",
    "treatment": "First Treatment",
}
ANSWER_LINES = {
    "diagnosis": "{Name}",
    "test": "{Test}",
    "result": "{Test}: {result}",
    "mechanism": "{Mechanism}",
    "treatment": "{Treatment}",
}
FACT_LINES = {
    "diagnosis": "**Diagnosis:** {name}",
    "test": "**Test:** {test}",
    "result": "**Expected result:** {result}",
    "mechanism": "**Mechanism:** {mechanism}",
    "treatment": "**Treatment:** {treatment}",
}
WHY_TITLES = ("Why", "Key Findings", "Reasoning", "Supporting Findings")
LESS_TITLES = ("Less Likely", "Differential Diagnosis", "Why Not Something Else")


def in_base_voice(case: Case, random: Random) -> Example:
    """The case as the untuned model writes about it: paragraphs of doubt, then an answer under headings."""
    return Example(case.question, _reasoning(case, random), _response(case, random))


def _reasoning(case: Case, random: Random) -> str:
    def say(templates: tuple[str, ...], **extra: str) -> str:
        return capital(random.choice(templates).format_map({**case.words, **extra}))

    goal = say(GOALS[case.asked])
    first = [say(OPENINGS, goal=goal[0].lower() + goal[1:]), say(PATIENTS)]
    if case.patient.background:
        first.append(say(BACKGROUNDS))
    doubts = _doubts(case, random)
    facts = [asked for asked in random.sample(list(FACTS), random.choice((1, 2))) if asked != case.asked]
    again = [say(RESTARTS, two=listed(case.findings[:: len(case.findings) - 1])), say(AGREEMENTS), *(say(FACTS[asked]) for asked in facts)]
    paragraphs = [
        first,
        _findings(case, random),
        [*doubts[:1], say(GUESSES), *doubts[1:]] if random.random() < 0.6 else [say(GUESSES), *doubts],
        again,
        [say(DECISIONS[case.asked]), say(ENDINGS)],
    ]
    return "\n\n".join(" ".join(paragraph) for paragraph in paragraphs)


def _findings(case: Case, random: Random) -> list[str]:
    middle = random.sample(NEXT_FINDINGS, len(case.findings) - 2)
    templates = [random.choice(FIRST_FINDINGS), *middle, random.choice(LAST_FINDINGS)]
    comments = random.sample(COMMENTS, len(templates))
    sentences: list[str] = []
    for template, finding, comment in zip(templates, case.findings, comments, strict=True):
        sentences.append(template.format_map({**case.words, "finding": finding}))
        if random.random() < 0.45:
            sentences.append(comment)
    return sentences


def _doubts(case: Case, random: Random) -> list[str]:
    others: list[Differential] = random.sample(case.condition.differentials, random.choice((1, 1, 2)))
    templates = random.sample(DOUBTS, len(others))
    return [template.format(other=other.name, reason=other.reason) for template, other in zip(templates, others, strict=True)]


def _response(case: Case, random: Random) -> str:
    answer = ANSWER_LINES[case.asked].format_map(case.words)
    others = random.sample(case.condition.differentials, random.choice((1, 2)))
    facts = [asked for asked in FACT_LINES if asked != case.asked]
    shown = sorted(random.sample(facts, 2), key=facts.index)
    if case.asked != "diagnosis" and "diagnosis" not in shown:
        shown = ["diagnosis", *shown[:1]]
    blocks = [f"**{TITLES[case.asked]}**\n- {answer}" if random.random() < 0.3 else f"**{TITLES[case.asked]}**\n{answer}"]
    findings = case.findings if random.random() < 0.7 else (listed(case.findings),)
    blocks.append("\n".join((f"**{random.choice(WHY_TITLES)}**", *(f"- {capital(finding)}" for finding in findings))))
    blocks.append("\n".join(f"- {FACT_LINES[asked].format_map(case.words)}" for asked in shown))
    if random.random() < 0.6:
        lines = (f"- **{capital(other.name)}:** {other.reason}" for other in others)
        blocks.append("\n".join((f"**{random.choice(LESS_TITLES)}**", *lines)))
    return "\n\n".join(blocks)
