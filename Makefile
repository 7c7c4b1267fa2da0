# make compare   train the embedded base under every regime, print the table, write the page (installs first, about 5 minutes on 2 cores)
# make quick     the same in about a minute, with fewer steps, seeds and problems
# make diagnose  loss surface, input sensitivity and gradients after training of that comparison, then its page again
# make test      lint, types, import contracts, tests; installs Debian's Chromium for the page where it may
# make alarm     trains the runs behind docs/collapse_alarm.md, make variance measures what gradient variance costs
# make forecast  what each regime can gain from the embedded base, from its samples alone, and what to do (20 seconds)
# make theory    the page of the exact small world, runs/theory.html, and every statement of it checked
# make forecast-validation  sixteen bases, forecast and then trained: the tables of docs/forecast.md (about an hour and a quarter)
# make forecast-coverage  simulated bias and coverage of the forecast; make closed-form  trained transformers against enumerated optima
# make counterexamples  bases for which the usual statements about sharpening fail
# make findings  the longer runs behind docs/findings.md, an hour and a half; make coverage  docs/intervals.md, a few minutes
# make grading   both graders on public answers and their wrong neighbours (BSHARP_DATA_DIR names the folder), docs/grading.md
# make memory    memory of log-probabilities, docs/memory.md; make backends  samplers against the trainer, docs/rollout_backends.md
# make large     tokens/s and memory of a 3 B model's step on a GPU (ARGS=--reduced: a small one, anywhere)
# make bench     speed and memory against TRL, transformers and the machine itself, in one run of about an hour (ARGS=--quick)
# PYTHON=python3.12 chooses the interpreter; PIP_ARGS is handed to pip (see README for the CPU build of torch).

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

# Two processes on the same cores must not spin for each other's threads.
# (pretraining, a single process, sets its own)
export OMP_WAIT_POLICY ?= passive
export TOKENIZERS_PARALLELISM ?= false

.PHONY: compare quick diagnose forecast theory test lint browser findings tune pretrain coverage alarm variance clean
.PHONY: forecast-validation forecast-coverage closed-form counterexamples grading memory backends large bench

compare: $(VENV)/.runtime
	$(BIN)/bsharp compare $(ARGS)

quick: $(VENV)/.runtime
	$(BIN)/bsharp compare --quick $(ARGS)

diagnose: $(VENV)/.runtime
	$(BIN)/bsharp diagnose $(ARGS)

forecast: $(VENV)/.runtime
	$(BIN)/bsharp forecast $(ARGS)

theory: $(VENV)/.runtime
	$(BIN)/bsharp theory --check
	$(BIN)/bsharp theory

pretrain: $(VENV)/.runtime
	$(BIN)/bsharp pretrain $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The page is tested in a real Chromium; without one those tests are skipped, and this says so.
browser: $(VENV)/.dev
	@$(BIN)/python tests/chromium.py

# By file: what the tests of a file share is made once, not once per process.
test: lint browser
	$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

tune: $(VENV)/.runtime
	$(BIN)/bsharp compare --tune $(ARGS)

findings: $(VENV)/.dev
	$(BIN)/python benchmarks/findings.py run all
	$(BIN)/python benchmarks/findings.py tables

alarm: $(VENV)/.dev
	$(BIN)/python benchmarks/collapse_alarm.py $(ARGS)

variance: $(VENV)/.dev
	$(BIN)/python benchmarks/gradient_variance_cost.py $(ARGS)

forecast-validation: $(VENV)/.dev
	$(BIN)/python benchmarks/forecast_validation.py $(ARGS)

forecast-coverage: $(VENV)/.dev
	$(BIN)/python benchmarks/forecast_coverage.py $(ARGS)

closed-form: $(VENV)/.dev
	$(BIN)/python benchmarks/closed_form.py $(ARGS)

counterexamples: $(VENV)/.dev
	$(BIN)/python benchmarks/counterexamples.py $(ARGS)

grading: $(VENV)/.dev
	$(BIN)/python benchmarks/grading.py $(ARGS)

memory: $(VENV)/.dev
	$(BIN)/python benchmarks/logprob_memory.py $(ARGS)

backends: $(VENV)/.dev
	$(BIN)/python benchmarks/decoder_agreement.py $(ARGS)

large: $(VENV)/.dev
	$(BIN)/python benchmarks/large_model.py $(ARGS)

coverage: $(VENV)/.dev
	$(BIN)/python benchmarks/interval_coverage.py $(ARGS) > docs/intervals.md

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/speed $(ARGS)

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(f"bsharp needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}; name another one: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(VENV)/bin/pip pyproject.toml constraints.txt
	@echo "installing into $(VENV), a few minutes the first time"
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/bin/pip pyproject.toml constraints.txt
	@echo "installing into $(VENV), a few minutes the first time"
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.runtime

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
