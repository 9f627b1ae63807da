# Container for the shell scripts:
#     docker build -t df .
#     docker run --gpus all --ipc=host --rm -v DATA_ROOT:/dataset -it df
# PyTorch's wheels contain CUDA 13 libraries; the base image only has to match their major version.
# torch.compile needs the C compiler and Python's headers.
# NVIDIA apex (its fused optimizers) has to be compiled: --build-arg FLAVOUR=devel --build-arg APEX=1
# ImageNet weights of B7 and B5, so that training starts offline: --build-arg IMAGENET=1
ARG FLAVOUR=base
FROM nvidia/cuda:13.0.1-${FLAVOUR}-ubuntu24.04

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bsdextrautils ca-certificates curl gcc git libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# The virtual environment comes first in PATH, so the scripts find it as python3.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
COPY requirements.txt constraints.txt /tmp/
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir --requirement /tmp/requirements.txt --constraint /tmp/constraints.txt

ARG APEX=0
# hadolint ignore=DL3013
RUN if [ "$APEX" = 1 ]; then \
        pip install --no-cache-dir setuptools wheel packaging ninja \
        && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 \
           pip install --no-cache-dir --no-build-isolation "apex @ git+https://github.com/NVIDIA/apex"; \
    fi

# Any --user can read PyTorch's cache, which is outside the home folder, and enter the home folder.
ENV TORCH_HOME=/opt/torch
RUN useradd --create-home --uid 1234 df && chmod 755 /home/df && install --directory --owner df /opt/torch
COPY --chown=df:df . /home/df/project
USER 1234
WORKDIR /home/df/project

ARG IMAGENET=0
RUN if [ "$IMAGENET" = 1 ]; then ./download_weights.sh --imagenet; fi
CMD ["bash"]
