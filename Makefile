# Two commands: `make demo` and `make test`. `make env` alone does the set-up that both share.
PY ?= python3
TORCH ?= auto
V := .venv
B := $(V)/bin
FIND := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--torch-backend=$(TORCH))

env: $(V)/.ok

# uv takes seconds where pip takes minutes; pip is the way out where uv cannot be had.
$(V)/.ok: pyproject.toml constraints.txt
	@$(PY) -m venv $(V)
	@$(B)/python -m pip install -q --disable-pip-version-check uv 2>/dev/null \
	  && VIRTUAL_ENV=$(V) $(B)/uv pip install -q $(FIND) -c constraints.txt -e '.[dev]' \
	  || $(B)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(V)/.ok
	$(B)/mechinterp demo

test: $(V)/.ok
	OMP_NUM_THREADS=1 $(B)/python -m pytest -n 2

lint: $(V)/.ok
	$(B)/ruff check .
	$(B)/ruff format --check .

types: $(V)/.ok
	$(B)/pyright

# Every page is run, offline, on the embedded model; a warning is an error.
docs: $(V)/.ok
	rm -rf docs/_build/html
	$(B)/python -m sphinx -W --keep-going -E -b html docs docs/_build/html
	$(B)/python docs/check.py docs/_build/html

# The parity part of the suite against the newest transformer-lens 4.x, and against the lowest versions of our
# ranges (torch at its pin), each in an environment of its own.
PARITY := tests/test_parity.py tests/test_verify.py tests/test_model.py tests/test_library_objects.py
test-matrix: test-newest test-lowest

test-newest:
	$(PY) -m venv .venv-newest
	.venv-newest/bin/python -m pip install -q --disable-pip-version-check uv
	grep -v '^transformer-lens==' constraints.txt > .venv-newest/constraints.txt
	VIRTUAL_ENV=.venv-newest .venv-newest/bin/uv pip install -q $(FIND) -c .venv-newest/constraints.txt 'transformer-lens>=4,<5' -e '.[dev]'
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -n 2 $(PARITY)

test-lowest:
	$(PY) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install -q --disable-pip-version-check uv
	grep '^torch==' constraints.txt > .venv-lowest/constraints.txt
	VIRTUAL_ENV=.venv-lowest .venv-lowest/bin/uv pip install -q $(FIND) --resolution lowest-direct -c .venv-lowest/constraints.txt -e '.[dev]'
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n 2 $(PARITY)

# Mutants of the arithmetic, and which of them no test kills: a quarter of an hour and more on two cores, begun
# again where it was left. mutmut is no part of the environment; it is taken for this alone.
mutants: $(V)/.ok
	$(B)/python -m pip install -q --disable-pip-version-check uv
	VIRTUAL_ENV=$(V) $(B)/uv pip install -q -c constraints.txt mutmut==3.8.1
	OMP_NUM_THREADS=1 $(B)/mutmut run --max-children 2
	$(B)/python -m tests.mutants

# The wheel alone, in a fresh environment outside the clone.
wheel:
	.ci/wheel

.PHONY: env demo test docs lint types test-matrix test-newest test-lowest mutants wheel
