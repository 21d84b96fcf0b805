# Each target sets up what it needs on a machine with Python 3.11 or newer, then does its job.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test cosim coverage area lint types wheel docs clean

demo: $(VENV)/.installed          ## compile the bundled model and generate text with it
	$(BIN)/alula demo $(DEMO)

test: $(VENV)/.installed-dev      ## tests that need no board and no GPU; MARK=slow: the longest
	$(BIN)/python -m pytest -m "$(or $(MARK),not slow)" $(TEST)

cosim: $(VENV)/.installed-dev     ## the hardware: units in cocotb, programs, errors; MARK=slow: the rest
	$(BIN)/python -m pytest -m "$(or $(MARK),not slow)" $(or $(COSIM),tests/cosim)

COVERAGE := $(VENV)/coverage.json
coverage: $(VENV)/.installed-dev  ## random programs and errors on the hardware, and what they covered
	ALULA_COVERAGE=$(COVERAGE) $(BIN)/python -m pytest tests/cosim/test_programs.py \
		tests/cosim/test_errors.py $(TEST)
	PYTHONPATH=tests $(BIN)/python -m programs.report $(COVERAGE)

area: $(VENV)/.installed-dev      ## what builds take of their devices, by Yosys: an hour or more
	$(BIN)/python -m alula.boards.area $(or $(AREA),u55c u280 u50 zcu104 kv260 pynq-z2)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .

types: $(VENV)/.types             ## in an environment of its own: see pyproject.toml, [tool.mypy]
	$(VENV)/types/bin/mypy

wheel: $(VENV)/.installed-dev     ## build the wheel, install it elsewhere, run from it
	rm -rf build dist $(VENV)/wheel
	$(BIN)/python -m build --wheel
	$(PYTHON) -m venv $(VENV)/wheel
	$(VENV)/wheel/bin/pip install --quiet dist/*.whl
	cd / && $(abspath $(VENV))/wheel/bin/python -c "import alula; alula.LLM"
	cd / && $(abspath $(VENV))/wheel/bin/alula demo --max-new-tokens 8

docs: $(VENV)/.installed          ## regenerate what is generated
	$(BIN)/python -m alula.hw.isadoc > docs/isa.md

clean:
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@ $(VENV)/.installed

# mypy follows only the strict kind of editable install, which does not see new files: so it is
# made anew each time, beside the one for work.
.PHONY: $(VENV)/.types
$(VENV)/.types: $(VENV)/.installed-dev
	$(PYTHON) -m venv $(VENV)/types
	$(VENV)/types/bin/pip install --quiet mypy rich numpy pydantic onnx typer tokenizers threadpoolctl ml_dtypes platformdirs jinja2
	$(VENV)/types/bin/pip install --quiet --no-deps -e . --config-settings editable_mode=strict
