"""The routes of the judging pages: who may see which, what each POST stores, and where it leads. Kept on disk before it is said.

    /judge/<study>                  join
    /judge/<study>/<rater>          the next thing to do: a pair, the saved verdict to lock, or the end
    /judge/<study>/<rater>/<trial>  one pair: changed until locked; then reasoning and reference
    /judge/<study>/<rater>/guess    the last question

The rater's token stands in the path because browsers refuse cookies inside the Hub's frame.
"""

import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from threading import Lock
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from deepdoctor.errors import DeepDoctorError, StudyError, is_disk_full, print_trace
from deepdoctor.studies.judgments import Judgments, problems
from deepdoctor.studies.study import Studies, Study
from deepdoctor.studies.trials import TOKEN, Trial, new_token, repeats, same_name
from deepdoctor.ui.judge import forms, pages
from deepdoctor.ui.judge.pages import Visit
from deepdoctor.ui.judge.texts import reader

CHANGED = "This verdict was changed after that page was shown, as in another tab. Below is what stands now: lock it, or change it."
LATER = "The answers are still being prepared. Come back later, or ask whoever sent the link."
NOT_OPEN = {"closed": "This study is closed. Everything you saved is kept. Thank you."}
NOT_SAVED = "This study is not open any more, so this was not saved. What you saved before is kept."
FULL, NO_DISK = "Not saved: the disk is full.", "The disk of the server cannot be used."
TRY_AGAIN = "Go back and try again; if it stays so, tell whoever sent the link. What you saved before is kept."
TITLES = {403: "Not for this account", 404: "Not found", 409: "Nothing was changed", 500: "Something is damaged"}
KEPT = {"Cache-Control": "max-age=86400"}
Handler = Callable[[Request, FormData], Response]


def _nothing() -> None:
    """Where no copy is kept."""


def judge_routes(data_dir: Path, can_log_in: bool, saved: Callable[[], None] = _nothing) -> list[Mount]:
    """The judging pages, for `launch(app_kwargs={"routes": …})`. Call it once a process: it owns the store.

    `can_log_in`: whether Hugging Face tells who a visitor is, as on a Space. Elsewhere Gradio's login is a mock. `saved` is called when
    something new is on disk; it must not wait or fail.
    """
    return [Mount("/judge", Judge(Studies(data_dir), Judgments(data_dir), can_log_in, saved).app())]


