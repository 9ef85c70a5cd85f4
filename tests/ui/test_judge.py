"""The judging pages: what raters can do, what is refused and in which words, and that nothing they are sent unblinds."""

import asyncio
import errno
import hashlib
import html
import os
import re
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware.sessions import SessionMiddleware
from starlette.routing import Mount
from starlette.types import ASGIApp

from deepdoctor.studies.answers import Answer
from deepdoctor.studies.judgments import Judgments
from deepdoctor.studies.study import Studies, Study
from deepdoctor.studies.trials import Rater, Trial
from deepdoctor.ui.components import BANNER, render_answer
from deepdoctor.ui.judge.app import Judge, judge_routes
from tests.studies.prepared import created, prepared
from tests.ui.visitors import SECRET as SPACE_SECRET
from tests.ui.visitors import cookie_of

WHOLE = {"preference": "A", "correct-A": "correct", "correct-B": "wrong", "harm-A": "none", "harm-B": "moderate"}
# so long that no token or time on a page holds it by chance
SEED = 1934071723
SECRET = ("tuned", "base", "native", "nano", "20260101", "secret name", "adapter", "seconds", "tokens", str(SEED))


class Site:
    """The pages behind an address, without a server; `session` is what Gradio's session middleware would have found in the cookie."""

    def __init__(self, data_dir: Path, can_log_in: bool = False) -> None:
        self.store = Judgments(data_dir)
        self.mounted: ASGIApp = Starlette(routes=judge_routes(data_dir, can_log_in))
        self.session: dict[str, Any] | None = None

    def ask(self, method: str, path: str, **sent: Any) -> httpx.Response:
        """One request. Redirects are not followed."""

        async def with_session(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            await self.mounted(scope if self.session is None else {**scope, "session": self.session}, receive, send)

        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(with_session, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://study") as client:
                return await client.request(method, path, **sent)

        return asyncio.run(asked())

    def get(self, path: str) -> httpx.Response:
        """A page."""
        return self.ask("GET", path)

    def post(self, path: str, **fields: Any) -> httpx.Response:
        """A form sent; `given` holds fields whose names are no identifiers."""
        return self.ask("POST", path, data={**fields.pop("given", {}), **fields})


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return prepared(tmp_path, 4, repeat_share=0)


@pytest.fixture
def site(tmp_path: Path, study: Study) -> Site:
    assert study
    return Site(tmp_path)


@pytest.fixture
def rater(study: Study) -> Rater:
    return study.join("Ada <b>Lovelace</b>", "Cardiology", 12)


def home(study: Study, rater: Rater) -> str:
    return f"/judge/{study.id}/{rater.token}"


def at(study: Study, rater: Rater, trial: Trial) -> str:
    return f"{home(study, rater)}/{trial.id}"


def submission(page: httpx.Response) -> str:
    """The hidden token of the form on a page."""
    found = re.search(r'name="submission" value="([^"]+)"', page.text)
    assert found
    return found[1]


def hidden(page: httpx.Response) -> dict[str, str]:
    """The hidden fields of the form on a page."""
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]+)"', page.text))


