# make app     install what is missing and start the app      make test    run all tests
# make check   format, lint and types                         make format  put the code in shape
# make space   put what a Hugging Face Space needs into a new folder (SPACE=folder), or push it (PUSH=owner/name, token in HF_TOKEN)
# Settings given to `make app` (HOST, PORT, MODEL, DATA_DIR …) reach the app through the environment; PIP_ARGS goes to every pip install.

PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
PINS := pyproject.toml requirements.txt
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS)

.PHONY: app test check format space

app: .venv/app.stamp
	$(BIN)/python app.py

test: .venv/dev.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/browser
	$(BIN)/python -m pytest tests/browser

check: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

space: .venv/app.stamp
	$(BIN)/python -m deepdoctor.space $(SPACE) $(addprefix --push ,$(PUSH))

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
	"DeepDoctor needs Python 3.11 or newer, and '$(PYTHON)' is not: name another one, for example make app PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv

# With an NVIDIA GPU the whole of requirements.txt, else the core, held to the same pins.
.venv/app.stamp: $(PINS) | $(BIN)/python
	@echo "Installing DeepDoctor; the first time takes some minutes."
	if nvidia-smi >/dev/null 2>&1; then $(INSTALL) -r requirements.txt && $(INSTALL) --no-deps -e .; \
	else $(INSTALL) -e . -c requirements.txt; fi
	touch $@

.venv/dev.stamp: .venv/app.stamp requirements-dev.txt
	$(INSTALL) -e '.[test,check]' -c requirements.txt -c requirements-dev.txt
	touch $@
