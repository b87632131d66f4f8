# NVIDIA GPUs in x86-64 or Arm servers: TensorRT 10.16, CUDA 13.2, Python 3.12. Linted, never built here: docker/README.md.
# From the root of the checkout: docker build -f docker/datacenter.Dockerfile -t fourphase:datacenter .

FROM nvcr.io/nvidia/tensorrt:26.05-py3 AS build
# pycuda comes as source: it takes CUDA's headers, a C++ compiler and a libcuda to link with (the toolkit's stub).
ENV CUDA_ROOT=/usr/local/cuda \
    LIBRARY_PATH=/usr/local/cuda/lib64/stubs \
    PATH=/usr/local/cuda/bin:$PATH \
    PIP_CONSTRAINT=/src/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
# The distribution keeps only its newest builds, so pinned versions would stop installing: the base image is the pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY runtime runtime
COPY calibration calibration
COPY engine engine
COPY export export
COPY benchmarks benchmarks
# The environment is filled while it is closed to the system's packages, whose versions are not ours, and opened
# afterwards: TensorRT's module is one of them.
RUN echo 'CUDA_ENABLE_CURAND = False' > "$HOME/.aksetup-defaults.py" \
    && python3 -m venv /opt/fourphase \
    && /opt/fourphase/bin/pip install '.[gpu]' \
    && sed -i 's/^include-system-site-packages = false$/include-system-site-packages = true/' /opt/fourphase/pyvenv.cfg

FROM nvcr.io/nvidia/tensorrt:26.05-py3
ENV PATH=/opt/fourphase/bin:$PATH \
    FOURPHASE_CACHE=/cache \
    PYTHONDONTWRITEBYTECODE=1
COPY --from=build /opt/fourphase /opt/fourphase
# TensorRT is only looked for: its libraries need the driver's, which the NVIDIA runtime brings when a container starts.
RUN groupadd --gid 10001 fourphase \
    && useradd --uid 10001 --gid 10001 --no-create-home fourphase \
    && install -d -o 10001 -g 10001 /cache /results \
    && python -c "import fourphase.runtime.cli, importlib.util as u; assert u.find_spec('tensorrt'), 'no TensorRT module'"
USER 10001
ENTRYPOINT ["fp-run"]
CMD ["--help"]