def words(page: httpx.Response) -> str:
    """The text of a page, without markup."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.text)).split())


def judged(site: Site, study: Study, rater: Rater, trial: Trial, **fields: str) -> httpx.Response:
    """Save a verdict as a rater does: look at the form, then send it."""
    token = submission(site.get(at(study, rater, trial)))
    return site.post(at(study, rater, trial), given={**WHOLE, **fields}, submission=token, action="save")


def locked(site: Site, study: Study, rater: Rater, trial: Trial, action: str = "lock") -> httpx.Response:
    """Save a verdict and lock it."""
    assert judged(site, study, rater, trial).status_code == 303
    return site.post(at(study, rater, trial), submission=submission(site.get(home(study, rater))), action=action)


def test_a_rater_joins_and_gets_a_link_of_their_own(site: Site, study: Study) -> None:
    page = site.get(f"/judge/{study.id}")
    assert page.status_code == 200
    assert "You will read 4 questions" in words(page)
    assert BANNER in words(page)
    token = re.search(r'name="token" value="([0-9a-f]{24})"', page.text)
    assert token
    fields = {"token": token[1], "name": "Dr. Ada", "specialty": "Urology", "years": "7"}
    first, again = (site.post(f"/judge/{study.id}", **fields) for _ in range(2))
    assert first.status_code == again.status_code == 303
    assert first.headers["location"] == again.headers["location"] == f"/judge/{study.id}/{token[1]}"
    assert [(each.name, each.specialty, each.years) for each in study.raters()] == [("Dr. Ada", "Urology", 7)]


def test_what_is_missing_is_told_at_the_field_and_the_form_keeps_the_rest(site: Site, study: Study) -> None:
    page = site.post(f"/judge/{study.id}", token="a" * 24, name="", specialty="Uro <i>logy", years="many")
    assert page.status_code == 422
    assert 'id="name-problem">Give a name or code.' in page.text
    assert 'id="years-problem">Give whole years, 0 to 80.' in page.text
    assert 'value="Uro &lt;i&gt;logy"' in page.text
    assert f'name="token" value="{"a" * 24}"' in page.text
    for wrong in ({"name": "x" * 81}, {"specialty": ""}, {"years": "81"}, {"years": "-1"}, {"years": "²"}, {"name": "\x00 \n"}):
        given = {"token": "a" * 24, "name": "Ada", "specialty": "Urology", "years": "7", **wrong}
        assert site.post(f"/judge/{study.id}", **given).status_code == 422, wrong
    assert study.raters() == []


def test_a_name_is_taken_once(site: Site, study: Study) -> None:
    given = {"specialty": "Urology", "years": "7"}
    site.post(f"/judge/{study.id}", token="a" * 24, name="Ada", **given)
    page = site.post(f"/judge/{study.id}", token="b" * 24, name=" ADA ", **given)
    assert page.status_code == 422
    assert "Somebody has joined as ADA already" in words(page)
    page = site.post(f"/judge/{study.id}", token="../../x", name="Ben", **given)
    assert page.status_code == 422
    assert len(study.raters()) == 1


def test_a_script_in_a_name_is_text(site: Site, study: Study) -> None:
    name = "<script>alert(1)</script>${7*7}"
    fields = {"token": "c" * 24, "name": name, "specialty": '"><img src=x onerror=alert(1)>', "years": "1"}
    page = site.get(site.post(f"/judge/{study.id}", **fields).headers["location"])
    assert name in words(page)
    assert "<script>alert" not in page.text
    assert "<img" not in page.text


def test_the_whole_way_through_a_study(site: Site, study: Study, rater: Rater) -> None:
    for number, trial in enumerate(rater.trials, start=1):
        assert f"{number} of 4" in words(site.get(home(study, rater)))
        assert judged(site, study, rater, trial).headers["location"] == home(study, rater)
        page = site.get(home(study, rater))
        assert f"Saved: pair {number} of 4" in words(page)
        answer = site.post(at(study, rater, trial), submission=submission(page), action="lock")
        assert (answer.status_code, answer.headers["location"]) == (303, home(study, rater))
    page = site.get(home(study, rater))
    assert "One last question" in words(page)
    fields = {"trial": rater.trials[-1].id, "submission": submission(page)}
    missing = site.post(f"{home(study, rater)}/guess", **fields)
    assert (missing.status_code, "Choose A, B, or that you have no idea" in words(missing)) == (422, True)
    assert site.post(f"{home(study, rater)}/guess", **fields, guess="B").status_code == 303
    assert "You judged 4 of 4 pairs. Everything is saved" in words(site.get(home(study, rater)))
    rows = site.store.rows(study.id)
    assert [row["kind"] for row in rows] == ["verdict", "lock"] * 4 + ["guess"]
    assert {row["revealed"] for row in rows if row["kind"] == "lock"} == {False}
    assert all(0 <= row["seconds"] < 60 for row in rows if row["kind"] == "verdict")
    assert (rows[-1]["trial"], rows[-1]["guess"]) == (rater.trials[-1].id, "B")


def test_everything_said_is_kept(site: Site, study: Study, rater: Rater) -> None:
    said = {"chips-A": ["omission", "biased"], "comment": "  =HYPERLINK(1)\r\nand a second line "}
    judged(site, study, rater, rater.trials[0], **said)
    (row,) = site.store.rows(study.id)
    assert row["correct"] == {"A": "correct", "B": "wrong"}
    assert row["harm"] == {"A": "none", "B": "moderate"}
    assert row["chips"] == {"A": ["omission", "biased"], "B": []}
    assert (row["preference"], row["comment"]) == ("A", "=HYPERLINK(1)\nand a second line")
    page = site.get(home(study, rater))
    assert "Omission, Biased" in words(page)
    assert "=HYPERLINK(1)" in words(page)
    form = site.get(at(study, rater, rater.trials[0]))
    assert form.text.count(" checked") == 7
    assert "=HYPERLINK(1)\nand a second line</textarea>" in form.text


def test_missing_answers_come_back_at_their_fields_with_the_rest_filled_in(site: Site, study: Study, rater: Rater) -> None:
    trial = rater.trials[0]
    given = {"preference": "B", "correct-A": "partly", "harm-B": "severe", "chips-B": "omission", "comment": "<b>kept</b>"}
    page = site.post(at(study, rater, trial), given=given, submission="18c-abc", action="save")
    assert page.status_code == 422
    for field, told in (("correct-B", "Say whether answer B is correct."), ("harm-A", "Say what harm answer A could do.")):
        assert f'id="{field}-problem">{told}' in page.text
        assert f'href="#{field}-' in page.text
    assert "preference-problem" not in page.text
    assert page.text.count(" checked") == 4
    assert "&lt;b&gt;kept&lt;/b&gt;</textarea>" in page.text
    assert submission(page) == "18c-abc"
    assert site.store.rows(study.id) == []


def test_a_comment_too_long_is_told_and_not_cut(site: Site, study: Study, rater: Rater) -> None:
    comment = "ä" * 10_000
    page = judged(site, study, rater, rater.trials[0], comment=comment)
    assert page.status_code == 422
    assert "The comment has 10,000 characters; at most 2,000 can be kept." in words(page)
    assert comment in page.text
    assert site.store.rows(study.id) == []
    assert judged(site, study, rater, rater.trials[0], comment="ä" * 2_000).status_code == 303
    assert judged(site, study, rater, rater.trials[1], comment="x" * 300_000).status_code == 400


def test_double_clicks_and_replays_count_once_and_two_tabs_correct(site: Site, study: Study, rater: Rater) -> None:
    trial = rater.trials[0]
    tabs = [submission(site.get(at(study, rater, trial))) for _ in range(2)]
    for token, preference in ((tabs[0], "A"), (tabs[0], "A"), (tabs[1], "both"), (tabs[1], "both")):
        given = {**WHOLE, "preference": preference}
        assert site.post(at(study, rater, trial), given=given, submission=token, action="save").status_code == 303
    assert [row["preference"] for row in site.store.rows(study.id)] == ["A", "both"]
    lock = submission(site.get(home(study, rater)))
    for _ in range(2):
        assert site.post(at(study, rater, trial), submission=lock, action="lock").status_code == 303
    late = site.post(at(study, rater, trial), given=WHOLE, submission="1-late", action="save")
    assert late.status_code == 409
    assert "locked and stands as it was" in words(late)
    assert home(study, rater) in late.text
    assert len(site.store.rows(study.id)) == 3


def test_what_is_changed_after_the_browsers_back_is_kept_or_refused_in_words(site: Site, study: Study, rater: Rater) -> None:
    """Back shows the form as it was sent, with the token that it had."""
    trial = rater.trials[0]
    token = f"{int((time.time() - 100) * 1000):x}-shown"
    for harm in ("none", "severe"):
        given = {**WHOLE, "harm-A": harm}
        assert site.post(at(study, rater, trial), given=given, submission=token, action="save").status_code == 303
    assert "Severe or death" in words(site.get(home(study, rater)))
    seconds = [row["seconds"] for row in site.store.rows(study.id)]
    assert seconds[0] > 60 > seconds[1] >= 0, "what was counted before Back is not counted again"
    site.post(at(study, rater, trial), submission=submission(site.get(home(study, rater))), action="lock")
    late = site.post(at(study, rater, trial), given=WHOLE, submission=token, action="save")
    assert (late.status_code, "locked and stands as it was" in words(late)) == (409, True)
    assert site.store.ballot(study.id, rater.token).verdicts[trial.id]["harm"]["A"] == "severe"


def test_lock_locks_only_the_verdict_that_its_page_showed(site: Site, study: Study, rater: Rater) -> None:
    """Two tabs: one shows the saved verdict, in the other it is changed; by the very same form, as after Back."""
    trial = rater.trials[0]
    token = submission(site.get(at(study, rater, trial)))
    site.post(at(study, rater, trial), given=WHOLE, submission=token, action="save")
    before = hidden(site.get(home(study, rater)))
    site.post(at(study, rater, trial), given={**WHOLE, "preference": "B"}, submission=token, action="save")
    refused = site.post(at(study, rater, trial), given=before, action="lock")
    assert refused.status_code == 409
    assert "This verdict was changed after that page was shown, as in another tab" in words(refused)
    assert "Answer B" in words(refused).split("colleague?")[1][:10]
    assert site.store.ballot(study.id, rater.token).locked == {}
    assert site.post(at(study, rater, trial), given=hidden(refused), action="lock").status_code == 303
    assert site.post(at(study, rater, trial), given=before, action="reveal").status_code == 409
    lock = site.store.ballot(study.id, rater.token).locked[trial.id]
    assert (lock["revealed"], set(lock) & {"verdict"}) == (False, set())


class Full(Judgments):
    """A store on a disk that takes nothing any more, for the reason given."""

    reason: int | None = None

    def add(self, row: Mapping[str, Any]) -> bool:
        """Store it unless there is a reason not to."""
        if self.reason:
            raise OSError(self.reason, os.strerror(self.reason))
        return super().add(row)


@pytest.mark.parametrize(
    ("reason", "status", "told"),
    [(errno.ENOSPC, 507, "Not saved: the disk is full."), (errno.EIO, 500, "The disk of the server cannot be used.")],
)
def test_a_disk_that_takes_nothing_is_told_and_the_form_can_be_sent_again(
    tmp_path: Path, study: Study, capfd: pytest.CaptureFixture[str], reason: int, status: int, told: str
) -> None:
    rater = study.join("Ada", "Urology", 1)
    site, store, trial = Site(tmp_path), Full(tmp_path), rater.trials[0]
    site.mounted = Starlette(routes=[Mount("/judge", Judge(Studies(tmp_path), store, False).app())])
    token = submission(site.get(at(study, rater, trial)))
    store.reason = reason
    page = site.post(at(study, rater, trial), given=WHOLE, submission=token, action="save")
    assert (page.status_code, page.headers["cache-control"]) == (status, "no-store")
    assert told in words(page)
    assert "Go back and try again" in words(page)
    assert os.strerror(reason) in capfd.readouterr().err, "the log says what happened"
    store.reason = None
    assert site.post(at(study, rater, trial), given=WHOLE, submission=token, action="save").status_code == 303
    assert len(store.rows(study.id)) == 1


def test_a_copy_is_asked_for_once_for_all_that_is_new(tmp_path: Path, study: Study, rater: Rater) -> None:
    asked: list[int] = []

    def saved() -> None:
        asked.append(len(site.store.rows(study.id)))

    site = Site(tmp_path)
    site.mounted = Starlette(routes=judge_routes(tmp_path, False, saved))
    form = {**WHOLE, "submission": submission(site.get(at(study, rater, rater.trials[0]))), "action": "save"}
    for _ in range(2):
        assert site.post(at(study, rater, rater.trials[0]), given=form).status_code == 303
    site.post(at(study, rater, rater.trials[0]), submission="1-lock", action="lock")
    assert asked == [1, 2], "on disk before it is copied, and a replay copies nothing"
    site.post(f"/judge/{study.id}", token="b" * 24, name="Ben", specialty="Urology", years="3")
    assert len(asked) == 3


def test_a_verdict_changes_until_it_is_locked(site: Site, study: Study, rater: Rater) -> None:
    trial = rater.trials[0]
    judged(site, study, rater, trial)
    summary = site.get(home(study, rater))
    assert f'href="{at(study, rater, trial)}">Change' in summary.text
    judged(site, study, rater, trial, preference="neither")
    assert "Both bad" in words(site.get(home(study, rater)))
    locked(site, study, rater, trial)
    assert "your verdict is locked" in words(site.get(at(study, rater, trial)))


def test_reasoning_and_reference_come_after_the_lock(site: Site, study: Study, rater: Rater) -> None:
    trial = rater.trials[0]
    number = trial.question.removeprefix("question-")
    secrets = (f"Reference {number}", f"The {number}. thought of one side", "Asks about smoking", "Sends the patient home", "A guideline")
    judged(site, study, rater, trial)
    before = [site.get(at(study, rater, trial)), site.get(home(study, rater))]
    assert not any(secret in words(page) for page in before for secret in secrets)
    answer = site.post(at(study, rater, trial), submission=submission(before[1]), action="reveal")
    assert site.store.ballot(study.id, rater.token).locked[trial.id]["revealed"] is True
    page = site.get(answer.headers["location"])
    assert all(secret in words(page) for secret in secrets)
    missing = site.post(at(study, rater, trial), given={"sound-A": "flawed"}, submission=submission(page), action="soundness")
    assert missing.status_code == 422
    assert "Say whether the reasoning of answer B is sound." in words(missing)
    assert 'value="flawed" checked' in missing.text
    given = {"sound-A": "flawed", "sound-B": "sound"}
    assert site.post(at(study, rater, trial), given=given, submission=submission(missing), action="soundness").status_code == 303
    assert site.store.ballot(study.id, rater.token).soundness[trial.id]["A"] == "flawed"


def test_who_locks_without_them_reads_reasoning_and_reference_later_only_when_asked_for(site: Site, study: Study, rater: Rater) -> None:
    trial = rater.trials[0]
    secrets = (f"Reference {trial.question.removeprefix('question-')}", "thought of one side", "Asks about smoking", "A guideline")
    locked(site, study, rater, trial)
    page = site.get(at(study, rater, trial))
    assert "your verdict is locked" in words(page)
    assert "comes after its reference was read is marked as such in the results" in words(page)
    assert not any(secret in words(page) for secret in secrets)
    assert site.store.ballot(study.id, rater.token).locked[trial.id]["revealed"] is False
    answer = site.post(at(study, rater, trial), submission=submission(page), action="reveal")
    assert answer.headers["location"] == at(study, rater, trial)
    assert site.store.ballot(study.id, rater.token).locked[trial.id]["revealed"] is True
    assert all(secret in words(site.get(at(study, rater, trial))) for secret in secrets)


def test_a_skip_does_no_harm_and_can_be_taken_back(site: Site, study: Study, rater: Rater) -> None:
    first = rater.trials[0]
    answer = site.post(at(study, rater, first), submission=submission(site.get(home(study, rater))), action="skip")
    page = site.get(answer.headers["location"])
    assert "2 of 4" in words(page)
    assert f'href="{at(study, rater, first)}">Judge it after all' in page.text
    for trial in rater.trials[1:]:
        locked(site, study, rater, trial)
    page = site.get(home(study, rater))
    site.post(f"{home(study, rater)}/guess", trial=rater.trials[-1].id, submission=submission(page), guess="none")
    page = site.get(home(study, rater))
    assert "You judged 3 of 4 pairs and skipped 1 as outside your field" in words(page)
    assert at(study, rater, first) in page.text
    locked(site, study, rater, first)
    assert "You judged 4 of 4 pairs. " in words(site.get(home(study, rater)))


def test_who_skips_everything_is_asked_nothing_more(site: Site, study: Study, rater: Rater) -> None:
    for trial in rater.trials:
        site.post(at(study, rater, trial), submission="1-skip", action="skip")
    assert "You judged 0 of 4 pairs and skipped 4" in words(site.get(home(study, rater)))


def test_unknown_links_are_told_and_name_nothing(site: Site, study: Study, rater: Rater) -> None:
    trial = rater.trials[0]
    for path in ("/judge/none", f"/judge/{study.id}/nobody", f"/judge/{study.id}/{'0' * 24}", f"/judge/{study.id}/{'0' * 24}/{trial.id}"):
        for page in (site.get(path), site.post(path, given=WHOLE, submission="1-x")):
            assert page.status_code in (404, 405, 409, 422), path
            assert rater.name not in page.text
    assert "no such study" in words(site.get("/judge/none"))
    assert "There is no such page" in words(site.get("/judge/"))
    assert site.store.rows(study.id) == []


def test_one_damaged_raters_file_stops_nobody_else_and_shows_nothing_of_them(site: Site, study: Study, rater: Rater) -> None:
    other = study.join("Ben", "Urology", 1)
    (study.path / "raters" / f"{rater.token}.json").write_text("{")
    assert site.get(f"/judge/{study.id}").status_code == 200
    joined = site.post(f"/judge/{study.id}", token="c" * 24, name="Cy", specialty="Urology", years="3")
    assert joined.status_code == 303
    assert judged(site, study, other, other.trials[0]).status_code == 303
    for page in (site.get(home(study, rater)), site.post(f"/judge/{study.id}", token=rater.token, name="X", specialty="Y", years="1")):
        assert "cannot be read" in words(page)
        assert "What was saved is kept" in words(page)
        assert "Traceback" not in page.text
    for page in (joined, site.get(f"/judge/{study.id}"), site.get(home(study, other)), site.get(home(study, rater))):
        assert rater.token[:6] not in page.text


def test_a_pair_of_somebody_else_is_refused_and_nothing_is_stored(site: Site, study: Study, rater: Rater) -> None:
    other = study.join("Ben", "Urology", 1)
    for trial in (other.trials[0].id, "f" * 16, "guess2"):
        for page in (site.get(f"{home(study, rater)}/{trial}"), site.post(f"{home(study, rater)}/{trial}", given=WHOLE, submission="1-x")):
            assert page.status_code == 404
            assert "none of yours" in words(page)
    guessed = site.post(f"{home(study, rater)}/guess", trial=other.trials[0].id, guess="A", submission="1-x")
    assert guessed.status_code == 404
    assert site.store.rows(study.id) == []


@pytest.mark.parametrize(
    "fields", [{"action": "praise"}, {"submission": ""}, {"submission": "<b>"}, {"action": "soundness", "sound-A": "sound"}]
)
def test_what_no_form_sends_is_refused(site: Site, study: Study, rater: Rater, fields: dict) -> None:
    page = site.post(at(study, rater, rater.trials[0]), given={**WHOLE, "submission": "1-x", "action": "save", **fields})
    assert page.status_code in (409, 422)
    assert site.store.rows(study.id) == []


def test_a_closed_study_keeps_what_it_has_and_takes_no_more(site: Site, study: Study, rater: Rater) -> None:
    first, second = rater.trials[:2]
    locked(site, study, rater, first)
    study.close()
    for page in (site.get(f"/judge/{study.id}"), site.get(home(study, rater)), site.get(at(study, rater, second))):
        assert "This study is closed. Everything you saved is kept." in words(page)
    assert "your verdict is locked" in words(site.get(at(study, rater, first)))
    assert "Asks about smoking" in words(site.get(at(study, rater, first))), "nothing is left to judge with the reference in mind"
    for path in (at(study, rater, second), f"{home(study, rater)}/guess"):
        page = site.post(path, given=WHOLE, submission="1-x", trial=first.id, guess="A")
        assert page.status_code == 409
        assert "was not saved" in words(page)
    joining = site.post(f"/judge/{study.id}", token="d" * 24, name="Ben", specialty="Urology", years="1")
    assert joining.status_code == 409
    assert len(study.raters()) == 1
    assert len(site.store.rows(study.id)) == 2


def test_a_study_that_is_not_ready_says_so(tmp_path: Path) -> None:
    study = created(tmp_path, 2)
    assert "still being prepared" in words(Site(tmp_path).get(f"/judge/{study.id}"))


def test_an_answer_that_never_came_is_told_alike_in_both_slots(tmp_path: Path) -> None:
    study = prepared(tmp_path, 12)
    rater = study.join("Ada", "x", 1)
    trial = next(trial for trial in rater.trials if trial.question == "question-11")
    page = Site(tmp_path).get(at(study, rater, trial))
    assert "No answer was given." in words(page)
    assert "The 11. thought" not in words(page)


def sent(response: httpx.Response) -> str:
    """All that a browser gets: status line, headers and body, in lower case."""
    return f"{response.status_code} {dict(response.headers)} {response.text}".lower()


def test_nothing_before_the_lock_unblinds(tmp_path: Path) -> None:
    study = prepared(tmp_path, 12, native_arm=True, seed=SEED, sampling={"seed": SEED})
    assert {seed for _question, seed in study.answers()} == {SEED}
    rater, site = study.join("Ada", "Cardiology", 12), Site(tmp_path)
    pages = [site.get(f"/judge/{study.id}")]
    for trial in rater.trials:
        pages += [site.get(at(study, rater, trial)), site.post(at(study, rater, trial), given={"preference": "A"}, submission="1-x")]
        pages += [judged(site, study, rater, trial), site.get(home(study, rater))]
        pages.append(site.post(at(study, rater, trial), submission="1-x", action="lock"))
    for page in pages:
        text = sent(page).replace("base-uri", "")
        assert not [secret for secret in SECRET if secret in text]
        for other_trial in rater.trials:
            assert other_trial.question not in text


def test_the_native_arm_makes_the_way_no_longer(tmp_path: Path) -> None:
    study, site = prepared(tmp_path, 10, native_arm=True), Site(tmp_path)
    assert "You will read 11 questions" in words(site.get(f"/judge/{study.id}"))
    rater = study.join("Ada", "Cardiology", 12)
    assert "1 of 11" in words(site.get(home(study, rater)))


def test_both_slots_are_drawn_alike_whatever_stands_in_them(tmp_path: Path) -> None:
    """With the texts taken out, the form of a pair is the same as that of the pair with its slots swapped."""
    study = prepared(tmp_path, 12, repeat_share=0.5)
    rater, site = study.join("Ada", "Cardiology", 12), Site(tmp_path)

    def frame(trial: Trial) -> str:
        text = re.sub(r'(<h2 id="answer-[AB]">).*?</article>', r"\1", site.get(at(study, rater, trial)).text, flags=re.DOTALL)
        number = rater.trials.index(trial) + 1
        return text.replace(submission(site.get(at(study, rater, trial))), "").replace(trial.id, "").replace(f"{number} of", "of")

    again = [trial for trial in rater.trials if trial.repeat_of]
    first = {trial.id: trial for trial in rater.trials}
    assert len(again) == 6
    strip = re.compile(r'value="[0-9a-f]+-[0-9a-f]{16}"')
    for trial in again:
        assert strip.sub("", frame(trial)) == strip.sub("", frame(first[trial.repeat_of]))


NOTES = {"none": '<p class="note">No answer was given.</p>', "cut": '<p class="note">The answer ends here, unfinished.</p>', "whole": ""}


def test_an_answer_is_drawn_from_its_words_alone(tmp_path: Path) -> None:
    """Between an answer's heading and its end stands what render_answer makes of it and the permitted note, and nothing else."""
    study = prepared(tmp_path, 12, native_arm=True, repeat_share=0)
    cut = dict(study.answers()["question-3", study.config.sampling.seed])
    cut["comparison"]["tuned"] |= {"finish_reason": "length"}
    study.append_answer(cut)
    answers = {key: Answer.from_row(row) for key, row in study.answers().items()}
    raters, site = [study.join(name, "Cardiology", 12) for name in ("Ada", "Ben")], Site(tmp_path)
    found = set()
    for rater, trial in [(each, trial) for each in raters for trial in each.trials]:
        page = site.get(at(study, rater, trial)).text
        for slot, arm in zip("AB", trial.arms, strict=True):
            drawn = re.findall(rf'(<article[^>]*>)\s*<h2 id="answer-{slot}">Answer {slot}</h2>(.*?)</article>', page, flags=re.DOTALL)
            side = answers[trial.question, trial.seed].side(arm)
            kind = "none" if not side.response else "cut" if side.finish_reason == "length" else "whole"
            prose = f'<div class="prose">{render_answer(side.response)}</div>' if side.response else ""
            ((opening, within),) = drawn
            assert re.sub(r"\s*\n\s*", "", within) == prose + NOTES[kind], (trial.question, arm)
            assert opening == f'<article class="answer" aria-labelledby="answer-{slot}">'
            found.add((arm, kind))
    assert found == {("base", "whole"), ("native", "whole"), ("tuned", "whole"), ("tuned", "cut"), ("tuned", "none")}


