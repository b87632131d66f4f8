# make demo: a phantom study from checkpoint to result on the CPU. make test: everything CI runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
OUT ?= demo-output

.PHONY: demo test lint clean

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e '.[export]'
	touch $@

# TensorRT for RTX (NVIDIA's parser and builder, which run without a GPU) exists for x86-64 Linux and Windows only.
$(VENV)/.test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e '.[dev$(if $(filter x86_64,$(shell uname -m)),$(comma)rtx)]'
	touch $@

comma := ,

demo: $(VENV)/.demo
	@rm -rf $(OUT)
	$(BIN)/fp-bench phantom-checkpoint -o $(OUT)/model.safetensors --quick
	$(BIN)/fp-export build-engine $(OUT)/model.safetensors -o $(OUT)/liver.bundle --target none
	$(BIN)/fp-bench phantom -o $(OUT)/studies/hcc --kind HCC --seed 7001
	$(BIN)/fp-bench phantom -o $(OUT)/studies/icc --kind ICC --seed 7002
	@for kind in hcc icc; do \
	  case=$$(echo $(OUT)/studies/$$kind/*); \
	  echo "fp-run $$case/dicom --box $$case/lesion_box.json --bundle $(OUT)/liver.bundle --output $(OUT)/results"; \
	  $(BIN)/fp-run $$case/dicom --box $$case/lesion_box.json --bundle $(OUT)/liver.bundle --output $(OUT)/results || exit $$?; \
	done

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) $(OUT) build dist *.egg-info
