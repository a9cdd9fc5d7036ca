# Each target makes .venv first where it is missing; only Python 3.11 or newer and make are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS := 1

.PHONY: demo test notebooks lint clean

demo: $(VENV)/.ready
	$(BIN)/python -m gradex.pipeline --num_seeds 3

test: $(VENV)/.ready
	$(BIN)/python -m pytest -q

notebooks: $(VENV)/.ready
	$(BIN)/python notebooks/execute.py

lint: $(VENV)/.ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# A torch that PYTHON already has (2.8 or newer) is used as it is; otherwise the pinned one is
# installed first, so that nothing else decides which build comes.
$(VENV)/.ready: requirements.lock setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "gradex needs Python 3.11 or newer; say which: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@if $(PYTHON) -c 'import torch; v = torch.__version__.split("."); raise SystemExit((int(v[0]), int(v[1])) < (2, 8))' 2>/dev/null; then \
	  echo "using the torch of $(PYTHON)"; $(PYTHON) -m venv --system-site-packages $(VENV); \
	else \
	  $(PYTHON) -m venv $(VENV) && $(BIN)/pip install --quiet $$(grep '^torch==' requirements.lock); \
	fi
	@echo "installing about 115 packages, a minute or two"
	grep -v '^torch==' requirements.lock > $(VENV)/requirements.txt
	$(BIN)/pip install --quiet -r $(VENV)/requirements.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info