def test_every_response_is_private_and_strict(site: Site, study: Study, rater: Rater) -> None:
    trial = rater.trials[0]
    pages = [site.get(path) for path in (f"/judge/{study.id}", home(study, rater), at(study, rater, trial), "/judge/none")]
    pages += [judged(site, study, rater, trial), site.post(at(study, rater, trial), submission="1-l", action="lock")]
    for page in pages:
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["referrer-policy"] == "no-referrer"
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "set-cookie" not in page.headers
        assert not re.search(r"<script>|\son\w+=|style=", page.text)


def test_sheet_script_and_fonts_are_served(site: Site, study: Study) -> None:
    page = site.get(f"/judge/{study.id}").text
    for address in re.findall(r'(?:href|src)="(/judge/[^"]+\.(?:css|js)\?\w+)"', page):
        answer = site.get(address)
        assert answer.status_code == 200
        assert len(answer.content) > 500
    sheet = site.get("/judge/style.css").text
    assert "prefers-color-scheme:dark" in sheet
    for font in re.findall(r'url\("([^"]+)"\)', sheet):
        assert site.get(f"/judge/{font}").content[:4] == b"wOF2"


def logged_in(name: str, **more: object) -> dict[str, Any]:
    """The session of somebody who has logged in with Hugging Face."""
    return {"oauth_info": {"userinfo": {"preferred_username": name}, **more}}


