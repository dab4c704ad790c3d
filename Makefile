# Everything a person does here is one word: make train, make test, make lint, make docs, make exactness,
# make tables, make bench, make figures.
PYTHON ?= python3
BIN := .venv/bin
QUICK := dm_control/cartpole-balance-v0

# Small networks gain nothing from more threads, and two runs side by side gain much from fewer
export OMP_NUM_THREADS ?= 1

.PHONY: install train test test-slow lint docs exactness bench evidence figure1 figures tables table1 table2 figure-theory clean
install: .venv/installed
.venv/installed: setup.cfg setup.py constraints.txt package-lock.json
	$(PYTHON) -m venv .venv
	@echo "Installing the pinned packages into .venv (once; a few minutes) ..."
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@
	@echo "Installed. Next: source .venv/bin/activate, then rlhf-bilevel doctor"

train: install
	$(BIN)/rlhf-bilevel train penalty --env $(QUICK) --preset quick --steps 12000 --labels 200 \
	    --set num_interact=1000 --set eval_freq=1000 --out runs/train-$$(date +%Y%m%d-%H%M%S) --reference benchmarks/results/quick.csv

test: install
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

# Twenty real kills of the command line, twenty healthy runs, ten thousand poisoned steps, a Ray cluster that loses a
# machine: about ten minutes. Ray is 320 MB, and nothing else needs it
test-slow: install
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,ray]"
	SHAPES=1 $(BIN)/python -m pytest -q -n 2 -m slow
	SHAPES=1 $(BIN)/python -m pytest -q -n 2 tests/rewards tests/bilevel tests/methods tests/feedback tests/training

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m site_tools.writing
	@$(MAKE) --no-print-directory docs
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory node_modules/.package-lock.json && npx tsc; \
	else echo "npm is missing: the page's JavaScript is not checked" >&2; fi
node_modules/.package-lock.json: package-lock.json
	npm ci --silent
	@touch $@

# The documentation as a site, to be opened at site/index.html: about half a minute. A warning fails the build
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "Open site/index.html in a browser"

exactness: install
	$(BIN)/python -m benchmarks.theory.exactness --mdps 20 --seed 0 --json

# Our speed against the peers', side by side, and how time grows: about half an hour, alone on the machine
bench: install .venv-peers/sb3/installed .venv-peers/imitation/installed
	$(BIN)/python -m benchmarks.performance.compare
	$(BIN)/python -m benchmarks.performance.growth
.venv-peers/%/installed: benchmarks/performance/peers/%.txt
	$(PYTHON) -m venv .venv-peers/$*
	@echo "Installing what is compared with into .venv-peers/$* (once; some minutes) ..."
	.venv-peers/$*/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

# Runs what is missing of the learning runs behind docs and figures: hours on two cores, resumed run by run
evidence: install
	$(BIN)/python -m benchmarks.learning.evidence

# The paper's Figure 1, on true return and success. smoke: does it work (minutes); cpu: many hours on two cores, resumed
# run by run; tasks: the same settings on five other tasks; paper: the published sizes, for a GPU, where the seeds of a
# variant learn in one update
SCALE ?= cpu
figure1: install
	$(BIN)/python -m benchmarks.learning.figure1 --scale $(SCALE)

# The paper's claims on problems with known answers: within half an hour on two cores
tables: table1 table2 figure-theory
table1: install
	$(BIN)/python -m benchmarks.theory.laboratory --problems MDP LQR --out benchmarks/results/theory-1.csv
	$(BIN)/python -m benchmarks.theory.tables 1
table2: install
	$(BIN)/python -m benchmarks.theory.laboratory --problems quadratic "nonconcave sine" ridge logistic \
	    --out benchmarks/results/theory-2.csv
	$(BIN)/python -m benchmarks.theory.tables 2
figure-theory: install
	$(BIN)/python -m benchmarks.theory.estimator --out benchmarks/results/theory-estimator.csv
	$(BIN)/python -m benchmarks.theory.coupling --out benchmarks/results/theory-coupling.csv
	$(BIN)/python -m benchmarks.theory.exploring --out benchmarks/results/theory-exploring.csv
	$(BIN)/python -m benchmarks.theory.careful --out benchmarks/results/theory-careful.csv
	$(BIN)/python -m benchmarks.theory.figures

figures: install
	$(BIN)/python -m benchmarks.learning.figures

clean:
	rm -rf .venv .venv-peers site .import_linter_cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache node_modules \
	    rlhf_bilevel/human/three