class Judge:
    """The judging pages over the studies and the store."""

    def __init__(self, studies: Studies, judgments: Judgments, can_log_in: bool, saved: Callable[[], None] = _nothing) -> None:
        self.studies = studies
        self.judgments = judgments
        self.can_log_in = can_log_in
        self.saved = saved
        self.material = reader()
        self._joining = Lock()

    def app(self) -> Starlette:
        """The pages as an application to mount."""
        routes = [
            Route("/style.css", lambda _request: Response(pages.style_sheet(), media_type="text/css", headers=KEPT)),
            Route("/judge.js", lambda _request: Response(pages.script(), media_type="text/javascript", headers=KEPT)),
            Mount("/fonts", StaticFiles(directory=pages.FONTS)),
            Route("/{study}", self.join_page),
            Route("/{study}", posting(self.join), methods=["POST"]),
            Route("/{study}/{rater}", self.next_page),
            Route("/{study}/{rater}/guess", posting(self.guess), methods=["POST"]),
            Route("/{study}/{rater}/{trial}", self.trial_page),
            Route("/{study}/{rater}/{trial}", posting(self.judge), methods=["POST"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _told, DeepDoctorError: _told, OSError: _unwritten})

    def join_page(self, request: Request) -> Response:
        """GET: what a study asks of raters, and the form to join."""
        study = self._study(request)
        if study.state != "open":
            return _not_open(request, study)
        user = self._user(request, study)
        known = next((rater for rater in study.raters() if user and same_name(rater.name, user)), None)
        if known:
            return _to(f"{pages.root(request)}/{study.id}/{known.token}")
        return self._join_form(request, study, {"token": new_token()}, {})

    def join(self, request: Request, form: FormData) -> Response:
        """POST: become a rater, once for each form shown."""
        study = self._study(request)
        if study.state != "open":
            raise StudyError("This study is not open to raters.")
        user = self._user(request, study)
        given, wrong = forms.joining(form, user)
        token = forms.text(form, "token")
        if not wrong:
            try:
                with self._joining:
                    rater = study.join(given["name"], given["specialty"], int(given["years"]), token)
                self.saved()
                return _to(f"{pages.root(request)}/{study.id}/{rater.token}")
            except StudyError as error:
                wrong = {"specialty" if user else "name": str(error)}
        return self._join_form(request, study, {**given, "token": token}, wrong)

    def next_page(self, request: Request) -> Response:
        """GET: what is to be done next."""
        visit = self._visit(request)
        if visit.study.state != "open":
            return _not_open(request, visit.study)
        trial, material = visit.next, self.material(visit.study)
        if trial is None:
            return pages.end(visit, material, {})
        if trial.id in visit.said.verdicts:
            return pages.saved(visit, trial, material, {})
        return pages.trial_form(visit, trial, material, {}, {})

    def trial_page(self, request: Request) -> Response:
        """GET: one pair again, to change or judge it; once it is locked, with reasoning and reference if the rater asked for them.

        Who reads them unasked would judge a later pair of the same question with them in mind, and nobody could tell.
        """
        visit = self._visit(request)
        trial, material, is_open = _trial(visit), self.material(visit.study), visit.study.state == "open"
        if lock := visit.said.locked.get(trial.id):
            shown = not is_open or lock.get("revealed") is True or trial.id in visit.said.soundness
            return pages.locked(visit, trial, material, {}, {}) if shown else pages.unread(visit, trial, material)
        return pages.trial_form(visit, trial, material, {}, {}) if is_open else _not_open(request, visit.study)

    def judge(self, request: Request, form: FormData) -> Response:
        """POST: save, skip, lock, lock and show, or what the rater thinks of the reasoning."""
        visit = self._open_visit(request)
        trial, submission = _trial(visit), forms.text(form, "submission")
        action = forms.text(form, "action") or "save"
        kind = {"save": "verdict", "reveal": "lock"}.get(action, action)
        given: dict[str, Any] = {}
        stands = visit.said.verdicts.get(trial.id)
        if kind == "verdict":
            given = {**forms.verdict(form), "seconds": forms.seconds_since(submission, stands)}
        elif kind == "lock":
            given = {"revealed": action == "reveal"}
            shown = forms.text(form, "verdict")
            if stands and shown and shown != str(stands["time"]):
                return pages.saved(visit, trial, self.material(visit.study), {"stands": CHANGED})
        elif kind == "soundness":
            given = {**forms.soundness(form)}
        if wrong := problems(kind, given):
            show = pages.locked if kind == "soundness" else pages.trial_form
            return show(visit, trial, self.material(visit.study), {**given, "submission": submission}, wrong)
        self._add(visit, trial.id, {"kind": kind, "submission": submission, **given})
        return _to(visit.home + {"reveal": f"/{trial.id}", "skip": f"?skipped={trial.id}"}.get(action, ""))

    def guess(self, request: Request, form: FormData) -> Response:
        """POST: which side the rater takes for the tuned one."""
        visit = self._open_visit(request)
        trial, given = forms.text(form, "trial"), {"guess": forms.text(form, "guess")}
        if trial not in visit.said.verdicts:
            raise HTTPException(404, "This pair is none of those you judged.")
        if wrong := problems("guess", given):
            return pages.end(visit, self.material(visit.study), wrong)
        self._add(visit, trial, {"kind": "guess", "submission": forms.text(form, "submission"), **given})
        return _to(visit.home)

    def _add(self, visit: Visit, trial: str, row: dict[str, Any]) -> None:
        if self.judgments.add({"study": visit.study.id, "rater": visit.rater.token, "trial": trial, **row}):
            self.saved()

    def _join_form(self, request: Request, study: Study, given: dict[str, str], wrong: dict[str, str]) -> Response:
        known = sorted({question.specialty for question in self.material(study).questions.values() if question.specialty})
        pairs = len(self.material(study).answers)
        total = pairs + repeats(pairs, study.config.repeat_share)
        user = self._user(request, study)
        return pages.page(
            request, "join.html", 422 if wrong else 200, given=given, problems=wrong, specialties=known, pairs=total, user=user
        )

    def _study(self, request: Request) -> Study:
        try:
            return self.studies.get(request.path_params["study"])
        except StudyError as error:
            raise HTTPException(404, str(error)) from None

    def _visit(self, request: Request) -> Visit:
        """Who asks. Raises HTTPException for an unknown rater, or one whom Hugging Face knows as somebody else."""
        study = self._study(request)
        user, token = self._user(request, study), request.path_params["rater"]
        try:
            rater = study.rater(token) if TOKEN.fullmatch(token) else None
        except StudyError as error:
            raise HTTPException(500, str(error)) from None
        if rater is None:
            raise HTTPException(404, "Nobody has joined this study with this link. Check it, or join with the study's own link.")
        if user and not same_name(user, rater.name):
            raise HTTPException(403, "This is somebody else's link. Open the study's own link instead.")
        return Visit(request, study, rater, self.judgments.ballot(study.id, rater.token))

    def _open_visit(self, request: Request) -> Visit:
        visit = self._visit(request)
        if visit.study.state != "open":
            raise StudyError(NOT_SAVED)
        return visit

    def _user(self, request: Request, study: Study) -> str | None:
        """Who Hugging Face says the visitor is; None if the study does not ask. Raises HTTPException if it asks and nobody is logged in."""
        if not study.config.login_required:
            return None
        if not self.can_log_in:
            raise HTTPException(403, "Raters of this study log in with Hugging Face, which works only on a Space with hf_oauth set.")
        known = request.scope.get("session", {}).get("oauth_info") or {}
        user = (known.get("userinfo") or {}).get("preferred_username")
        if not user or known.get("expires_at", time.time() + 1) < time.time():
            raise HTTPException(401, "Raters of this study log in with Hugging Face first.")
        return str(user)


def posting(handler: Handler) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """An endpoint that reads the form, within bounds, and calls `handler` in a thread, where waiting for the disk holds up nobody."""

    async def endpoint(request: Request) -> Response:
        async with request.form(max_files=0, max_fields=forms.MOST_FIELDS, max_part_size=forms.LARGEST_FIELD) as form:
            return await run_in_threadpool(handler, request, form)

    return endpoint


def _trial(visit: Visit) -> Trial:
    wanted = visit.request.path_params["trial"]
    found = next((trial for trial in visit.rater.trials if trial.id == wanted), None)
    if found is None:
        raise HTTPException(404, "This pair is none of yours. Nothing was saved.")
    return found


def _to(address: str) -> Response:
    return RedirectResponse(address, 303, pages.HEADERS)


def _not_open(request: Request, study: Study) -> Response:
    return pages.message(request, 200, "Closed" if study.state == "closed" else "Not open yet", NOT_OPEN.get(study.state, LATER))


def _told(request: Request, error: Exception) -> Response:
    """What went wrong as a page, with the way on: to one's own next pair, or to the login."""
    status = error.status_code if isinstance(error, HTTPException) else 409
    told = error.detail if isinstance(error, HTTPException) else str(error)
    if told in ("Not Found", "Method Not Allowed"):
        told = "There is no such page. Check the link, or ask whoever sent it."
    if status == 401:
        here = f"{pages.root(request)}/{request.path_params['study']}"
        # opens a tab of its own: the Hub's login refuses to stand in a frame
        return pages.message(request, 401, "Log in first", told, (f"/login/huggingface?_target_url={here}", "Log in with Hugging Face"))
    known = request.path_params
    link = (f"{pages.root(request)}/{known['study']}/{known['rater']}", "Go on") if status == 409 and "rater" in known else None
    return pages.message(request, status, TITLES.get(status, "That did not work"), told, link)


async def _unwritten(request: Request, error: Exception) -> Response:
    """A disk that fails as a page; what was given still stands in the form that the browser's Back shows."""
    # a plain function would be called in another thread, where no error is being handled
    print_trace()
    status, told = (507, FULL) if is_disk_full(error) else (500, NO_DISK)
    return pages.message(request, status, "That did not work", f"{told} {TRY_AGAIN}")