def test_a_login_study_takes_the_name_from_hugging_face(tmp_path: Path) -> None:
    study = prepared(tmp_path, 4, login_required=True)
    site, address = Site(tmp_path, can_log_in=True), f"/judge/{study.id}"
    page = site.get(address)
    assert page.status_code == 401
    assert f"/login/huggingface?_target_url={address}" in page.text
    site.session = logged_in("ada", expires_at=1)
    assert site.get(address).status_code == 401
    site.session = logged_in("ada")
    assert "Logged in on Hugging Face as ada" in words(site.get(address))
    answer = site.post(address, token="a" * 24, name="somebody else", specialty="Urology", years="3")
    assert study.raters()[0].name == "ada"
    assert site.get(address).headers["location"] == answer.headers["location"]
    assert site.get(answer.headers["location"]).status_code == 200
    site.session = logged_in("ben")
    assert site.get(answer.headers["location"]).status_code == 403
    assert "Logged in on Hugging Face as ben" in words(site.get(address))
    site.session = None
    assert site.get(answer.headers["location"]).status_code == 401


def test_a_damaged_file_keeps_nobody_from_a_login_study(tmp_path: Path) -> None:
    study = prepared(tmp_path, 2, login_required=True)
    lost = study.join("ben", "Urology", 1)
    (study.path / "raters" / f"{lost.token}.json").write_text("{}")
    site = Site(tmp_path, can_log_in=True)
    site.session = logged_in("ada")
    page = site.get(f"/judge/{study.id}")
    assert page.status_code == 200
    assert lost.token[:6] not in page.text


def test_the_cookie_of_gradios_login_is_understood_and_a_forged_one_is_not(tmp_path: Path) -> None:
    study, site = prepared(tmp_path, 4, login_required=True), Site(tmp_path, can_log_in=True)
    site.mounted = SessionMiddleware(site.mounted, secret_key=hashlib.sha256(f"{SPACE_SECRET}-v4".encode()).hexdigest())
    for cookie, status in ((cookie_of("ada"), 200), (cookie_of("ada", "a guess"), 401), (cookie_of("ada", expires_in=-60), 401)):
        page = site.ask("GET", f"/judge/{study.id}", headers={"Cookie": f"session={cookie}"})
        assert page.status_code == status
        assert ("Logged in on Hugging Face as ada" in words(page)) is (status == 200)


def test_elsewhere_a_login_study_says_that_it_needs_a_space(tmp_path: Path) -> None:
    study = prepared(tmp_path, 4, login_required=True)
    site = Site(tmp_path)
    site.session = logged_in("ada")
    page = site.get(f"/judge/{study.id}")
    assert page.status_code == 403
    assert "works only on a Space" in words(page)


def test_texts_are_read_again_only_when_they_change(tmp_path: Path, study: Study) -> None:
    judge = Judge(Studies(tmp_path), Judgments(tmp_path), can_log_in=False)
    first = judge.material(study)
    assert judge.material(Study(study.path)) is first
    with (study.path / "answers.jsonl").open("a") as file:
        file.write("\n")
    assert judge.material(study) is not first
